"""The simulator answers each request as a process group would, and says so when workers disagree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from thriftgrad import TensorSpec, simulate
from thriftgrad.comm import (
    CollectiveMismatchError,
    Comm,
    Place,
    Round,
    all_gather,
    all_gather_uneven,
    all_reduce,
    all_to_all,
    broadcast,
    gather,
    place,
    replicated,
)


def own(rank: int, n: int = 3) -> Tensor:
    return torch.arange(n, dtype=torch.float32) + 10 * rank


def test_all_reduce_sums_and_leaves_the_inputs() -> None:
    xs = [own(rank) for rank in range(3)]
    answers = simulate([all_reduce(x) for x in xs])
    for answer in answers:
        assert answer.tolist() == [30.0, 33.0, 36.0]
    assert xs[0].tolist() == [0.0, 1.0, 2.0]
    answers[0].zero_()
    assert answers[1].tolist() == [30.0, 33.0, 36.0]


def test_sums_are_taken_in_rank_order() -> None:
    xs = [torch.tensor([1e8]), torch.tensor([-1e8]), torch.tensor([1.0])]
    assert simulate([all_reduce(x) for x in xs])[0].item() == 1.0
    assert simulate([all_reduce(x) for x in [xs[2], *xs[:2]]])[0].item() == 0.0


def test_all_gather_keeps_rank_order() -> None:
    for answer in simulate([all_gather(own(rank)) for rank in range(3)]):
        assert [x[0].item() for x in answer] == [0.0, 10.0, 20.0]


def test_uneven_all_gather_cuts_the_padding_off() -> None:
    lengths = [2, 0, 5]
    for answer in simulate([all_gather_uneven(own(rank, n), lengths) for rank, n in enumerate(lengths)]):
        assert [x.tolist() for x in answer] == [own(rank, n).tolist() for rank, n in enumerate(lengths)]


def test_all_to_all_is_a_transposition() -> None:
    """One shape for each destination: worker i receives tensors of i + 1 elements."""
    workers = [all_to_all([own(10 * sender + to, to + 1) for to in range(3)]) for sender in range(3)]
    for to, answer in enumerate(simulate(workers)):
        assert [x.tolist() for x in answer] == [own(10 * sender + to, to + 1).tolist() for sender in range(3)]


@pytest.mark.parametrize("root", [0, 2])
def test_gather_and_broadcast(root: int) -> None:
    def worker(rank: int) -> Comm[tuple[list[Tensor] | None, Tensor]]:
        collected = yield from gather(own(rank), root)
        answer = yield from broadcast(own(7) if rank == root else None, TensorSpec((3,)), root)
        return collected, answer

    for rank, (collected, answer) in enumerate(simulate([worker(rank) for rank in range(3)])):
        assert (collected is not None) == (rank == root)
        assert answer.tolist() == own(7).tolist()
        if collected is not None:
            assert [x[0].item() for x in collected] == [0.0, 10.0, 20.0]


def test_place_and_replicated() -> None:
    calls = []

    def compute() -> int:
        calls.append(1)
        return 5

    def worker() -> Comm[tuple[Place, int]]:
        me = yield from place()
        value = yield from replicated(compute)
        return me, value

    assert simulate([worker() for _ in range(4)]) == [(Place(rank, 4), 5) for rank in range(4)]
    assert len(calls) == 1


def test_no_workers_no_results() -> None:
    assert simulate([]) == []


def test_an_error_of_a_worker_comes_through() -> None:
    def worker() -> Comm[None]:
        yield from place()
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        simulate([worker(), worker()])


def twice(x: Tensor) -> Comm[Tensor]:
    y = yield from all_reduce(x)
    return (yield from all_reduce(y))


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        (lambda: [all_reduce(own(0)), all_gather(own(1))], r"worker 0: AllReduceRequest.*; worker 1: AllGatherRequest"),
        (lambda: [all_reduce(own(0)), all_reduce(own(1, 4))], r"worker 0: .*\(3,\).*; worker 1: .*\(4,\)"),
        (lambda: [all_reduce(own(0)), all_reduce(own(1).double())], "float32.*float64"),
        (lambda: [twice(own(0)), all_reduce(own(1))], r"finished: \[1\]"),
        (lambda: [all_reduce(own(0)), twice(own(1))], r"finished: \[0\]"),
        (lambda: [gather(own(0), 0), gather(own(1), 1)], "GatherRequest.* 0.*GatherRequest.* 1"),
        (lambda: [place(), all_reduce(own(1))], "PlaceRequest.*AllReduceRequest"),
        (
            lambda: [all_to_all([own(0), own(0)]), all_to_all([own(0), own(0, 4)])],
            "worker 0: AllToAllRequest.*; worker 1: AllToAllRequest",
        ),
        (
            lambda: [broadcast(own(0), TensorSpec((3,)), 0), broadcast(None, TensorSpec((4,)), 0)],
            r"\(3,\).*\(4,\)",
        ),
    ],
)
def test_disagreement_is_an_error_at_once(workers: Callable[[], Any], words: str) -> None:
    with pytest.raises(CollectiveMismatchError, match=words) as caught:
        simulate(workers())
    assert "the workers disagree on the next collective" in str(caught.value)
    assert "give every worker the same method and tensors of the same shapes" in str(caught.value)


def test_observers_hear_of_collectives_and_of_the_end() -> None:
    rounds: list[Round] = []

    def worker() -> Comm[None]:
        yield from place()
        yield from all_reduce(own(0))
        yield from replicated(lambda: None)
        yield from all_gather(own(0))

    simulate([worker(), worker()], rounds.append)
    assert [each.kind for each in rounds] == ["AllReduce", "AllGather", "end"]
    assert all(each.world == 2 and each.waited_seconds is None for each in rounds)
    assert all(set(each.compute_seconds) == {0, 1} for each in rounds)
    assert all(seconds >= 0 for each in rounds for seconds in each.compute_seconds.values())
    assert [set(each.traffic) for each in rounds] == [{0, 1}, {0, 1}, set()]


def test_what_is_computed_once_for_all_is_charged_to_each() -> None:
    rounds: list[Round] = []

    def busy() -> None:
        total = torch.zeros(())
        for _ in range(200):
            total += torch.ones(1000).sum()

    def worker() -> Comm[None]:
        yield from replicated(busy)

    simulate([worker(), worker()], rounds.append)
    one, two = rounds[-1].compute_seconds.values()
    assert one > 1e-4
    assert two == pytest.approx(one, rel=0.5)
