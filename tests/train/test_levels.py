"""Levels in a handle's state: what a checkpoint of them holds, that it continues, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from samples import same_bits
from thriftgrad import AllGather, attach, recipes
from thriftgrad.aggregate import SymbolServer
from thriftgrad.compress import ALQ, AMQ, TernGrad, magnitudes

METHOD = AllGather(ALQ(bits=3, bucket=16, update_at=(0, 2), update_every=4))
METHODS = [
    METHOD,
    AllGather(ALQ(bits=3, bucket=16, per_tensor=False, update_at=(0, 2), update_every=None)),
    AllGather(AMQ(bits=3, bucket=16, distribution="normal", update_at=(1,), update_every=2)),
    recipes.alq(),
    SymbolServer(TernGrad()),
]


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model() -> DistributedDataParallel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DistributedDataParallel(nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)))


def backward(net: nn.Module, step: int) -> list[Tensor]:
    net.zero_grad()
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(step))
    net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_what_a_checkpoint_holds() -> None:
    """Plain values and tensors: steps, version, levels, their probabilities, and the counts of the last fit."""
    net = model()
    with attach(net, METHOD) as handle:
        for t in range(6):
            backward(net, t)
        saved = handle.state_dict()
    at = "memory/rank00000/0.weight/"
    assert (saved[at + "step"], saved[at + "updated"], saved[at + "version"]) == (6, 4, 4)  # fitted at 0, 2 and 4
    levels, counts = saved[at + "levels"], saved[at + "counts"]
    assert levels.dtype == saved[at + "probabilities"].dtype == torch.float64
    assert levels.shape == (7,)
    assert (counts.shape, counts.dtype) == ((2, magnitudes.BINS), torch.int64)
    assert counts[1].sum() == 12 * 20  # every coordinate of the gradient of step 4
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == saved.keys()


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_loading_continues_bit_for_bit(method: Any, stop: int) -> None:
    """Where all tensors are one vector, their order is DDP's, which is another one in the first step of a model."""
    if stop == 0 and "per_tensor=False" in repr(method):
        stop = 2
    net = model()
    with attach(net, method, seed=5) as handle:
        for t in range(stop):
            backward(net, t)
        saved = handle.state_dict()
        expected = [backward(net, t) for t in range(stop, 6)]
        last = handle.state_dict()
    again = model()
    with attach(again, method, seed=5) as handle:
        backward(again, 17)  # levels of another gradient, which the checkpoint replaces
        handle.load_state_dict(saved)
        assert all(same(handle.state_dict()[path], leaf) for path, leaf in saved.items())
        for t, gradients in zip(range(stop, 6), expected, strict=True):
            assert all(same_bits(a, b) for a, b in zip(backward(again, t), gradients, strict=True))
        assert all(same(handle.state_dict()[path], leaf) for path, leaf in last.items())


def same(one: Any, other: Any) -> bool:
    return same_bits(one, other) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.parametrize(
    ("path", "leaf"),
    [
        ("levels", torch.zeros(8, dtype=torch.float64)),
        ("levels", torch.zeros(7)),
        ("counts", torch.zeros(2, 12, dtype=torch.int64)),
        ("version", torch.tensor(3)),
        ("step", 2.0),
        ("other", 1),
    ],
    ids=str,
)
def test_levels_that_are_none_are_refused_and_nothing_is_lost(path: str, leaf: Any) -> None:
    net = model()
    with attach(net, METHOD) as handle:
        backward(net, 0)
        before = handle.state_dict()
        changed = before | {f"memory/rank00000/0.bias/{path}": leaf}
        with pytest.raises(
            ValueError, match=r"what was saved for parameter '0\.bias' is no state of AllGather\(.*; it is"
        ):
            handle.load_state_dict(changed)
        assert all(same(handle.state_dict()[at], value) for at, value in before.items())


def test_levels_of_another_method_are_refused() -> None:
    net = model()
    with attach(net, METHOD) as handle:
        saved = handle.state_dict()
    for other in (AllGather(ALQ(bits=4, bucket=16)), AllGather(ALQ(bits=3, bucket=32))):
        with (
            attach(model(), other) as handle,
            pytest.raises(ValueError, match=r"saved with method AllGather\(.*, here it is AllGather\(.*; attach as it"),
        ):
            handle.load_state_dict(saved)


@pytest.mark.parametrize("method", METHODS[:4], ids=repr)
def test_a_step_with_a_nan_keeps_levels_and_the_step_of_the_schedule(method: Any) -> None:
    net = model()
    with attach(net, method) as handle:
        backward(net, 0)
        before = handle.state_dict()
        with torch.no_grad():
            weight = next(net.parameters())
            kept = weight.clone()
            weight[0, 0] = torch.nan
        assert not all(gradient.isfinite().all() for gradient in backward(net, 1))
        with torch.no_grad():
            weight.copy_(kept)
        after = handle.state_dict()
        assert all(same(after[path], leaf) for path, leaf in before.items() if path.startswith("memory/"))
        assert handle.stats().skipped_steps == 1
        assert all(gradient.isfinite().all() for gradient in backward(net, 2))
        assert handle.state_dict()["memory/rank00000/0.weight/step"] == 2
