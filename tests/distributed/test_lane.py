"""The order of a lane's requests, and who waits for whom."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distributed.ranks import on_ranks
from thriftgrad.comm import Comm, Lane, Round, all_gather, all_reduce
from thriftgrad.comm.exchange import LARGE_NBYTES

pytestmark = pytest.mark.xdist_group("distributed")

ROUNDS = (3, 1, 2, 0, 4)  # of each worker
TURNS = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)]
"""Worker and request in the order in which they are issued: a new worker's first, then the older ones' next."""


def talking(number: int, rank: int, nbytes: int) -> Comm[float]:
    """As many rounds as ``ROUNDS`` says, of either kind, after computing for a time that differs between ranks."""
    total = 0.0
    for i in range(ROUNDS[number]):
        time.sleep(0.02 * ((7 * number + 3 * i + rank) % 4))
        x = torch.full((nbytes // 4,), 10.0 * number + i)
        if (number + i) % 2:
            total += float((yield from all_reduce(x))[-1])
        else:
            parts = yield from all_gather(x)
            total += float(sum(part[-1] for part in parts))
    return total


def in_what_order(threaded: bool, nbytes: int) -> tuple[list[float], list[tuple[int, int]]]:
    """What the workers return, and their requests in the order in which they were issued."""
    thread = ThreadPoolExecutor(1)
    finished: list[Round] = []
    lane = Lane(observe=finished.append, thread=thread if threaded else None)
    futures = []
    for number in range(len(ROUNDS)):
        futures.append(thread.submit(lane.submit, talking(number, dist.get_rank(), nbytes)))
        time.sleep(0.05 * dist.get_rank())
    thread.submit(lane.flush).result()
    lane.close()
    issued = sorted((each.moments for each in finished if each.kind != "end"), key=lambda m: m.issued)
    workers = [moments.worker for moments in issued]
    return (
        [future.result().value() for future in futures],
        [(worker, workers[:i].count(worker)) for i, worker in enumerate(workers)],
    )


def sums(world: int) -> list[float]:
    return [sum(world * (10.0 * number + i) for i in range(n)) for number, n in enumerate(ROUNDS)]


@pytest.mark.parametrize("threaded", [False, True])
def test_collectives_are_issued_in_an_order_that_submission_alone_decides(threaded: bool) -> None:
    for values, order in on_ranks(3, in_what_order, threaded, 2 * LARGE_NBYTES):
        assert values == sums(3)
        assert order == TURNS


@pytest.mark.parametrize(("world", "nbytes"), [(2, 4), (2, 2 * LARGE_NBYTES), (3, 4)])
def test_messages_find_their_request_in_whatever_order_they_are_issued(world: int, nbytes: int) -> None:
    for values, order in on_ranks(world, in_what_order, True, nbytes):
        assert values == sums(world)
        assert sorted(order) == sorted(TURNS)


def meanwhile() -> list[Any]:
    """Rank 1 answers the first bucket only after rank 0 has computed the third, and taken nothing of the first."""
    rank, told = dist.get_rank(), []
    other = dist.new_group()  # beside the lane's

    def worker(number: int) -> Comm[None]:
        if number == 0 and rank == 1:
            dist.recv(torch.empty(1), group=other, group_src=0)
        told.append(f"{number} computed")
        if number == 2 and rank == 0:
            dist.send(torch.ones(1), group=other, group_dst=1)
        yield from all_gather(torch.ones(10**5))
        told.append(f"{number} answered")

    thread = ThreadPoolExecutor(1)
    lane = Lane(thread=thread)
    for number in range(3):
        thread.submit(lane.submit, worker(number))
    thread.submit(lane.flush).result()
    lane.close()
    return told


def test_no_bucket_waits_for_the_answer_of_an_older_one_before_it_is_computed() -> None:
    first, _ = on_ranks(2, meanwhile, group_timeout_seconds=20)
    assert first[:3] == ["0 computed", "1 computed", "2 computed"]
    assert sorted(first[3:]) == ["0 answered", "1 answered", "2 answered"]


def going_wrong() -> list[str]:
    def worker(number: int) -> Comm[None]:
        yield from all_reduce(torch.ones(1))
        if number == 1:
            raise ArithmeticError("not today")

    thread = ThreadPoolExecutor(1)
    lane = Lane(thread=thread)
    told = []
    for number in range(3):
        thread.submit(lane.submit, worker(number))
    for submission in (lane.flush, lane.flush, lambda: lane.submit(worker(0))):
        try:
            thread.submit(submission).result()
        except ArithmeticError as error:
            told.append(str(error))
    lane.close()
    try:
        lane.submit(worker(0))
    except ArithmeticError as error:
        told.append(str(error))
    return told


def test_an_error_ends_the_lane_for_good() -> None:
    assert on_ranks(2, going_wrong) == [["not today"] * 4] * 2


def after_close() -> str:
    lane = Lane()
    lane.close()
    try:
        lane.flush()
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_closed_lane_says_so() -> None:
    assert after_close() == "this lane is closed; make another."
