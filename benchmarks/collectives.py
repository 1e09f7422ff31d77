"""What our exchanges and gloo's own collectives make of a link, between ranks in network namespaces.

    sudo .venv/bin/python benchmarks/collectives.py [--rounds R] [--workers 2 4] [--links 100mbit 1gbit unlimited]

A figure is the busier way's bytes on the busiest rank's link over what the link could have carried in that time: 1.0
would be a link that is full both ways, 0.957 is what headers leave. Variants take turns, all ranks starting together;
times are those of the slowest rank, medians over rounds. Where nothing limits a link, milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thriftgrad.comm import all_gather, all_reduce, all_to_all, broadcast, gather, run
from thriftgrad.core import TensorSpec
from thriftgrad.lab.comparison import cpu_name
from thriftgrad.lab.namespaces import Network
from thriftgrad.lab.shape import UNLIMITED, LabError, Shape

NBYTES = {"100mbit": 5_000_000}
OTHERWISE_NBYTES = 12_500_000
SMALL_NBYTES = 100

Variant = tuple[Callable[[], object], Callable[[], object], float]
"""gloo's own, ours, and the bytes on the busier way of the busiest link."""


def variants(rank: int, world: int, nbytes: int) -> dict[str, Variant]:
    """The exchanges of so many bytes a rank."""
    x = torch.full((nbytes,), rank, dtype=torch.uint8)
    share = nbytes // world
    shares = list(x[: world * share].split(share))
    everybodys, mine = [torch.empty_like(x) for _ in range(world)], torch.empty(world * share, dtype=torch.uint8)
    numbers, spec = torch.ones(nbytes // 4), TensorSpec.of(x)

    def two_phase() -> None:
        dist.all_to_all_single(mine, x[: world * share])
        dist.all_gather([each[:share] for each in everybodys], shares[0])

    def ours_two_phase() -> None:
        run(all_to_all(shares))
        run(all_gather(shares[0]))

    others = world - 1
    return {
        "all-gather": (lambda: dist.all_gather(everybodys, x), lambda: run(all_gather(x)), others * nbytes),
        "all-to-all": (
            lambda: dist.all_to_all_single(mine, x[: world * share]),
            lambda: run(all_to_all(shares)),
            others * share,
        ),
        "two-phase": (two_phase, ours_two_phase, 2 * others * share),
        "gather": (
            lambda: dist.gather(x, everybodys if rank == 0 else None),
            lambda: run(gather(x, 0)),
            others * nbytes,
        ),
        "broadcast": (
            lambda: dist.broadcast(x.clone(), 0),
            lambda: run(broadcast(x if rank == 0 else None, spec, 0)),
            others * nbytes,
        ),
        "all-reduce, float32": (
            lambda: dist.all_reduce(numbers),
            lambda: run(all_reduce(numbers)),
            2 * others / world * nbytes,
        ),
    }


def be_a_rank(nbytes: int, rounds: int) -> None:
    """Take all variants in turns; rank 0 prints the median seconds of each, of the slowest rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    timed: dict[str, list[float]] = {}
    for size, times in ((nbytes, rounds), (SMALL_NBYTES, 10 * rounds)):
        for i in range(times + 1):
            for name, (theirs, ours, _) in variants(rank, world, size).items():
                for who, function in (("gloo", theirs), ("ours", ours)):
                    seconds = slowest(function)
                    if i:  # the first is a warm-up
                        timed.setdefault(f"{size} {name} {who}", []).append(seconds)
    if rank == 0:
        print(json.dumps({name: median(seconds) for name, seconds in timed.items()}))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def slowest(function: Callable[[], object]) -> float:
    """Seconds that the slowest rank takes, all starting together."""
    dist.barrier()
    start = perf_counter()
    function()
    seconds: Tensor = torch.tensor(perf_counter() - start)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def measured(workers: int, link: str, rounds: int) -> list[str]:
    """A row for each exchange: its efficiency or milliseconds by gloo's own and by ours, and those of a small one."""
    nbytes = NBYTES.get(link, OTHERWISE_NBYTES)
    shape = Shape.of(link)
    command = [sys.executable, __file__, "--rank", str(nbytes), "--rounds", str(rounds)]
    with Network(workers, shape) as network:
        (first, *_) = network.run(command, timeout_seconds=600)
    seconds: dict[str, float] = json.loads(first.output.splitlines()[-1])

    def cell(name: str, who: str, sent: float) -> str:
        taken = seconds[f"{nbytes} {name} {who}"]
        if shape.up_bits_per_second is None:
            return f"{1e3 * taken:.1f} ms"
        return f"{8 * sent / shape.up_bits_per_second / taken:.2f}"

    def small(name: str, who: str) -> str:
        return f"{1e3 * seconds[f'{SMALL_NBYTES} {name} {who}']:.2f}"

    return [
        f"| {workers} | {link} | {nbytes / 1e6:g} MB | {name} | "
        f"{cell(name, 'gloo', sent)} | {cell(name, 'ours', sent)} | {small(name, 'gloo')} | {small(name, 'ours')} |"
        for name, (*_, sent) in variants(0, workers, nbytes).items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a page of Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--links", nargs="+", default=["100mbit", "1gbit", UNLIMITED])
    parser.add_argument("--rank", type=int, metavar="NBYTES", help=argparse.SUPPRESS)
    asked: Any = parser.parse_args(arguments)
    if asked.rank is not None:
        be_a_rank(asked.rank, asked.rounds)
    rows = [row for workers in asked.workers for link in asked.links for row in measured(workers, link, asked.rounds)]
    head = [
        "# Exchanges against the link",
        "",
        "    sudo .venv/bin/python benchmarks/collectives.py",
        "",
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread a rank, medians "
        f"of {asked.rounds} rounds; 1.0 is a link that is full, 0.957 what headers leave of it",
        "",
        f"| workers | link | a rank's bytes | exchange | gloo's own | ours | gloo, {SMALL_NBYTES} bytes, ms | ours |",
        "|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    print("\n".join([*head, *rows]))


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"collectives: {error}")
