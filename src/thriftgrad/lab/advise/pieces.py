"""What an exchange is made of: computing and collectives, as functions of the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thriftgrad.comm.rounds import Traffic
from thriftgrad.lab.advise.step import Way
from thriftgrad.lab.advise.transport import Transport

FEW, MANY = 2, 4
"""The numbers of workers that an exchange is measured with."""


@dataclass(frozen=True)
class Line:
    """constant + each * n at n workers."""

    constant: float
    each: float = 0.0

    @classmethod
    def through(cls, few: float, many: float) -> Line:
        """The line through the values at ``FEW`` and at ``MANY`` workers; one that falls is noise, and their mean."""
        each = (many - few) / (MANY - FEW)
        return cls(few - FEW * each, each) if each > 0 else cls((few + many) / 2)

    def at(self, workers: int) -> float:
        """The value at n workers."""
        return self.constant + self.each * workers


@dataclass(frozen=True)
class Bytes:
    """(n - 1) (divided / n + whole) + fixed bytes at n workers.

    A ring's all-reduce has the first alone, a gather the second, a sender of a star the third.

    >>> Bytes.through(few=100, many=150)  # an all-reduce of 100 bytes
    Bytes(divided=200.0, whole=0.0, fixed=0.0)
    """

    divided: float
    whole: float
    fixed: float = 0.0

    @classmethod
    def through(cls, few: float, many: float) -> Bytes:
        """The one with these bytes at ``FEW`` and at ``MANY`` workers."""
        if few == many:
            return cls(0.0, 0.0, few)
        a, b = few / (FEW - 1), many / (MANY - 1)
        divided = max(0.0, (a - b) / (1 / FEW - 1 / MANY))
        return cls(divided, max(0.0, a - divided / FEW))

    def at(self, workers: int) -> float:
        """The bytes at n workers."""
        return (workers - 1) * (self.divided / workers + self.whole) + self.fixed


@dataclass(frozen=True)
class Round:
    """What is computed before a collective, and what the collective carries on a link, one after another ``hops``."""

    kind: str
    compute_seconds: Line
    up_bytes: Bytes
    down_bytes: Bytes
    hops: Line

    def traffic(self, workers: int) -> Traffic:
        """Of one worker."""
        up, down = round(self.up_bytes.at(workers)), round(self.down_bytes.at(workers))
        return Traffic(up, down, up, down, round(self.hops.at(workers)))


@dataclass(frozen=True)
class Pieces:
    """The exchange of one DDP bucket."""

    rounds: tuple[Round, ...]
    decode_seconds: Line

    def way(self, ready_seconds: float, workers: int, transport: Transport) -> Way:
        """How it goes on this link with so many workers."""
        rounds = tuple(
            (each.compute_seconds.at(workers), transport.flight(each.kind, each.traffic(workers)))
            for each in self.rounds
        )
        return Way(ready_seconds, rounds, self.decode_seconds.at(workers))

    def up_bytes(self, workers: int) -> float:
        """What a worker sends."""
        return sum(each.up_bytes.at(workers) for each in self.rounds)


@dataclass(frozen=True)
class Seen:
    """One exchange as it was seen at some number of workers: before each collective and after the last, seconds."""

    kinds: tuple[str, ...]
    traffic: tuple[Traffic, ...]
    compute_seconds: tuple[float, ...]  # one more than collectives: the last is decoding


def fitted(few: Seen, many: Seen) -> Pieces:
    """The pieces that were measured at ``FEW`` and at ``MANY`` workers.

    What is computed grows with the workers only where it reads an answer that does; elsewhere a slope would be noise.
    """
    rounds: list[Round] = []
    grows = False
    lines: list[Line] = []
    for at, (a, b) in enumerate(zip(few.compute_seconds, many.compute_seconds, strict=True)):
        lines.append(Line.through(a, b) if grows else Line((a + b) / 2))
        if at < len(few.kinds):
            grows = many.traffic[at].payload_down_bytes > 2 * few.traffic[at].payload_down_bytes
    for at, kind in enumerate(few.kinds):
        x, y = few.traffic[at], many.traffic[at]
        rounds.append(
            Round(
                kind,
                lines[at],
                Bytes.through(x.up_bytes, y.up_bytes),
                Bytes.through(x.down_bytes, y.down_bytes),
                Line.through(x.hops, y.hops),
            )
        )
    return Pieces(tuple(rounds), lines[-1])


def slowest(traffic: Sequence[Traffic]) -> Traffic:
    """The most that any worker carries."""
    return Traffic(*(max(column) for column in zip(*traffic, strict=True)))
