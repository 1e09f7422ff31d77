"""What a handle promises across ranks: checkpoints, non-finite gradients, one method for all, errors that come out."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import on_ranks
from distributed.training import SMALL_BUCKETS, Net, attached, loss_of, train, trained
from samples import same_bits
from thriftgrad import (
    QSGD,
    AllGather,
    ErrorFeedback,
    Key,
    ParameterServer,
    PowerSGD,
    ScatterReduce,
    Sign,
    TensorSpec,
    TopK,
    attach,
    recipes,
)
from thriftgrad.aggregate import Aggregator
from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.comm import Comm

pytestmark = pytest.mark.xdist_group("distributed")

TOP_K = AllGather(ErrorFeedback(TopK(fraction=0.1)))
WITH_MEMORY = (
    TOP_K,
    ScatterReduce(ErrorFeedback(Sign()), ErrorFeedback(Sign())),
    ParameterServer(ErrorFeedback(TopK(fraction=0.2)), ErrorFeedback(QSGD(bits=8))),
    PowerSGD(rank=2, min_compression_rate=0),
    PowerSGD(rank=2, min_compression_rate=0, start_after=2),
    recipes.signum().aggregator,
)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def stop_and_go_on() -> list[dict[str, Any]]:
    """Each method for five steps; the same stopped and saved after none, one and three."""
    results = []
    for method in WITH_MEMORY:
        model, handle = attached(method)
        train(model, range(5))
        results.append({"whole": trained(model.module), "stopped": []})
        for stop in (0, 1, 3):
            model, handle = attached(method)
            train(model, range(stop))
            saved, weights = through_a_file(handle.state_dict()), model.module.state_dict()
            net = Net()
            net.load_state_dict(weights)
            again = DistributedDataParallel(net, **SMALL_BUCKETS)  # cut differently than before
            other = attach(again, method, seed=3)
            other.load_state_dict(saved)
            assert same_state(other.state_dict(), saved)
            train(again, range(stop, 5))
            results[-1]["stopped"].append(trained(again.module))
        results[-1]["keys"] = list(saved)
    return results


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        same_bits(value, other[key]) if isinstance(value, Tensor) else value == other[key] for key, value in one.items()
    )


def test_save_load_continue_equals_continue() -> None:
    for rank, results in enumerate(on_ranks(2, stop_and_go_on)):
        for method, result in zip(WITH_MEMORY, results, strict=True):
            for stopped in result["stopped"]:
                for name, value in result["whole"].items():
                    assert same_bits(stopped[name], value), f"{name} of {method!r}"
            memories = [key for key in result["keys"] if key.startswith("memory/")]
            assert memories
            assert all(key.startswith(f"memory/rank0000{rank}/") for key in memories)


def meet_a_nan() -> list[dict[str, Any]]:
    """Two steps, one with a NaN in one parameter's gradient on rank 1, one more."""
    results = []
    for method in WITH_MEMORY:
        model, handle = attached(method, **SMALL_BUCKETS)
        train(model, range(2))
        poison = model.module.conv2.weight.register_hook(_with_a_nan)
        before = through_a_file(handle.state_dict())
        model.zero_grad()
        loss_of(model, dist.get_rank(), 2).backward()
        poison.remove()
        after = handle.state_dict()
        parameters = model.module.named_parameters()
        finite = {name: bool(p.grad.isfinite().all()) for name, p in parameters if p.grad is not None}
        train(model, [3])
        results.append(
            {
                "unchanged": same_state({**before, "step": 3}, after),
                "finite": finite,
                "healed": all(value.isfinite().all() for value in trained(model.module).values()),
                "moved on": not same_state(handle.state_dict(), after),
                "stats": handle.stats(),
            }
        )
    return results


def _with_a_nan(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient.view(-1)[5] = torch.nan if dist.get_rank() == 1 else 0.0
    return gradient


def test_a_nan_on_one_rank_changes_no_memory_on_any() -> None:
    for results in on_ranks(2, meet_a_nan):
        for method, result in zip(WITH_MEMORY, results, strict=True):
            assert result["unchanged"], method
            assert not result["finite"]["conv2.weight"], method  # handed on, so that the step can be skipped
            assert result["finite"]["last.weight"], method  # of a bucket that saw no NaN
            assert result["healed"], method
            assert result["moved on"], method
            assert (result["stats"].steps, result["stats"].skipped_steps) == (4, 1)


def disagree() -> list[str]:
    rank = dist.get_rank()
    net = torch.nn.Sequential()
    net.add_module(f"layer{rank}", torch.nn.Linear(3, 2))
    told = []
    for model, method, seed in [
        (Net(), recipes.top_k(fraction=0.01 * (1 + rank)), 0),
        (Net(), recipes.top_k(), rank),
        (net, recipes.top_k(), 0),
    ]:
        try:
            attach(DistributedDataParallel(model), method, seed)
            told.append("no error")
        except ValueError as error:
            told.append(str(error))
    return told


def test_ranks_that_disagree_are_told_both_sides() -> None:
    one, other = on_ranks(2, disagree)
    assert one == other
    assert one == [
        f"attach: the ranks disagree on method: rank 0 has {recipes.top_k()!r}, rank 1 has "
        f"{recipes.top_k(fraction=0.02)!r}; give every rank the same.",
        "attach: the ranks disagree on seed: rank 0 has 0, rank 1 has 1; give every rank the same.",
        "attach: the ranks disagree on parameter/layer0.weight: rank 0 has float32[2, 3], rank 1 has absent; "
        "give every rank the same.",
    ]


@dataclass(frozen=True, repr=False)
class Failing(Aggregator[None]):
    """Goes wrong at one parameter."""

    at: str

    def init_tensor(self, spec: TensorSpec) -> None:
        return None

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[None], key: Key
    ) -> Comm[tuple[list[Tensor], list[None]]]:
        sums = yield from all_reduce_list(tensors)
        if self.at in [spec.name for spec in specs]:
            raise ArithmeticError(f"{self.at} went wrong")
        return sums, list(states)


def fail_then_try_again() -> list[str]:
    told = []
    model, handle = attached(Failing("skipped.bias"), **SMALL_BUCKETS)
    for _ in range(2):
        try:
            train(model, [0])
        except (ArithmeticError, RuntimeError) as error:
            told.append(f"{type(error).__name__}: {error}")
    handle.close()
    return told


def test_an_error_in_the_communication_thread_comes_out_of_backward() -> None:
    for told in on_ranks(2, fail_then_try_again):
        assert told[0] == "ArithmeticError: skipped.bias went wrong"
        assert len(told) == 2


def one_stays_away() -> str:
    model, _ = attached(TOP_K)
    train(model, [0])
    if dist.get_rank() == 1:
        time.sleep(4)
        return "asleep"
    try:
        train(model, [1])
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_rank_that_stays_away_is_noticed_after_the_groups_own_timeout() -> None:
    told, _ = on_ranks(2, one_stays_away, group_timeout_seconds=2)
    assert "2000ms" in told


def go_on_without() -> str:
    model, handle = attached(TOP_K)
    train(model, range(2))
    handle.close()
    try:
        train(model, [2])
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_backward_after_close_says_so() -> None:
    expected = (
        "thriftgrad: the handle of this model is closed, so its gradients cannot be exchanged; "
        "wrap the module in a new DistributedDataParallel to train on."
    )
    assert on_ranks(2, go_on_without) == [expected] * 2
