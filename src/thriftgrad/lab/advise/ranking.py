"""From measured pieces to rows: what a step takes with each method, and from which bandwidth and workers on it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, sqrt

from thriftgrad.comm.rounds import Traffic
from thriftgrad.lab.advise.candidates import BF16, Candidate
from thriftgrad.lab.advise.codec import Coded
from thriftgrad.lab.advise.step import Compute, step_seconds
from thriftgrad.lab.advise.transport import Transport

MOST_WORKERS = 4096
LOWEST, HIGHEST = 1e5, 1e12
"""Bits a second between which a break-even bandwidth is looked for."""
PRECISION = 1.01

CLOSE = 1.05
"""Steps within this factor of the shortest count as short as it; of those the one of least distortion is advised."""


@dataclass(frozen=True)
class Contender:
    """A candidate and its exchange, ready to be put on any link with any number of workers."""

    candidate: Candidate
    coded: Coded


@dataclass(frozen=True)
class Setting:
    """What all candidates share: the model's step without exchange, its window, and the processors of a worker.

    ``buffer_bytes``: what DDP broadcasts before each forward pass, by type of number: the averages of BatchNorm.
    """

    compute: Compute
    ready_seconds: tuple[float, ...]
    lanes: float
    buffer_bytes: tuple[int, ...] = ()

    def buffers_seconds(self, workers: int, transport: Transport) -> float:
        """The broadcast of the buffers."""
        traffic = [Traffic(size, 0, (workers - 1) * size, 0, 1) for size in self.buffer_bytes]
        return sum(transport.flight("Broadcast", each).seconds for each in traffic)

    def seconds(self, contender: Contender, workers: int, transport: Transport) -> float:
        """A step with this method; where workers train apart, the mean over the steps of a gap."""
        alone = self.compute.seconds(self.lanes)
        if workers < 2:
            return alone
        gap = contender.candidate.gap
        buckets = contender.coded.buckets
        ready = self.ready_seconds if gap is None else [self.compute.backward_seconds] * len(buckets)
        ways = [each.way(at, workers, transport) for each, at in zip(buckets, ready, strict=True)]
        step = step_seconds(self.compute, ways, self.lanes, in_turn=workers > 2)  # of two, each message has its tag
        return alone + (step - alone) / gap if gap else step + self.buffers_seconds(workers, transport)


@dataclass(frozen=True)
class Row:
    """One line of the table; the bounds are those between which a method is faster than bf16, None: nowhere."""

    candidate: Candidate
    seconds: float
    exposed_seconds: float
    distortion: float | None
    up_bytes: float
    bandwidth: tuple[float, float] | None
    workers: tuple[int, int] | None


def rows(every: Sequence[Contender], setting: Setting, workers: int, transport: Transport) -> list[Row]:
    """The table, shortest step first."""
    (baseline,) = (each for each in every if each.candidate.label == BF16)

    @cache
    def reference(at_workers: int, bits_per_second: float) -> float:
        return setting.seconds(baseline, at_workers, transport.at(bits_per_second))

    def row(each: Contender) -> Row:
        def pays(at_workers: int, bits_per_second: float) -> bool:
            found = setting.seconds(each, at_workers, transport.at(bits_per_second))
            return found < reference(at_workers, bits_per_second)

        gap = each.candidate.gap
        seconds = setting.seconds(each, workers, transport)
        return Row(
            each.candidate,
            seconds,
            seconds - setting.compute.seconds(setting.lanes),
            None if gap else each.coded.distortion,
            sum(bucket.up_bytes(workers) for bucket in each.coded.buckets) / (gap or 1),
            None if each is baseline else bandwidths(lambda bits: pays(workers, bits)),
            None if each is baseline else worlds(lambda world: pays(world, transport.link.up_bits_per_second)),
        )

    return sorted((row(each) for each in every), key=lambda each: each.seconds)


def bandwidths(pays: Callable[[float], bool]) -> tuple[float, float] | None:
    """The highest range of bits a second in which it pays; 0 and inf where it reaches the ends of what is looked at."""
    grid = [LOWEST * (HIGHEST / LOWEST) ** (i / 28) for i in range(29)]
    found = [at for at, bits in enumerate(grid) if pays(bits)]
    if not found:
        return None
    last = first = found[-1]
    while first - 1 in found:
        first -= 1
    low = 0.0 if first == 0 else _edge(grid[first], grid[first - 1], pays)
    return low, inf if last == len(grid) - 1 else _edge(grid[last], grid[last + 1], pays)


def _edge(inside: float, outside: float, pays: Callable[[float], bool]) -> float:
    while max(inside / outside, outside / inside) > PRECISION:
        middle = sqrt(inside * outside)
        inside, outside = (middle, outside) if pays(middle) else (inside, middle)
    return inside


def worlds(pays: Callable[[int], bool]) -> tuple[int, int] | None:
    """The first range of numbers of workers in which it pays, from 2 to ``MOST_WORKERS``."""
    grid = [2, 3, *(2**i for i in range(2, 13))]
    found = [at for at, world in enumerate(grid) if pays(world)]
    if not found:
        return None
    first = last = found[0]
    while last + 1 in found:
        last += 1
    low = grid[0] if first == 0 else _last(grid[first], grid[first - 1], pays)
    return low, grid[-1] if last == len(grid) - 1 else _last(grid[last], grid[last + 1], pays)


def _last(inside: int, outside: int, pays: Callable[[int], bool]) -> int:
    while abs(inside - outside) > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if pays(middle) else (inside, middle)
    return inside


def advised(table: Sequence[Row]) -> Row:
    """Of the methods that exchange at every step, the one of least distortion within ``CLOSE`` of the shortest step."""
    each_step = [row for row in table if row.candidate.gap is None]
    shortest = min(row.seconds for row in each_step)
    close = [row for row in each_step if row.seconds <= CLOSE * shortest]
    return min(close, key=lambda row: (row.distortion, row.seconds))


def over_workers(
    every: Sequence[Contender], setting: Setting, transport: Transport, worlds: Sequence[int]
) -> dict[str, list[float]]:
    """Seconds of a step by method with each of these numbers of workers: arithmetic on the pieces, nothing is run."""
    return {each.candidate.label: [setting.seconds(each, n, transport) for n in worlds] for each in every}


def over_bandwidths(
    every: Sequence[Contender],
    setting: Setting,
    transport: Transport,
    workers: int,
    bits_per_second: Sequence[float],
) -> dict[str, list[float]]:
    """The same with each of these bandwidths."""
    links = [transport.at(bits) for bits in bits_per_second]
    return {each.candidate.label: [setting.seconds(each, workers, link) for link in links] for each in every}
