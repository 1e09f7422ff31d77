"""The order of a lane's requests, and who waits for whom."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distributed.ranks import on_ranks
from thriftgrad.comm import Comm, Lane, Round, all_gather, all_reduce, all_to_all
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
@pytest.mark.parametrize("nbytes", [4, 2 * LARGE_NBYTES])
def test_collectives_are_issued_in_an_order_that_submission_alone_decides(threaded: bool, nbytes: int) -> None:
    for values, order in on_ranks(3, in_what_order, threaded, nbytes):
        assert values == sums(3)
        assert order == TURNS


@pytest.mark.parametrize("nbytes", [4, 2 * LARGE_NBYTES])
def test_messages_of_two_find_their_request_in_whatever_order_they_are_issued(nbytes: int) -> None:
    for values, order in on_ranks(2, in_what_order, True, nbytes):
        assert values == sums(2)
        assert sorted(order) == sorted(TURNS)


def large_ones_then_a_small_one() -> list[float]:
    """Rank 0 is ahead of the others: it hands over its last bucket before they have handed over their second."""

    def two_rounds(number: int, n: int) -> Comm[float]:
        received = yield from all_to_all([torch.full((n,), float(number))] * dist.get_world_size())
        parts = yield from all_gather(received[0])
        return float(parts[-1][-1])

    thread = ThreadPoolExecutor(1)
    lane = Lane(thread=thread)
    futures = []
    for number, n in enumerate([LARGE_NBYTES] * 4 + [1]):
        futures.append(thread.submit(lane.submit, two_rounds(number, n)))
        time.sleep(0.1 if dist.get_rank() else 0.0)
    thread.submit(lane.flush).result()
    lane.close()
    return [future.result().value() for future in futures]


def test_nobody_waits_for_a_small_one_while_the_others_wait_for_a_large_one() -> None:
    assert on_ranks(3, large_ones_then_a_small_one, group_timeout_seconds=20) == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 3


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
