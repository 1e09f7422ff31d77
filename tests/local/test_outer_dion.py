"""OuterDion against numpy, its geometry, what a lost column does, and its state in a checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from local.workers import Workers
from samples import label, same_bits
from thriftgrad import AllReduce, Identity, Key, LocalUpdates, TensorSpec, kernels
from thriftgrad.core.tree import leaves
from thriftgrad.local import Every, InnerSGD, LocalMethod, OuterDion, OuterSGD

RATES = [0.1, 0.1, 0.03, 0.03, 0.2, 0.2, 0.01, 0.01]
Array = np.ndarray[Any, Any]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def first_factor(m: int, rank: int, name: str) -> Array:
    return kernels.normal(m * rank, Key(0).fold("OuterDion", name).seed).view(m, rank).double().numpy()


def dion(x: Array, gradient: Array, momentum: Array, q: Array, rate: float, mu: float) -> tuple[Array, Array, Array]:
    """Dion by numpy: the anchor, the momentum and the factor after one step."""
    b = momentum + gradient
    p, upper = np.linalg.qr(b @ q)
    p *= np.sign(np.diag(upper))
    r = b.T @ p
    q = r / np.linalg.norm(r, axis=0)
    return x - rate * sqrt(x.shape[0] / x.shape[1]) * p @ q.T, b - (1 - mu) * p @ r.T, q


@pytest.mark.parametrize("shape", [(5, 8), (9, 4), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_each_step_is_numpys(shape: tuple[int, ...], rank: int) -> None:
    """At inner learning rates that change; nothing that is given is changed."""
    outer, anchor = OuterDion(rank, 0.5, 0.8), random(*shape)
    spec = TensorSpec.of(anchor, "w")
    state, n = outer.init(spec), shape[0]
    x, m, q = anchor.view(n, -1).numpy(), np.zeros((n, spec.numel // n)), first_factor(spec.numel // n, rank, "w")
    for i, rate in enumerate(RATES):
        drift = rate * random(*shape, seed=i + 1)
        given = [anchor, drift, *leaves(state)]
        before = [each.clone() for each in given]
        anchor, state = outer.step(anchor, drift, state, rate)
        assert all(same_bits(one, was) for one, was in zip(given, before, strict=True))
        x, m, q = dion(x, drift.view(n, -1).numpy() / rate, m, q, 0.5 * rate, 0.8)
        np.testing.assert_allclose(anchor.view(n, -1).numpy(), x, rtol=0, atol=1e-6)
        np.testing.assert_allclose(state.momentum.view(n, -1).numpy(), m, rtol=0, atol=1e-5)
        np.testing.assert_allclose(state.factor.numpy(), q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 7)], ids=str)
def test_at_full_rank_the_step_tends_to_the_polar_factor(shape: tuple[int, int]) -> None:
    """Power iterations on one matrix: P R^T is all of B, and P and R / |R| become its singular vectors."""
    u, values, v = np.linalg.svd(random(*shape).numpy(), full_matrices=False)
    values = 0.5 ** np.arange(values.size)  # distinct, so that the iteration settles
    drift, outer = torch.from_numpy((u * values) @ v), OuterDion(rank=9, momentum=0.0)
    anchor, state = torch.zeros(shape, dtype=torch.float64), outer.init(TensorSpec(shape, torch.float64, name="w"))
    for _ in range(30):
        moved, state = outer.step(anchor, drift, state, 1.0)
        assert state.momentum.norm() < 1e-5  # at full rank nothing is left of B
    np.testing.assert_allclose(-moved.numpy() / sqrt(shape[0] / shape[1]), u @ v, rtol=0, atol=1e-5)


def test_a_step_is_as_long_whatever_the_drift() -> None:
    """lr eta sqrt(n / m) in each of r directions when they are orthogonal: here one, so that its norm is that."""
    outer = OuterDion(rank=1, learning_rate=0.5)
    for size in (1e-12, 1.0, 1e12):
        state = outer.init(TensorSpec((8, 2), torch.float32, name="w"))
        moved, _ = outer.step(torch.zeros(8, 2), size * random(8, 2, dtype=torch.float32), state, 0.1)
        assert moved.norm().item() == pytest.approx(0.5 * 0.1 * 2, rel=1e-5)


def test_momentum_keeps_what_the_rank_left_out() -> None:
    """Error feedback: B - P R^T stays whole, and mu of P R^T."""
    outer, drift = OuterDion(rank=2, momentum=0.75), random(6, 5)
    spec = TensorSpec((6, 5), torch.float64, name="w")
    start = outer.init(spec)
    _, state = outer.step(torch.zeros(6, 5), drift, start, 1.0)
    p, _ = np.linalg.qr(drift.numpy() @ start.factor.double().numpy())
    part = p @ (p.T @ drift.numpy())
    np.testing.assert_allclose(state.momentum.numpy(), drift.numpy() - 0.25 * part, rtol=0, atol=1e-6)


def test_every_step_of_sgd_makes_it_dion_on_the_mean_gradient() -> None:
    """H = 1, two workers, the learning rate falling: no drift to be seen in the result."""
    outer = OuterDion(rank=2, learning_rate=3.0, momentum=0.9)
    start = {"w": random(6, 4, dtype=torch.float32)}

    def gradient_of(rank: int) -> Any:
        return lambda x, t: 0.3 * x + random(24, seed=10 * t + rank).numpy()

    workers = Workers(
        LocalMethod(AllReduce(Identity()), Every(1), InnerSGD(), outer), start, [gradient_of(0), gradient_of(1)]
    )
    x, m, q = start["w"].double().numpy(), np.zeros((6, 4)), first_factor(4, 2, "w")
    for t, rate in enumerate(RATES):
        mean = np.mean([gradient_of(rank)(x.reshape(-1), t) for rank in range(2)], axis=0).reshape(6, 4)
        x, m, q = dion(x, mean, m, q, 3.0 * rate, 0.9)
        workers.step(rate)
        for replica in workers.replicas:
            np.testing.assert_allclose(replica.anchors()["w"].numpy(), x, rtol=0, atol=2e-4)


def test_vectors_take_momentum_sgd_on_the_drift() -> None:
    vectors = OuterSGD(0.3, 0.6)
    outer = OuterDion(vectors=vectors)
    for shape in ((7,), ()):
        spec = TensorSpec(shape, torch.float64, name="b")
        one, other = outer.init(spec), vectors.init(spec)
        for i, rate in enumerate(RATES):
            x, drift = random(*shape), random(*shape, seed=i)
            (a, one), (b, other) = outer.step(x, drift, one, rate), vectors.step(x, drift, other, rate)
            assert same_bits(a, b)
            assert same_bits(one, other)


def test_lost_columns_move_nothing_and_come_back() -> None:
    outer, x = OuterDion(rank=3, momentum=0.5), torch.ones(5, 6)
    spec = TensorSpec.of(x, "w")
    start = outer.init(spec)
    moved, state = outer.step(x, torch.zeros(5, 6), start, 0.1)
    assert same_bits(moved, x)
    assert same_bits(state.factor, start.factor)
    narrow = random(5, 1, dtype=torch.float32) @ random(1, 6, seed=1, dtype=torch.float32)
    moved, state = outer.step(x, narrow, state, 0.1)
    assert torch.linalg.matrix_rank(moved - x, rtol=1e-4) == 1
    assert same_bits(state.factor[:, 1:], start.factor[:, 1:])
    moved, state = outer.step(x, random(5, 6, seed=2, dtype=torch.float32), state, 0.1)
    assert torch.linalg.matrix_rank(moved - x, rtol=1e-4) == 3


def test_a_learning_rate_of_zero_holds_still() -> None:
    outer, x = OuterDion(rank=1, momentum=0.5), torch.ones(3, 2)
    _, state = outer.step(x, random(3, 2, dtype=torch.float32), outer.init(TensorSpec.of(x, "w")), 0.1)
    moved, after = outer.step(x, torch.zeros(3, 2), state, 0.0)
    assert same_bits(moved, x)
    assert after.momentum.isfinite().all()


def test_all_workers_draw_one_factor_and_each_tensor_its_own() -> None:
    outer = OuterDion(rank=64)
    one, again, other = (outer.init(TensorSpec((4, 9), name=name)).factor for name in ("w", "w", "v"))
    assert same_bits(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (9, 4)  # no more columns than the smaller side


def test_memory_formats_change_nothing() -> None:
    """Anchors of convolutions in channels_last are no contiguous matrices."""
    outer, x, drift = OuterDion(rank=2), random(4, 3, 2, 2), random(4, 3, 2, 2, seed=1)
    state = outer.init(TensorSpec.of(x, "w"))
    plain, _ = outer.step(x, drift, state, 0.1)
    last = torch.channels_last
    turned, _ = outer.step(x.to(memory_format=last), drift.to(memory_format=last), state, 0.1)
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-12)


@pytest.fixture
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


METHOD = LocalMethod(AllReduce(Identity()), Every(2), InnerSGD(), OuterDion(rank=2))


def trained(model: nn.Module, local: LocalUpdates, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for i in steps:
        optimizer.zero_grad()
        model(random(8, 5, seed=i, dtype=torch.float32)).square().mean().backward()
        optimizer.step()
        local.step()


def made() -> tuple[nn.Module, LocalUpdates]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    return model, LocalUpdates(model, METHOD, torch.optim.SGD(model.parameters(), lr=0.05))


def test_loading_then_training_is_training_on(world_of_one: None) -> None:
    model, local = made()
    trained(model, local, range(5))
    saved = copy.deepcopy({"model": model.state_dict(), "local": local.state_dict()})
    assert {key for key in saved["local"] if key.startswith("outer/0.")} == {
        "outer/0.weight/momentum",
        "outer/0.weight/factor",
        "outer/0.bias",
    }
    trained(model, local, range(5, 10))
    again, resumed = made()
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["local"])
    trained(again, resumed, range(5, 10))
    assert all(same_bits(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    then, now = local.state_dict(), resumed.state_dict()
    assert all(same_bits(then[key], now[key]) for key in then if key.startswith("outer/"))
    local.close()
    resumed.close()


@pytest.mark.parametrize("at", ["outer/0.weight/momentum", "outer/0.weight/factor", "outer/0.bias"])
@pytest.mark.parametrize(
    "change", [lambda x: None, lambda x: x.double(), lambda x: x[:1]], ids=["none", "type", "shape"]
)
def test_a_damaged_state_is_told_and_changes_nothing(world_of_one: None, at: str, change: Any) -> None:
    model, local = made()
    trained(model, local, range(3))
    saved = local.state_dict()
    with pytest.raises(ValueError, match=rf"load_state_dict: '{re.escape(at)}' is missing or is not torch.float32 of"):
        local.load_state_dict(saved | {at: change(saved[at])})
    assert all(same_bits(saved[key], x) for key, x in local.state_dict().items() if isinstance(x, Tensor))
    local.close()


@pytest.mark.parametrize(
    ("outer", "told"),
    [
        (OuterDion(), "0.95 orthonormal (vectors: 0.9 Nesterov) after aggregation"),
        (
            OuterDion(momentum=0.0, vectors=OuterSGD(1.0, 0.0, nesterov=False)),
            "0.0 orthonormal (vectors: none) after aggregation",
        ),
    ],
    ids=label,
)
def test_where_momentum_sits(outer: OuterDion, told: str) -> None:
    assert LocalMethod(AllReduce(Identity()), Every(2), InnerSGD(), outer).momentum_described == told


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({"rank": 2.0}, TypeError, "OuterDion: rank must be an integer, got 2.0."),
        ({"rank": 0}, ValueError, "OuterDion: rank must be at least 1, got 0."),
        ({"learning_rate": 0.0}, ValueError, "OuterDion: learning_rate must be positive, got 0.0."),
        ({"momentum": 1.0}, ValueError, "OuterDion: momentum must lie in [0, 1), got 1.0."),
        ({"vectors": 0.9}, TypeError, "OuterDion: vectors must be something like OuterSGD(), got 0.9."),
    ],
)
def test_refuses(settings: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        OuterDion(**settings)
