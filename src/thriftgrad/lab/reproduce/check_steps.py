"""Checks of a step's time: what exchanging nothing would gain, what compression gains, and where the seconds go."""

from __future__ import annotations

from collections.abc import Sequence

from thriftgrad.lab.reproduce.claims import Bars, Check, Finding, Reasons, Table, Verdict, below, together, within
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio
from thriftgrad.lab.reproduce.loopback import MESSAGES_BYTES, NOOP, PLAIN
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.lab.reproduce.timed_steps import (
    BASELINES,
    SERIAL,
    Network,
    against,
    breakdown,
    draws_of,
    times,
)

USELESS = 0.10
"""If exchanging nothing gains less, compression cannot help."""


def bounded(measurements: Sequence[str], reasons: Reasons) -> Check:
    """No method's step, of real processes, is shorter than one without any exchange."""

    def check(evidence: Evidence) -> Finding:
        rows = [row for each in measurements for row in _steps(evidence, each)]
        verdicts, said = [], []
        for place in _places(rows):
            here = _by_label(rows, place)
            gain = _gain(here, NOOP, PLAIN)
            best = min((label for label in here if label != NOOP), key=lambda label: interval(here[label]).mean)
            verdicts += [below(ratio(here[NOOP], here[label]), 1.0) for label in here if label != NOOP]
            useless = ": compression cannot help" if gain.high < USELESS else ""
            said.append(
                f"{place[1]}, {place[0]} workers: exchanging nothing saves {_percent(gain)} of SGD's step{useless}; "
                f"the fastest is {best}"
            )
        verdict = together(verdicts)
        judged = tuple(dict.fromkeys(row["label"] for row in rows))
        return Finding(". ".join(said) + ".", verdict, reasons.of(verdict), judged, (_table(rows),), (_bars(rows),))

    return check


def shorter(measurement: str, label: str, reasons: Reasons) -> Check:
    """A method's step, of real processes, is shorter than DDP's in fp32."""

    def check(evidence: Evidence) -> Finding:
        rows = _steps(evidence, measurement)
        found = {place: _by_label(rows, place) for place in _places(rows)}
        ratios = {place[1]: ratio(here[label], here[PLAIN]) for place, here in found.items()}
        verdict = together([below(each, 1.0) for each in ratios.values()])
        listed = "; ".join(f"{load} {each.text()} times SGD's" for load, each in ratios.items())
        speed = loopback_bits_per_second(evidence, measurement).mean / 1e9
        ours = f"{label}'s step, {rows[0]['workers']} gloo processes over a loopback of {speed:.2g} Gbit/s: {listed}."
        return Finding(ours, verdict, reasons.of(verdict), (label, PLAIN))

    return check


def loopback_bits_per_second(evidence: Evidence, measurement: str) -> Interval:
    """The bandwidth of each process's link, were its all-reduce a ring."""
    rows = [row for row in evidence.rows(measurement) if row["what"] == "all-reduce"]
    large = [row for row in rows if row["nbytes"] == MESSAGES_BYTES[-1]]
    return interval([2 * (r["workers"] - 1) / r["workers"] * 8 * r["nbytes"] / r["seconds"] for r in large])


def time_per_batch(network: Network, labels: Sequence[str], rank: int, reasons: Reasons) -> Check:
    """With SGD's exchange as large a share as in the paper, this rank saves half of what the paper says, or more."""

    def check(evidence: Evidence) -> Finding:
        draws, told, judged = draws_of(evidence, network), network.told, f"PowerSGD r={rank}"
        ratios = {b: against(draws, judged, b, told.workers, lambda d: d.link(1e10)) for b in BASELINES}
        half = 1 - told.saving(rank) / 2
        verdict = together([below(each, half) for each in ratios.values()])
        listed = ", ".join(f"{_percent(_saving(each))} against {b}" for b, each in ratios.items())
        most = told.exchange_seconds / told.sgd_seconds
        ours = (
            f"{judged} saves {listed} (the paper: {100 * told.saving(rank):.0f} %). "
            f"Without any exchange SGD with no overlap would save {100 * most:.0f} % at the "
            f"paper's figures: 10 Gbit/s carry its {told.elements * 4e-6:.0f} MB in "
            f"{1000 * told.exchange_seconds:.0f} of {1000 * told.sgd_seconds:.0f} ms."
        )
        caption = f"{network.model}, batch {network.batch} a worker, exchange and computing as in the paper"
        pictures = breakdown(draws, (*BASELINES, *labels), told.workers, lambda d: d.link(1e10), caption)
        table, bars = pictures
        return Finding(ours, verdict, reasons.of(verdict), (judged, *BASELINES), (table, _paper(network)), (bars,))

    return check


def amdahl(network: Network, labels: Sequence[str], reasons: Reasons, close: float = 0.8) -> Check:
    """Speed-ups against SGD without overlap come within ``close`` of their limit, the step without any exchange."""

    def check(evidence: Evidence) -> Finding:
        draws, workers = draws_of(evidence, network), network.told.workers
        sgd = times(draws, SERIAL, workers, lambda d: d.link(1e10))
        limit = ratio(sgd, [draw.compute.seconds for draw in draws])
        rows, verdicts, said = [], [], []
        for label in labels:
            seconds = times(draws, label, workers, lambda d: d.link(1e10))
            bytes_of = draws[0].exchanges
            fewer = bytes_of[SERIAL].payload_bytes / bytes_of[label].payload_bytes
            gain, reached = ratio(sgd, seconds), ratio([d.compute.seconds for d in draws], seconds)
            verdicts.append(within(reached, close, 1.0))
            said.append(f"{label} sends {fewer:.0f} times less and is {gain.text()} times as fast")
            rows.append((label, f"{fewer:.0f}", gain.text(), limit.text(), f"{100 * reached.mean:.0f} %"))
        verdict = together(verdicts)
        ours = f"{network.model}: at most {limit.mean:.2f} times as fast with no bytes at all; {'; '.join(said)}."
        columns = ("method", "times fewer bytes", "speed-up", "Amdahl's limit", "reached")
        caption = f"{network.model}, {workers} workers, against SGD in fp32 without overlap; modelled exchange"
        return Finding(ours, verdict, reasons.of(verdict), (*labels, SERIAL), (Table(caption, columns, tuple(rows)),))

    return check


def decomposing(network: Network, atomo: str, reasons: Reasons) -> Check:
    """Atomo's step takes longer than SGD's, and at least half of its encoding is the SVD."""

    def check(evidence: Evidence) -> Finding:
        draws, workers = draws_of(evidence, network), network.told.workers
        longer = against(draws, atomo, SERIAL, workers, lambda d: d.link(1e10))
        share = ratio([d.svd_seconds or 0.0 for d in draws], [d.exchanges[atomo].encode_seconds for d in draws])
        slower = {Verdict.HOLDS: Verdict.CONTRADICTED, Verdict.CONTRADICTED: Verdict.HOLDS}
        verdicts = [slower.get(each, each) for each in (below(longer, 1.0), below(share, 0.5))]
        verdict = together(verdicts)
        ours = (
            f"{network.model}, batch {network.batch}: {atomo} takes {longer.text()} times SGD's step, and a full SVD "
            f"of all matrices {share.text()} times its encoding."
        )
        return Finding(ours, verdict, reasons.of(verdict), (atomo, SERIAL))

    return check


def _paper(network: Network) -> Table:
    """The paper's times beside what the link allows."""
    told = network.told
    rows = [("SGD", f"{1000 * told.sgd_seconds:.0f}", "-", "-")]
    for rank, seconds in told.power_seconds:
        of_link = told.saving(rank) * told.sgd_seconds / told.exchange_seconds
        rows.append((f"rank {rank}", f"{1000 * seconds:.0f}", f"{100 * told.saving(rank):.0f} %", f"{of_link:.2f}"))
    caption = (
        f"{told.name} in the paper, 16 workers, 10 Gbit/s (secondary sources): what is saved, over the "
        f"{1000 * told.exchange_seconds:.0f} ms that a ring all-reduce of the gradient takes at full bandwidth; above "
        "1, SGD's backend was slower than its link"
    )
    return Table(caption, ("method", "ms a batch", "saved", "saved / SGD's exchange"), tuple(rows))


def _steps(evidence: Evidence, measurement: str) -> list[Row]:
    return [row for row in evidence.rows(measurement) if row["what"] == "step"]


def _places(rows: Sequence[Row]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((row["workers"], row["load"]) for row in rows))


def _by_label(rows: Sequence[Row], place: tuple[int, str]) -> dict[str, list[float]]:
    """Seconds a step by method, in the order of draws."""
    here = sorted((row for row in rows if (row["workers"], row["load"]) == place), key=lambda row: row["draw"])
    found: dict[str, list[float]] = {}
    for row in here:
        found.setdefault(row["label"], []).append(row["step_seconds"])
    return found


def _gain(here: dict[str, list[float]], label: str, over: str) -> Interval:
    return _saving(ratio(here[label], here[over]))


def _saving(each: Interval) -> Interval:
    """1 - ratio."""
    return Interval(1 - each.mean, 1 - each.high, 1 - each.low, each.count)


def _percent(share: Interval) -> str:
    return f"{100 * share.mean:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}] %"


def _table(rows: Sequence[Row]) -> Table:
    lines = []
    for place in _places(rows):
        here = _by_label(rows, place)
        for label, seconds in here.items():
            first = [row for row in rows if (row["workers"], row["load"], row["label"]) == (*place, label)]
            exposed = interval([a - b for a, b in zip(seconds, here[NOOP], strict=True)])
            codec = [interval([row[f"{each}_seconds"] for row in first]).mean for each in ("encode", "decode")]
            lines.append(
                (
                    f"{place[0]}",
                    place[1],
                    label,
                    interval([1000 * each for each in seconds]).text(),
                    ratio(seconds, here[PLAIN]).text() if label != PLAIN else "1",
                    f"{1000 * exposed.mean:.3g}",
                    *(f"{1000 * each:.3g}" for each in codec),
                    f"{first[0]['payload_bytes'] / 1e6:.3g}",
                )
            )
    caption = (
        "Steps of real processes, measured: gloo over loopback, one thread a process, DDP with overlap on. Exposed: "
        "the step less that without exchange, codec and waiting for others included; encode and decode are wall-clock "
        "seconds of a thread beside the backward pass"
    )
    columns = ("workers", "load", "method", "ms a step", "/ SGD fp32", "exposed, ms", "encode, ms", "decode, ms", "MB")
    return Table(caption, columns, tuple(lines))


def _bars(rows: Sequence[Row]) -> Bars:
    """Of the first place: the step without exchange, and what each method adds to it."""
    place = _places(rows)[0]
    means = {label: 1000 * interval(seconds).mean for label, seconds in _by_label(rows, place).items()}
    compute = tuple(min(means[NOOP], each) for each in means.values())
    exposed = tuple(max(0.0, each - means[NOOP]) for each in means.values())
    caption = f"{place[1]}, {place[0]} gloo processes over loopback, measured"
    return Bars(caption, "ms a step", tuple(means), (("without exchange", compute), ("exposed", exposed)))
