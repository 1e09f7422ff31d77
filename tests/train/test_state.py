"""Loading a state: what is refused, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samples import gradients, specs, step
from thriftgrad import Key, attach, recipes
from thriftgrad.train import Handle
from thriftgrad.train.state import first_difference, flatten, restore
from zoo import AGGREGATORS


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def handle() -> Iterator[Handle]:
    model = DistributedDataParallel(nn.Linear(5, 3))
    with attach(model, recipes.top_k(fraction=0.2), seed=4) as handle:
        model(torch.ones(2, 5)).square().sum().backward()
        yield handle


@pytest.mark.parametrize("method", AGGREGATORS, ids=repr)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_aggregators_state_comes_back(method: Any, steps: int) -> None:
    world = 3
    states = [method.init(specs()) for _ in range(world)]
    for t in range(steps):
        _, states = step(method, gradients(world, t), states, Key(1).fold(t))
    again = [
        tuple(restore(method, each.spec, rank, world, "memory/x", flatten(each.inner, "memory/x")) for each in mine)
        for rank, mine in enumerate(states)
    ]
    assert_same(flat(again), flat(states))
    wanted = step(method, gradients(world, steps), states, Key(1).fold(steps))
    found = step(method, gradients(world, steps), again, Key(1).fold(steps))
    assert_same(found[0], wanted[0])
    assert_same(flat(found[1]), flat(wanted[1]))


def flat(states: Sequence[Any]) -> list[dict[str, Any]]:
    return [flatten(each.inner, "memory/x") for mine in states for each in mine]


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_what_is_loaded_is_a_copy(handle: Handle) -> None:
    saved = handle.state_dict()
    handle.load_state_dict(saved)
    saved["memory/rank00000/weight/memory"].fill_(7.0)
    assert handle.state_dict()["memory/rank00000/weight/memory"].ne(7.0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"version": 2},
            r"the state has format version 2, this build reads version 1; use the thriftgrad that wrote it",
        ),
        (
            {"method": "Method()"},
            r"was saved with method Method\(\), here it is Method\(aggregator=AllGather\(.*; attach as it was then",
        ),
        ({"seed": 5}, r"saved with seed 5, here it is 4;"),
        ({"world_size": 2}, r"saved with world_size 2, here it is 1;"),
        ({"rank": 1}, r"saved with rank 1, here it is 0;"),
        (
            {"parameter/weight": "float32[9, 9]"},
            r"saved with parameter/weight float32\[9, 9\], here it is float32\[3, 5\];",
        ),
        ({"parameter/extra": "float32[1]"}, r"saved with parameter/extra float32\[1\], here it is absent;"),
        (
            {"memory/rank00000/weight/memory": torch.zeros(2)},
            r"what was saved for parameter 'weight' is no state of AllGather\(.*; it is incomplete or altered",
        ),
        ({"memory/rank00000/weight/other": torch.zeros(2)}, r"what was saved for parameter 'weight' is no state of"),
        ({"memory/rank00000/weight/memory": 3}, r"what was saved for parameter 'weight' is no state of"),
    ],
)
def test_a_state_that_does_not_fit(handle: Handle, change: dict[str, Any], message: str) -> None:
    before = handle.state_dict()
    with pytest.raises(ValueError, match=message):
        handle.load_state_dict(before | change)
    assert_same(tensors_of(handle.state_dict()), tensors_of(before))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("version", r"this is no state of a thriftgrad handle; pass what state_dict\(\) gave"),
        ("seed", r"saved with seed absent, here it is 4;"),
        ("memory/rank00000/bias/memory", r"what was saved for parameter 'bias' is no state of"),
    ],
)
def test_a_state_with_a_part_missing(handle: Handle, missing: str, message: str) -> None:
    saved = handle.state_dict()
    del saved[missing]
    with pytest.raises(ValueError, match=message):
        handle.load_state_dict(saved)


def tensors_of(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def test_equal_facts_have_no_difference() -> None:
    assert first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None


def test_a_saved_piece_of_a_batch_takes_its_own_bytes_alone() -> None:
    batch = torch.ones(8, 100)
    (saved,) = flatten(batch[3], "memory/w").values()
    assert isinstance(saved, torch.Tensor)
    assert saved.untyped_storage().nbytes() == 400
    assert flatten(batch, "memory/w")["memory/w"] is batch
