"""Steps put together of what was timed: a network's computing, each method's codec, and a modelled link."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from thriftgrad.comm import LinkModel
from thriftgrad.lab.reproduce.claims import Bars, Table
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio
from thriftgrad.lab.reproduce.powersgd_steps import CAST, SVD
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.lab.reproduce.steptime import Compute, Exchange, Step, step, uncompressed

FP32, BF16, SERIAL = "SGD fp32", "SGD bf16", "SGD fp32, no overlap"
BASELINES = (SERIAL, FP32, BF16)
"""Exchanged after the backward pass; and by DDP, in buckets behind it, in either type: the best one is never left out.
"""
LATENCY_SECONDS = 50e-6
"""A hop over Ethernet: assumed."""
LINE = "one thread; computing and codec measured, exchange modelled (alpha-beta, ring)"


@dataclass(frozen=True)
class Told:
    """What the paper reports of a network on 16 workers and 10 Gbit/s: seconds a batch of SGD, and of PowerSGD."""

    name: str
    elements: int
    sgd_seconds: float
    power_seconds: tuple[tuple[int, float], ...]  # rank, seconds

    workers: int = 16
    bits_per_second: float = 1e10

    @property
    def exchange_seconds(self) -> float:
        """A ring all-reduce of the gradient in fp32 at the full bandwidth."""
        return 2 * (self.workers - 1) / self.workers * 32 * self.elements / self.bits_per_second

    @property
    def compute_seconds(self) -> float:
        """The rest of SGD's step, if nothing overlapped."""
        return self.sgd_seconds - self.exchange_seconds

    def saving(self, rank: int) -> float:
        """The share of SGD's time that PowerSGD of this rank saves."""
        return 1 - dict(self.power_seconds)[rank] / self.sgd_seconds


TOLD = {
    "ResNet-18": Told("ResNet-18", 11_173_962, 0.312, ((1, 0.229), (2, 0.239), (4, 0.260))),
    "LSTM": Told("The LSTM", 28_949_319, 0.300, ((1, 0.131), (2, 0.141), (4, 0.134))),
}
"""Table 3 of the paper: read off secondary sources, of the LSTM's the SGD and the rank-4 times confirmed by reviews."""


@dataclass(frozen=True)
class Network:
    """A network and its batch per worker; ``told``: whose time per batch the paper reports, to scale by."""

    model: str
    batch: int
    told: Told = TOLD["ResNet-18"]


@dataclass(frozen=True)
class Draw:
    """One draw of everything: computing, and each method's exchange by its label."""

    compute: Compute
    exchanges: dict[str, Exchange]
    svd_seconds: float | None
    told: Told
    elements: int

    @property
    def slowness(self) -> float:
        """How many times longer a step computes here than in the paper, where nothing overlapped there."""
        return self.compute.seconds / self.told.compute_seconds

    @property
    def narrowness(self) -> float:
        """How many times less bandwidth makes fp32's exchange as large a share of the step as in the paper.

        That is ``slowness``, but for a network of another size than the paper's.
        """
        return self.slowness * self.told.elements / self.elements

    def link(self, bits_per_second: float) -> LinkModel:
        """The paper's link seen by a worker as slow as this one: a step is the paper's times ``slowness``."""
        return LinkModel(bits_per_second / self.narrowness, latency_seconds=LATENCY_SECONDS * self.slowness)

    def step(self, label: str, workers: int, link: LinkModel) -> Step:
        """One method's step."""
        return step(self.compute, self.exchanges[label], workers, link)


def slug(shapes: str) -> str:
    """As in a file name."""
    return shapes.lower().replace(" ", "-")


def draws_of(evidence: Evidence, network: Network) -> list[Draw]:
    """All draws of a network at its batch, in their order."""
    return [draw for _, draw in _paired(evidence, network, (network.batch,))]


def draws_by_batch(evidence: Evidence, network: Network, batches: Iterable[int]) -> dict[int, list[Draw]]:
    """The same at several batches."""
    found: dict[int, list[Draw]] = {batch: [] for batch in batches}
    for batch, draw in _paired(evidence, network, tuple(found)):
        found[batch].append(draw)
    return found


def _paired(evidence: Evidence, network: Network, batches: Sequence[int]) -> list[tuple[int, Draw]]:
    codecs, elements = codecs_of(evidence, network.model)
    times = evidence.rows(f"time-compute-{slug(network.model)}")
    found = []
    for row in sorted(times, key=lambda row: row["draw"]):
        rows = codecs.get(row["draw"])
        if row["batch"] in batches and rows is not None:
            svd = rows.get(SVD)
            compute = Compute(row["forward_seconds"], row["backward_seconds"])
            seconds = svd["encode_seconds"] if svd else None
            found.append((row["batch"], Draw(compute, exchanges(rows, elements), seconds, network.told, elements)))
    return found


def shapes_alone(evidence: Evidence, shapes: str) -> list[Draw]:
    """Draws of shapes whose network is not run: nothing to hide behind."""
    codecs, elements = codecs_of(evidence, shapes)
    told = TOLD["ResNet-18"]
    found = [exchanges(codecs[at], elements) for at in sorted(codecs)]
    return [Draw(Compute(0.0, 0.0), each, None, told, elements) for each in found]


def codecs_of(evidence: Evidence, shapes: str) -> tuple[dict[int, dict[str, Row]], int]:
    """Rows by draw and label, and the number of elements."""
    rows = evidence.rows(f"time-codec-{slug(shapes)}")
    found: dict[int, dict[str, Row]] = {row["draw"]: {} for row in rows}
    for row in rows:
        found[row["draw"]][row["label"]] = row
    return found, rows[0]["elements"]


def exchanges(rows: dict[str, Row], elements: int) -> dict[str, Exchange]:
    """The baselines; every method after the backward pass, as the paper's code has it; and behind it, as DDP does."""
    cast = rows[CAST]["encode_seconds"], rows[CAST]["decode_seconds"]
    found = {
        SERIAL: uncompressed(elements, 4, overlapped=False),
        FP32: uncompressed(elements, 4, overlapped=True),
        BF16: uncompressed(elements, 2, overlapped=True, cast=cast),
    }
    for overlapped in (False, True):
        for label, row in rows.items():
            if label in (CAST, SVD):
                continue
            name = overlapping(label) if overlapped else label
            codec = row["encode_seconds"], row["decode_seconds"], row["decode_each_seconds"]
            found[name] = Exchange(name, *codec, tuple((kind, size) for kind, size in row["collectives"]), overlapped)
    return found


def overlapping(label: str) -> str:
    """The label of a method whose exchange hides behind the backward pass."""
    return f"{label}, overlapped"


def times(draws: Sequence[Draw], label: str, workers: int, link: Callable[[Draw], LinkModel]) -> list[float]:
    """Seconds a step of one method, draw by draw."""
    return [draw.step(label, workers, link(draw)).seconds for draw in draws]


def against(draws: Sequence[Draw], a: str, b: str, workers: int, link: Callable[[Draw], LinkModel]) -> Interval:
    """The time of a's step over that of b's."""
    return ratio(times(draws, a, workers, link), times(draws, b, workers, link))


def breakdown(
    draws: Sequence[Draw], labels: Sequence[str], workers: int, link: Callable[[Draw], LinkModel], caption: str
) -> tuple[Table, Bars]:
    """The parts of each method's step in milliseconds, means over draws, as a table and as bars."""
    names = ("forward", "backward", "encode", "exposed", "hidden", "decode", "seconds")
    found = {}
    for label in labels:
        steps = [draw.step(label, workers, link(draw)) for draw in draws]
        found[label] = {name: 1000 * interval([getattr(each, name) for each in steps]).mean for name in names}
    rows = []
    for label, parts in found.items():
        exchange = draws[0].exchanges[label]
        ratios = [f"{parts['seconds'] / found[each]['seconds']:.2f}" for each in BASELINES]
        cells = [f"{parts[name]:.4g}" for name in names]
        overlap = "on" if exchange.overlapped else "off"
        rows.append((label, overlap, f"{exchange.payload_bytes / 1e6:.3g}", *cells, *ratios))
    head = ("method", "overlap", "MB", "forward", "backward", "encode", "exposed", "hidden", "decode", "step")
    columns = (*head, *(f"/ {each}" for each in BASELINES))
    shown = [name for name in names if name not in ("hidden", "seconds")]
    parts_of = tuple((name, tuple(found[label][name] for label in labels)) for name in shown)
    full = f"{caption}, {workers} workers, milliseconds of one step; {LINE}"
    return Table(full, columns, tuple(rows)), Bars(full, "ms a step", tuple(labels), parts_of)


def plain_link(draw: Draw, bits_per_second: float) -> LinkModel:
    """This bandwidth as it is."""
    return LinkModel(bits_per_second, latency_seconds=LATENCY_SECONDS)


def gbit(bits_per_second: float) -> str:
    """A bandwidth in words; where every one or none will do, so."""
    if bits_per_second in (0.0, inf):
        return "none" if bits_per_second == 0 else "any"
    return f"{bits_per_second / 1e9:.3g} Gbit/s"
