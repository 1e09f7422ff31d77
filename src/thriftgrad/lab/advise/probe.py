"""The link, measured between the ranks of a process group: what each kind of collective makes of it.

Collectives go through a lane in a thread of its own, as those of a DDP model do, so that waking it up is in them.
Latency is what the smallest message takes over its hops, bandwidth what the largest takes more.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time

import torch
import torch.distributed as dist
from torch import Tensor

from thriftgrad.comm import Comm, Lane, LinkModel, Round, all_gather, all_reduce, all_to_all, broadcast, gather
from thriftgrad.core import TensorSpec
from thriftgrad.lab.advise.transport import Cost, Transport

SMALLEST_BYTES, LARGEST_BYTES = 64, 1 << 24
LONG_SECONDS = 0.05
"""Messages grow until one takes so much longer than the smallest on some rank, or is the largest."""
REPEATS = 5
"""Of each message; the median counts."""
ROUNDS = 8
"""Of the smallest, one after another: what a single one takes is mostly chance."""

Ask = Callable[[int], Comm[object]]
"""From bytes that a worker hands in to its part in one collective."""


@dataclass(frozen=True)
class Timed:
    """One message: the most that a rank carries of it, its hops, its seconds and those of this rank's processors."""

    nbytes: int
    hops: int
    seconds: float
    processor_seconds: float


def measure(world: int) -> Transport:
    """Measure the link of the default process group, of two ranks or more; every rank calls it and gets the same."""
    with ThreadPoolExecutor(1) as thread:
        messages = _Messages(thread)
        costs = {kind: fit(messages.growing(ask)) for kind, ask in _kinds(world).items()}
        messages.lane.close()
    there, back = _one_way(0, 1), _one_way(1, 0)
    down = max(back, costs["Gather"].link.up_bits_per_second)
    latency = costs["AllReduce float32"].link.latency_seconds
    link = LinkModel(there, None if abs(down / there - 1) < 0.1 else down, latency)
    return Transport("measured", link, costs)


def _kinds(world: int) -> dict[str, Ask]:
    def ones(nbytes: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.ones(max(1, nbytes // dtype.itemsize), dtype=dtype)

    def to_all(nbytes: int) -> Comm[object]:
        return all_to_all([ones(nbytes // world)] * world)

    def from_root(nbytes: int) -> Comm[object]:
        x = ones(nbytes)
        return broadcast(x if dist.get_rank() == 0 else None, TensorSpec.of(x), 0)

    return {
        "AllReduce float32": lambda nbytes: all_reduce(ones(nbytes, torch.float32)),
        "AllReduce bfloat16": lambda nbytes: all_reduce(ones(nbytes, torch.bfloat16)),
        "AllGather": lambda nbytes: all_gather(ones(nbytes)),
        "AllToAll": to_all,
        "Gather": lambda nbytes: gather(ones(nbytes), 0),
        "Broadcast": from_root,
    }


class _Messages:
    """Collectives through a lane, one after another, timed."""

    def __init__(self, thread: Executor) -> None:
        self._thread, self._rounds = thread, list[Round]()
        self.lane = Lane(observe=self._rounds.append, thread=thread)

    def growing(self, ask: Ask) -> list[Timed]:
        """Messages of growing size; the ranks agree on the slowest one's seconds, and so on when to stop."""
        rows = [self._timed(ask, SMALLEST_BYTES, ROUNDS)]
        nbytes = SMALLEST_BYTES
        while nbytes < LARGEST_BYTES and rows[-1].seconds - rows[0].seconds < LONG_SECONDS:
            nbytes *= 4 if len(rows) > 1 else 1024
            rows.append(self._timed(ask, nbytes, 1))
        return rows

    def _timed(self, ask: Ask, nbytes: int, rounds: int) -> Timed:
        """One of so many in a row."""
        seconds, processor = [], []
        for _ in range(REPEATS):
            dist.barrier()
            start, busy = perf_counter(), process_time()
            self._thread.submit(self.lane.submit, _in_a_row(ask, nbytes, rounds))
            self._thread.submit(self.lane.flush).result()
            seconds.append((perf_counter() - start) / rounds)
            processor.append((process_time() - busy) / rounds)
        slow, busy = _greatest([median(seconds), median(processor)])
        traffic = next(each.traffic.values() for each in reversed(self._rounds) if each.traffic)
        most = max(max(each.up_bytes, each.down_bytes) for each in traffic)
        return Timed(most, max(each.hops for each in traffic), slow, busy)


def _in_a_row(ask: Ask, nbytes: int, rounds: int) -> Comm[None]:
    for _ in range(rounds):
        yield from ask(nbytes)


def _greatest(values: list[float]) -> list[float]:
    """The greatest over ranks of each."""
    mine = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    return mine.tolist()


def fit(rows: list[Timed]) -> Cost:
    """Latency, bandwidth and processor seconds of a kind of collective from messages of growing size.

    >>> fit([Timed(0, 2, 0.25, 0.0), Timed(64, 2, 1.26, 0.0), Timed(128, 2, 2.25, 0.5)])
    Cost(link=LinkModel(up_bits_per_second=512.0, latency_seconds=0.125), processor_seconds_per_byte=0.00390625)
    """
    first, last = rows[0], rows[-1]
    rise = (last.seconds - first.seconds) / (last.nbytes - first.nbytes)
    if rise <= 0:  # so much was the smallest one disturbed
        rise = last.seconds / last.nbytes
    link = LinkModel(8 / rise, latency_seconds=first.seconds / first.hops)
    return Cost(link, last.processor_seconds / last.nbytes)


def _one_way(sender: int, receiver: int) -> float:
    """Bits a second from one rank to another, with nothing on the way back."""
    rank, rows = dist.get_rank(), list[tuple[int, float]]()
    nbytes = 1 << 16
    while not rows or (rows[-1][1] < LONG_SECONDS and nbytes <= LARGEST_BYTES):
        buffer = torch.ones(nbytes, dtype=torch.uint8)
        seconds = []
        for _ in range(REPEATS):
            dist.barrier()
            start = perf_counter()
            if rank == receiver:
                dist.recv(buffer, sender)
            elif rank == sender:
                dist.send(buffer, receiver)
            seconds.append(perf_counter() - start)
        rows.append((nbytes, _greatest([median(seconds)])[0]))
        nbytes *= 4
    nbytes, slow = rows[-1]
    return 8 * nbytes / slow
