"""Messages between pairs of gloo ranks: whatever their size, type, layout and group, and however many at once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed.processes import crowd
from distributed.ranks import on_ranks
from samples import same_bits
from thriftgrad.comm import Comm, Lane, Traffic, all_gather, all_reduce, all_to_all, broadcast, gather, run
from thriftgrad.comm.exchange import LARGE_NBYTES, PIECE_NBYTES, RING_PIECE_NBYTES
from thriftgrad.comm.requests import Request
from thriftgrad.core import TensorSpec

pytestmark = pytest.mark.xdist_group("distributed")

SIZES = (0, 1, LARGE_NBYTES, LARGE_NBYTES + 1, 2 * PIECE_NBYTES + 3, RING_PIECE_NBYTES + 5)
TYPES = (torch.int16, torch.float8_e4m3fn, torch.bool, torch.float16, torch.float64, torch.complex64, torch.int64)


def message(sender: int, receiver: int, n: int, salt: int = 0) -> Tensor:
    """n bytes that nobody else sends."""
    generator = torch.Generator().manual_seed(1000 * salt + 10 * sender + receiver)
    return torch.randint(256, (n,), generator=generator, dtype=torch.uint8)


def everything_at_once(salt: int, rank: int, world: int) -> list[tuple[Comm[Any], Any]]:
    """A worker for each request and each size, with its answer."""
    ranks = range(world)
    work: list[tuple[Comm[Any], Any]] = []
    for n in SIZES:
        work.append((all_gather(message(rank, 0, n, salt)), [message(i, 0, n, salt) for i in ranks]))
        at_root = [message(i, 1, n, salt) for i in ranks]
        work.append((gather(message(rank, 1, n, salt), root=1), at_root if rank == 1 else None))
        sent = message(world - 1, 2, n, salt)
        spec = TensorSpec((n,), torch.uint8)
        work.append((broadcast(sent if rank == world - 1 else None, spec, root=world - 1), sent))
        # To each rank as much as to no other: a piece, many, none.
        lengths = [(n * (2 * to + 1)) % (4 * PIECE_NBYTES) for to in ranks]
        letters = [message(rank, to, length, salt) for to, length in zip(ranks, lengths, strict=True)]
        work.append((all_to_all(letters), [message(i, rank, lengths[rank], salt) for i in ranks]))
    return work


def by_run_by_lane_and_in_a_thread() -> list[str]:
    rank, world = dist.get_rank(), dist.get_world_size()
    wrong = [
        f"run: {worker.__name__} of {expected}"
        for worker, expected in everything_at_once(0, rank, world)
        if not same(run(worker), expected)
    ]
    lane = Lane()
    work = everything_at_once(1, rank, world)
    futures = [lane.submit(worker) for worker, _ in work]
    lane.flush()
    wrong += [
        f"lane: {i}"
        for i, (future, (_, expected)) in enumerate(zip(futures, work, strict=True))
        if not same(future.value(), expected)
    ]
    thread = ThreadPoolExecutor(1)
    lane = Lane(thread=thread)
    for salt in (2, 3):
        work = everything_at_once(salt, rank, world)
        submitted = [thread.submit(lane.submit, worker) for worker, _ in work]
        thread.submit(lane.flush).result()
        wrong += [
            f"lane in a thread: {i}"
            for i, (future, (_, expected)) in enumerate(zip(submitted, work, strict=True))
            if not same(future.result().value(), expected)
        ]
    lane.close()
    thread.shutdown()
    return wrong


def same(answer: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return same_bits(answer, expected)
    if expected is None or answer is None:
        return answer is expected
    return all(same_bits(a, b) for a, b in zip(answer, expected, strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_every_size_arrives_however_many_are_under_way(world: int) -> None:
    assert on_ranks(world, by_run_by_lane_and_in_a_thread) == [[]] * world


def of_every_type(world: int, rank: int, group: Any) -> bool:
    for dtype in TYPES:
        numbers = [(torch.arange(12.0) % 7 + i).to(dtype) for i in range(world)]
        mine = numbers[rank]
        assert same(run(all_gather(mine), group), numbers)
        assert same(run(all_to_all([mine] * world), group), numbers)
        assert same(run(gather(mine, root=1), group), numbers if rank == 1 else None)
        assert same(run(broadcast(mine, TensorSpec.of(mine), root=1), group), numbers[1])
        scalars = [each[0] for each in numbers]
        assert same(run(all_gather(scalars[rank]), group), scalars)
        lying = [each.view(3, 4).t() for each in numbers]
        assert same(run(all_gather(lying[rank]), group), lying)
        assert same(run(all_to_all([lying[rank]] * world), group), lying)
        assert same(run(all_gather(mine[::2]), group), [each[::2] for each in numbers])
    return True


def of_every_type_that_adds(world: int, rank: int, group: Any) -> bool:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.float64):
        numbers = [(torch.arange(12.0) / 8 + i).to(dtype) for i in range(world)]
        total = numbers[0].clone()
        for each in numbers[1:]:
            total += each
        x = numbers[rank].clone()
        assert same(run(all_reduce(x), group), total)
        assert same(x, numbers[rank])
        assert same(run(all_reduce(x.view(3, 4).t()), group), total.view(3, 4).t())
        assert same(run(all_reduce(x[0]), group), total[0])
        assert same(run(all_reduce(x, donated=True), group), total)
    return True


def types_and_groups() -> list[bool]:
    """Among all, and among two of three in another order, whose ranks in the group are not their own."""
    rank = dist.get_rank()
    pair = dist.new_group([2, 0], sort_ranks=False)
    done = [of_every_type(3, rank, None) and of_every_type_that_adds(3, rank, None)]
    if rank != 1:
        place = [2, 0].index(rank)
        done.append(of_every_type(2, place, pair) and of_every_type_that_adds(2, place, pair))
    return done


def where_a_sum_lies() -> tuple[bool, bool]:
    """Whether it takes the place of what was added: of three ranks, where gloo adds in place."""
    x = torch.ones(3)
    return run(all_reduce(x)).data_ptr() == x.data_ptr(), run(all_reduce(x, donated=True)).data_ptr() == x.data_ptr()


def test_a_donated_tensor_is_not_copied() -> None:
    assert on_ranks(3, where_a_sum_lies) == [(False, True)] * 3


def test_types_that_gloos_collectives_refuse_and_groups_that_are_subgroups() -> None:
    assert on_ranks(3, types_and_groups) == [[True, True], [True], [True, True]]


def leave_in_the_middle(folder: Path, rank: int, world: int, how: str) -> str:
    """The last rank dies while the others wait for what it owes them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    run(all_gather(torch.ones(1)))
    if rank == world - 1:
        time.sleep(0.5)  # gloo at times never tells of a death that comes while a receive from there is being posted
        os._exit(0)
    thread = ThreadPoolExecutor(1)
    lane = Lane(thread=thread if how == "thread" else None)
    try:
        for _ in range(2):
            thread.submit(lane.submit, all_to_all([torch.ones(10**6)] * world))
        thread.submit(lane.flush).result()
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(("world", "how"), [(2, "thread"), (3, "thread"), (3, "lane")])
def test_a_rank_that_dies_ends_the_others_with_an_error(world: int, how: str, tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        for rank in range(world):
            processes.start(str(rank), leave_in_the_middle, rank, world, how)
        for rank in range(world - 1):
            assert "closed by peer" in processes.result(str(rank)) or "reset" in processes.result(str(rank))


@dataclass(frozen=True)
class Nothing(Request):
    """A request of nobody's."""

    is_collective: bool = True

    def signature(self) -> tuple[Any, ...]:
        return ()

    def answer(self, asked: Sequence[Any]) -> list[Any]:
        return [None] * len(asked)

    def traffic(self, rank: int, world: int) -> Traffic:
        return Traffic(0, 0, 0, 0, 0)


def asking(request: Request) -> Comm[None]:
    yield request


@pytest.mark.parametrize("collective", [True, False])
def test_a_request_that_no_group_knows_is_named(collective: bool) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match=r"run: no process group can answer Nothing; yield a request of comm\."):
            run(asking(Nothing(collective)))
    finally:
        dist.destroy_process_group()
