"""What a training run has cost, and the record of it at an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite

from torch import Tensor

from thriftgrad.comm import Ledger, LinkModel, Round
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.distortion import Measurement
from thriftgrad.lab.load import Evaluation, Levels
from thriftgrad.tasks.task import Task


@dataclass
class Meter:
    """Adds up bytes, codec seconds and modelled link seconds; an observer of the training's collectives."""

    links: dict[str, LinkModel]
    ledger: Ledger = field(default_factory=Ledger)
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    link_seconds: dict[str, float] = field(default_factory=dict)
    waited_seconds: float = 0.0  # for real collectives
    issued: list[float] = field(default_factory=list)  # when each of them was, since the last evaluation

    def __call__(self, finished: Round) -> None:
        """What a worker computes before a collective is encoding, what it computes after the last one is decoding."""
        self.ledger(finished)
        seconds = sum(finished.compute_seconds.values()) / len(finished.compute_seconds)
        if finished.kind == "end":
            self.decode_seconds += seconds
        else:
            self.encode_seconds += seconds
            if finished.moments is not None:
                self.issued.append(finished.moments.issued)
        self.waited_seconds += finished.waited_seconds or 0.0
        for label, link in self.links.items():
            self.link_seconds[label] = self.link_seconds.get(label, 0.0) + link.seconds(finished)


@dataclass
class Books:
    """What one method has cost along a trajectory, and what was last measured of it."""

    cluster: Cluster
    elements: int  # of the model
    meter: Meter
    measurement: Measurement = Measurement()
    told: tuple[int, float] = (0, 0.0)  # the step and the payload bytes of the last evaluation
    skew_seconds: float = 0.0

    def skew(self) -> float:
        """Seconds that a worker waited for the last one to come, mean over workers, sum over all collectives so far."""
        issued, self.meter.issued = self.meter.issued, []
        # One clock is everybody's: all processes are on one machine.
        everybodys = zip(self.cluster.latest(issued), self.cluster.mean(issued), strict=True)
        self.skew_seconds += sum(last - mean for last, mean in everybodys)
        return self.skew_seconds

    def bits_per_coordinate(self, step: int) -> float | None:
        """What a worker has handed to collectives since the last call, per step and coordinate."""
        (before, told), sent = self.told, self.meter.ledger.payload_up_bytes
        self.told = step, sent
        return 8 * (sent - told) / (step - before) / self.elements if step > before else None


def evaluation(
    task: Task,
    books: Books,
    step: int,
    quality: float | None,
    losses: Sequence[Sequence[float]],
    compute_seconds: float,
    levels: Levels | None = None,
) -> Evaluation:
    """The record of one method at one step; ``losses``: those of each local worker since the last one."""
    cluster, meter = books.cluster, books.meter
    loss_here = sum(sum(each) / len(each) for each in losses) / len(losses)
    loss, compute, encode, decode, waited = cluster.mean(
        [loss_here, compute_seconds, meter.encode_seconds, meter.decode_seconds, meter.waited_seconds]
    )
    return Evaluation(
        step=step,
        samples=step * task.batch_size * cluster.world,
        loss=loss if isfinite(loss) else None,
        quality=quality if quality is not None and isfinite(quality) else None,
        payload_up_bytes=meter.ledger.payload_up_bytes,
        payload_down_bytes=meter.ledger.payload_down_bytes,
        up_bytes=meter.ledger.up_bytes,
        down_bytes=meter.ledger.down_bytes,
        compute_seconds=compute,
        encode_seconds=encode,
        decode_seconds=decode,
        link_seconds={label: meter.link_seconds.get(label, 0.0) for label in meter.links},
        **vars(books.measurement.distortion),
        **vars(books.measurement.symbols),
        bits_per_coordinate=books.bits_per_coordinate(step),
        levels=levels,
        waited_seconds=waited,
        skew_seconds=books.skew(),
    )


def all_finite(parameters: Iterable[Tensor]) -> bool:
    """Whether no parameter holds a NaN or an infinity."""
    return all(bool(p.isfinite().all()) for p in parameters)
