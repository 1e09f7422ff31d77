"""The link, measured between the ranks of a process group: what each kind of collective makes of it.

Latency is what the smallest message takes over its hops, bandwidth what the largest takes more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter, process_time

import torch
import torch.distributed as dist
from torch import Tensor

from thriftgrad.comm import Comm, LinkModel, Round, all_gather, all_reduce, all_to_all, broadcast, gather, run
from thriftgrad.core import TensorSpec
from thriftgrad.lab.advise.transport import Cost, Transport

SMALLEST_BYTES, LARGEST_BYTES = 64, 1 << 24
LONG_SECONDS = 0.05
"""Messages grow until one takes so much longer than the smallest on some rank, or is the largest."""
REPEATS = 3
"""The shortest counts, for what disturbs only adds."""

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
    costs = {kind: fit(_grown(ask)) for kind, ask in _kinds(world).items()}
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


def _grown(ask: Ask) -> list[Timed]:
    """Messages of growing size; the ranks agree on the slowest one's seconds, and so on when to stop."""
    rows: list[Timed] = []
    nbytes = SMALLEST_BYTES
    while True:
        rows.append(_timed(partial(ask, nbytes)))
        if nbytes >= LARGEST_BYTES or rows[-1].seconds - rows[0].seconds > LONG_SECONDS:
            return rows
        nbytes *= 4 if nbytes > SMALLEST_BYTES else 1024


def _timed(ask: Callable[[], Comm[object]]) -> Timed:
    seconds, processor, rounds = [], [], list[Round]()
    for _ in range(REPEATS):
        worker = ask()
        dist.barrier()
        start, busy = perf_counter(), process_time()
        run(worker, observe=rounds.append)
        seconds.append(perf_counter() - start)
        processor.append(process_time() - busy)
    traffic = [each for finished in rounds[:1] for each in finished.traffic.values()]
    slow, busy = _greatest([min(seconds), min(processor)])
    most = max(max(each.up_bytes, each.down_bytes) for each in traffic)
    return Timed(most, max(each.hops for each in traffic), slow, busy)


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
        rows.append((nbytes, _greatest([min(seconds)])[0]))
        nbytes *= 4
    nbytes, slow = rows[-1]
    return 8 * nbytes / slow
