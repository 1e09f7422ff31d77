"""Training with ``attach`` on real processes equals the simulated training, however DDP is set up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed.ranks import on_ranks
from distributed.training import SMALL_BUCKETS, attached, loss_of, sgd, simulated, train, trained
from samples import same_bits
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Identity,
    ParameterServer,
    Partition,
    PowerSGD,
    RandomK,
    ScatterReduce,
    Sign,
    TopK,
    recipes,
)

pytestmark = pytest.mark.xdist_group("distributed")

STEPS = 5
TOP_K = AllGather(ErrorFeedback(TopK(fraction=0.1)))
POWER_SGD = PowerSGD(rank=2, min_compression_rate=0)

PLAIN = AllReduce(Identity())  # whose estimates lie as a bucket does

METHODS = (
    PLAIN,
    AllReduce(ErrorFeedback(RandomK(fraction=0.2, rescale=False))),
    AllGather(QSGD(bits=4)),
    TOP_K,
    ScatterReduce(ErrorFeedback(Sign()), ErrorFeedback(Sign())),
    ParameterServer(ErrorFeedback(TopK(fraction=0.2)), ErrorFeedback(QSGD(bits=8))),
    POWER_SGD,
    recipes.signum().aggregator,
    Partition({"matrix": POWER_SGD, "rest": AllReduce(Cast("bf16"))}),
)

IN_EVERY_SETTING = (PLAIN, TOP_K, POWER_SGD)

SETTINGS: dict[str, dict[str, Any]] = {
    "one bucket": {},
    "small buckets": SMALL_BUCKETS,
    "gradients as views": SMALL_BUCKETS | {"gradient_as_bucket_view": True},
    "static graph": SMALL_BUCKETS | {"static_graph": True},
    "looking for unused parameters": SMALL_BUCKETS | {"find_unused_parameters": True},
}


def train_everything() -> dict[str, Any]:
    results: dict[str, Any] = {}
    for method in METHODS:
        for name, options in SETTINGS.items():
            if name == "small buckets" or method in IN_EVERY_SETTING:
                model, handle = attached(method, **options)
                train(model, range(STEPS))
                results[f"{method!r}, {name}"] = trained(model.module), dict(handle.ledger.requests)
                handle.close()
    return results


@pytest.fixture(scope="module")
def on_gloo() -> list[dict[str, Any]]:
    return on_ranks(2, train_everything)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_training_equals_the_simulation(method: Any, on_gloo: list[dict[str, Any]]) -> None:
    expected = simulated(method, world=2, steps=STEPS)
    found = {setting: result for setting, result in on_gloo[0].items() if setting.startswith(repr(method))}
    assert len(found) == (len(SETTINGS) if method in IN_EVERY_SETTING else 1)
    for setting, (parameters, _) in found.items():
        for name, value in expected.items():
            assert same_bits(parameters[name], value), f"{name} after {setting}"


def test_replicas_stay_equal(on_gloo: list[dict[str, Any]]) -> None:
    for (setting, (mine, _)), (_, (other, _)) in zip(on_gloo[0].items(), on_gloo[1].items(), strict=True):
        for name, value in mine.items():
            assert same_bits(other[name], value), f"{name} after {setting}"


def test_ddp_does_regroup_its_buckets(on_gloo: list[dict[str, Any]]) -> None:
    """Else the tests above would say little: one bucket in the first step, several afterwards."""
    requests = {name: on_gloo[0][f"{TOP_K!r}, {name}"][1]["AllGather"] for name in SETTINGS}
    assert requests["one bucket"] == STEPS
    assert (requests["small buckets"] - 1) % (STEPS - 1) == 0
    assert requests["small buckets"] > 5 * STEPS


def accumulate(steps: int, micro_batches: int) -> dict[str, Tensor]:
    model, handle = attached(TOP_K, **SMALL_BUCKETS)
    optimizer = sgd(model)
    for t in range(steps):
        optimizer.zero_grad()
        with model.no_sync():
            for i in range(micro_batches - 1):
                loss_of(model, dist.get_rank(), micro_batches * t + i).backward()
        loss_of(model, dist.get_rank(), micro_batches * t + micro_batches - 1).backward()
        optimizer.step()
    assert handle.stats().steps == steps
    return trained(model.module)


def test_accumulated_gradients_are_exchanged_once() -> None:
    expected = simulated(TOP_K, world=2, steps=STEPS, micro_batches=3)
    for parameters in on_ranks(2, accumulate, STEPS, 3):
        assert all(same_bits(parameters[name], value) for name, value in expected.items())


def skip_a_layer() -> list[dict[str, Any]]:
    """One step with the layer used by all, one by rank 1 alone, one by nobody, one by all."""
    model, handle = attached(TOP_K, **SMALL_BUCKETS, find_unused_parameters=True)
    seen = []
    for t, skipping in enumerate([(), (0,), (0, 1), ()]):
        model.zero_grad()
        loss_of(model, dist.get_rank(), t, skip=dist.get_rank() in skipping).backward()
        gradient = model.module.skipped.weight.grad
        seen.append({"gradient": None if gradient is None else gradient.clone(), **handle.state_dict()})
    return seen


def test_a_parameter_that_nobody_used_keeps_its_memory() -> None:
    for rank, seen in enumerate(on_ranks(2, skip_a_layer)):
        path = f"memory/rank0000{rank}/skipped.weight/memory"
        memories = [state[path] for state in seen]
        assert all(state["gradient"] is not None for state in (seen[0], seen[1], seen[3]))
        assert seen[2]["gradient"] is None  # DDP drops the estimate, so nothing was sent
        assert same_bits(memories[2], memories[1])
        # Rank 0 did not use it in the second step either, but rank 1 did, so rank 0's memory was sent and applied.
        assert memories[1].ne(memories[0]).any()
        assert memories[3].ne(memories[2]).any()


def several_models_in_one_backward() -> list[dict[str, Tensor]]:
    models = [attached(method, **SMALL_BUCKETS)[0] for method in IN_EVERY_SETTING]
    optimizers = [sgd(model) for model in models]
    for t in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(loss_of(model, dist.get_rank(), t) for model in models).backward()
        for optimizer in optimizers:
            optimizer.step()
    return [trained(model.module) for model in models]


def test_several_attached_models_do_not_disturb_each_other() -> None:
    expected = [simulated(method, world=2, steps=STEPS) for method in IN_EVERY_SETTING]
    for models in on_ranks(2, several_models_in_one_backward):
        for parameters, wanted in zip(models, expected, strict=True):
            assert all(same_bits(parameters[name], value) for name, value in wanted.items())


def other_collectives_meanwhile() -> dict[str, Tensor]:
    """Every layer's backward communicates in the model's group, as that of a synchronised batch norm does."""
    model, _ = attached(POWER_SGD, **SMALL_BUCKETS)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.register_hook(_sum_over_ranks)
    train(model, range(4 * STEPS))
    return trained(model.module)


def _sum_over_ranks(gradient: Tensor) -> None:
    total = torch.ones(3)
    dist.all_reduce(total)
    assert total.tolist() == [2.0] * 3


def test_collectives_of_others_during_backward_are_not_mixed_up() -> None:
    expected = simulated(POWER_SGD, world=2, steps=4 * STEPS)
    for parameters in on_ranks(2, other_collectives_meanwhile):
        assert all(same_bits(parameters[name], value) for name, value in expected.items())


def many_steps(steps: int) -> dict[str, Any]:
    model, handle = attached(POWER_SGD, **SMALL_BUCKETS)
    train(model, range(steps))
    return {"requests": handle.ledger.requests["AllReduce"], "parameters": trained(model.module)}


@pytest.mark.parametrize(("world", "steps"), [(2, 200), (4, 15)])
def test_two_rounds_on_many_buckets_keep_replicas_equal(world: int, steps: int) -> None:
    results = on_ranks(world, many_steps, steps)
    assert results[0]["requests"] > 10 * steps  # two for each of more than five buckets, and one
    for name, value in results[0]["parameters"].items():
        assert value.isfinite().all()
        assert all(same_bits(other["parameters"][name], value) for other in results[1:]), name
