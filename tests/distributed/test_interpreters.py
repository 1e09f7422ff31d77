"""The simulator and a real process group give the same answers, whichever of ``run`` and ``Lane`` asks them."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed.ranks import on_ranks
from samples import gradients, specs
from thriftgrad import AllReduce, GradiVeQ, Key, Ledger, PowerSGD, simulate
from thriftgrad.comm import Comm, Lane, all_gather, all_reduce, all_to_all, broadcast, gather, place, run
from thriftgrad.core import TensorSpec
from zoo import AGGREGATORS, parts

pytestmark = pytest.mark.xdist_group("distributed")

STEPS = 3
Estimates = list[list[Tensor]]  # of each step


def one_by_one_and_all_at_once() -> tuple[list[Estimates], list[Estimates], list[Ledger]]:
    """Each method of the zoo by ``run``, then all of them as jobs of one lane."""
    rank, world = dist.get_rank(), dist.get_world_size()
    ledgers = [Ledger() for _ in AGGREGATORS]
    alone: list[Estimates] = [[] for _ in AGGREGATORS]
    for method, ledger, estimates in zip(AGGREGATORS, ledgers, alone, strict=True):
        state = method.init(specs())
        for t in range(STEPS):
            worker = method.aggregate(gradients(world, t)[rank], state, Key(7).fold(t))
            means, state = run(worker, observe=ledger)
            estimates.append(means)

    together: list[Estimates] = [[] for _ in AGGREGATORS]
    states = [method.init(specs()) for method in AGGREGATORS]
    lane = Lane()
    for t in range(STEPS):
        futures = []
        for i, (method, state) in enumerate(zip(AGGREGATORS, states, strict=True)):
            if (i + t) % world == rank:
                time.sleep(0.001)  # ranks come to their requests at different times
            futures.append(lane.submit(method.aggregate(gradients(world, t)[rank], state, Key(7).fold(t))))
        lane.flush()
        for i, future in enumerate(futures):
            means, states[i] = future.value()
            together[i].append(means)
    return alone, together, ledgers


@pytest.fixture(scope="module", params=[2, 3])
def on_gloo(request: pytest.FixtureRequest) -> tuple[int, list[Any]]:
    return request.param, on_ranks(request.param, one_by_one_and_all_at_once)


def simulated(method: Any, world: int, ledger: Ledger) -> list[Estimates]:
    """Each worker's estimates."""
    states = [method.init(specs()) for _ in range(world)]
    estimates: list[Estimates] = [[] for _ in range(world)]
    for t in range(STEPS):
        tensors = gradients(world, t)
        workers = [method.aggregate(x, state, Key(7).fold(t)) for x, state in zip(tensors, states, strict=True)]
        for rank, (means, state) in enumerate(simulate(workers, ledger)):
            estimates[rank].append(means)
            states[rank] = state
    return estimates


def tolerance(method: Any, world: int) -> float:
    """Gather methods and sums of two are exact; gloo sums three in an order of its own, and factors multiply that."""
    if world == 2 or not any(isinstance(part, AllReduce | GradiVeQ | PowerSGD) for part in parts(method)):
        return 0.0
    exact = 4e-6 if any(isinstance(part, PowerSGD) for part in parts(method)) else 1e-6
    return 2**-7 if "bf16" in repr(method) else 2**-9 if "fp16" in repr(method) else exact


@pytest.mark.parametrize("row", range(len(AGGREGATORS)), ids=[repr(method) for method in AGGREGATORS])
def test_gloo_equals_the_simulator(row: int, on_gloo: tuple[int, list[Any]]) -> None:
    world, ranks = on_gloo
    method, book = AGGREGATORS[row], Ledger()
    expected = simulated(method, world, book)
    allowed = tolerance(method, world)
    for rank, (alone, together, ledgers) in enumerate(ranks):
        torch.testing.assert_close(alone[row], expected[rank], rtol=allowed, atol=allowed)
        torch.testing.assert_close(together[row], expected[rank], rtol=allowed, atol=allowed)
        assert ledgers[row].per_worker == book.per_worker
        assert ledgers[row].requests == book.requests
        # What all hold is the same to the last bit, whatever the order of the sums.
        torch.testing.assert_close(alone[row], ranks[0][0][row], rtol=0, atol=0)


def every_request_on_a_tensor_of_each_layout() -> None:
    rank, world = run(place())
    assert (rank, world) == (dist.get_rank(), dist.get_world_size())
    plain = torch.arange(6.0).view(3, 2)
    x = plain if rank == 0 else plain.t().contiguous().t()  # the same values, laid out otherwise
    before = x.clone()
    assert torch.equal(run(all_reduce(x)), world * plain)
    assert torch.equal(run(all_reduce(x.clone(), donated=True)), world * plain)
    assert all(torch.equal(each, plain) for each in run(all_gather(x)))
    gathered = run(gather(x + rank, root=1))
    if rank == 1:
        assert gathered is not None
        assert all(torch.equal(each, plain + i) for i, each in enumerate(gathered))
    else:
        assert gathered is None
    received = run(broadcast(x if rank == 1 else None, TensorSpec.of(plain), root=1))
    assert torch.equal(received, plain)
    uneven = [torch.full((to + 1, 2), 10.0 * rank + to) for to in range(world)]
    for i, each in enumerate(run(all_to_all(uneven))):
        assert torch.equal(each, torch.full((rank + 1, 2), 10.0 * i + rank))
    assert [each.shape for each in run(all_to_all([torch.empty(0)] * world))] == [(0,)] * world
    assert torch.equal(x, before)


def test_each_request_is_answered_whatever_the_memory_layout() -> None:
    on_ranks(2, every_request_on_a_tensor_of_each_layout)


def an_error_in_one_worker() -> str:
    def worker() -> Comm[None]:
        yield from all_reduce(torch.ones(1))
        raise ValueError("not today")

    try:
        run(worker())
    except ValueError as error:
        return str(error)
    return "no error"


def test_a_workers_error_comes_out_of_run() -> None:
    assert on_ranks(2, an_error_in_one_worker) == ["not today"] * 2
