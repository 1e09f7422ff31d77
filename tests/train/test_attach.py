"""``attach`` on a world of one: equal to the simulation, counted, closed; what it refuses and what it says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from samples import same_bits
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Key,
    Partition,
    PowerSGD,
    TensorSpec,
    TopK,
    attach,
    recipes,
    simulate,
)


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net(*sizes: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(sizes)])


def backward(model: nn.Module, step: int = 0) -> None:
    model.zero_grad()
    first = next(model.parameters())
    model(torch.randn(3, first.shape[1], generator=torch.Generator().manual_seed(step))).square().sum().backward()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_world_of_one_equals_the_simulation() -> None:
    method = recipes.top_k(fraction=0.1)
    model = DistributedDataParallel(net(20, 30, 4))
    alone = net(20, 30, 4)
    state = method.aggregator.init([TensorSpec.of(p, name) for name, p in alone.named_parameters()])
    with attach(model, method, seed=9):
        for t in range(3):
            backward(model, t)
            backward(alone, t)
            (result,) = simulate([method.aggregator.aggregate(gradients(alone), state, Key(9).fold(t))])
            means, state = result
            assert all(same_bits(a, b) for a, b in zip(gradients(model), means, strict=True))


def test_closing_ends_the_threads_and_may_be_repeated() -> None:
    before = threading.active_count()
    handle = attach(model := DistributedDataParallel(net(3, 2)), AllReduce(Cast("bf16")))
    backward(model)
    assert threading.active_count() == before + 2  # who computes and who waits
    handle.close()
    handle.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match=r"the handle of this model is closed, .* wrap the module in a new Dist"):
        backward(model)


def test_a_frozen_parameter_has_no_part() -> None:
    module = net(3, 3, 2)
    module[0].requires_grad_(False)
    with attach(DistributedDataParallel(module), recipes.top_k()) as handle:
        assert [key for key in handle.state_dict() if key.startswith("parameter/")] == [
            "parameter/1.weight",
            "parameter/1.bias",
        ]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "qsgd(bits=4)",
            r"must be a Method or an Aggregator, got 'qsgd\(bits=4\)'; write thriftgrad\.parse\('qsgd\(bits=4\)'\)",
        ),
        (
            TopK(fraction=0.1),
            r"got TopK\(fraction=0\.1\); take one of thriftgrad\.recipes, or put a compressor into an agg",
        ),
        (None, r"method must be a Method or an Aggregator, got None; take one"),
    ],
)
def test_a_method_of_the_wrong_type(method: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        attach(DistributedDataParallel(net(3, 2)), method)


def test_a_model_without_ddp() -> None:
    with pytest.raises(TypeError, match=r"attach: expected a DistributedDataParallel model, got Linear; wrap it first"):
        attach(nn.Linear(2, 2), recipes.top_k())  # type: ignore[arg-type]


def test_a_model_that_has_a_hook_already() -> None:
    model = DistributedDataParallel(net(3, 2))
    with (
        attach(model, recipes.top_k()),
        pytest.raises(
            ValueError, match=r"already has a communication hook, thriftgrad\.train\.ddp\._exchange, .* wrap"
        ),
    ):
        attach(model, recipes.top_k())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must lie in \[0, 2\*\*64\), got {seed}"):
        attach(DistributedDataParallel(net(3, 2)), recipes.top_k(), seed)


def test_parameters_that_cannot_be_averaged() -> None:
    module = net(3, 2)
    module.register_parameter("odd", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(TypeError, match=r"tensor 'odd' holds torch\.complex64; only floating-point"):
        attach(DistributedDataParallel(module), recipes.top_k())
    module = net(3, 2)
    module.register_parameter("empty", nn.Parameter(torch.ones(0, 2)))
    with pytest.raises(ValueError, match=r"tensor 'empty' of shape \(0, 2\) is empty; leave it out"):
        attach(DistributedDataParallel(module), recipes.top_k())
    sparse = nn.Sequential(nn.Embedding(5, 2, sparse=True))
    with pytest.raises(ValueError, match=r"'0' gives sparse gradients, which cannot be compressed; use sparse=False"):
        attach(DistributedDataParallel(sparse), recipes.top_k())


def test_what_travels_uncompressed_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="thriftgrad"):
        handle = attach(DistributedDataParallel(net(40, 30, 4)), PowerSGD(rank=2))
    assert handle.stats().uncompressed == ("0.bias", "1.weight", "1.bias")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        "PowerSGD() compresses 1 of the 4 parameters; these travel as they are: 0.bias, 1.weight, 1.bias"
    )
    handle.close()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (PowerSGD(rank=2), "PowerSGD() compresses none of the 2 tensors"),
        (
            Partition({"numel>=1000": PowerSGD(rank=1), "rest": AllReduce(Cast("bf16"))}),
            "Partition: the rule 'numel>=1000' fits no tensor",
        ),
    ],
)
def test_a_method_without_effect_is_warned_of(method: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    handle = attach(DistributedDataParallel(net(3, 2)), method)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].getMessage().startswith(message)
    handle.close()


def test_stats_of_a_world_of_one() -> None:
    model = DistributedDataParallel(net(20, 30))
    with attach(model, AllGather(ErrorFeedback(TopK(k=2)))) as handle:
        assert handle.stats().steps == 0
        for t in range(4):
            backward(model, t)
        stats = handle.stats()
    assert (stats.steps, stats.skipped_steps, stats.world, stats.elements) == (4, 0, 1, 630)
    assert stats.payload_up_bytes == handle.ledger.per_worker[0].payload_up_bytes > 0
    assert (stats.up_bytes, stats.down_bytes) == (0, 0)  # nobody to send to
    assert stats.encode_seconds > 0
    assert stats.decode_seconds > 0


def test_stats_count_from_attach_and_the_key_from_the_start_of_training() -> None:
    model = DistributedDataParallel(net(20, 30))
    with attach(model, AllGather(QSGD(bits=4))) as handle:
        for t in range(4):
            backward(model, t)
        saved, fourth = handle.state_dict(), gradients(model)
    again = DistributedDataParallel(net(20, 30))
    with attach(again, AllGather(QSGD(bits=4))) as handle:
        handle.load_state_dict(saved | {"step": 3})
        backward(again, 3)
        assert handle.stats().steps == 1
        assert handle.state_dict()["step"] == 4
    assert all(same_bits(a, b) for a, b in zip(gradients(again), fourth, strict=True))
