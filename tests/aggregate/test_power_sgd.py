"""PowerSGD against numpy, against its golden trace, and where it is known to fail."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import step
from thriftgrad import AllReduce, Identity, Key, Ledger, PowerSGD, TensorSpec, kernels
from thriftgrad.aggregate import TensorState
from thriftgrad.aggregate.power_sgd import LowRank
from thriftgrad.kernels.orthonormal import orthonormal

EVERYTHING = 0.0
"""``min_compression_rate``: compress every matrix."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(n: int, m: int, rank: int, seed: int = 0) -> Tensor:
    return random(n, rank, seed=seed) @ random(rank, m, seed=seed + 1000)


def started(method: PowerSGD, tensors: list[Tensor], workers: int) -> list[Any]:
    names = [TensorSpec(tuple(x.shape), x.dtype, name=f"w{i}") for i, x in enumerate(tensors)]
    return [method.init(names) for _ in range(workers)]


def with_factor(states: list[Any], q: Tensor) -> list[Any]:
    """The same states, the first tensor's right factor replaced."""
    return [(TensorState(state[0].spec, LowRank(0, state[0].inner.memory, q)), *state[1:]) for state in states]


def memory(state: Any, at: int = 0) -> Tensor:
    kept: Tensor = state[at].inner.memory
    return kept


def projected(mean: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The oracle: the mean, projected on the span of mean @ q, by numpy's QR in float64."""
    basis, _ = np.linalg.qr(mean @ q)
    return basis


def test_golden_trace() -> None:
    """Worked by hand (rank 1, two workers), for the local residual; the global one's norms would be 3 and 2.757."""
    one = torch.tensor([[2.0, 0, 1], [0, 1, 0], [1, 0, 3], [0, 2, 0]])
    two = torch.tensor([[0.0, 1, 1], [2, 1, 0], [1, 2, 1], [0, 0, 2]])
    method = PowerSGD(rank=1, min_compression_rate=EVERYTHING)
    states = with_factor(started(method, [one], 2), torch.tensor([[1.0], [0], [1]]))
    means, after = step(method, [[one], [two]], states, Key(0))
    p = torch.tensor([[0.516398], [0.258199], [0.774597], [0.258199]])
    q = torch.tensor([[1.549193], [1.549193], [2.323790]])
    torch.testing.assert_close(means[0][0], p @ q.T, atol=2e-6, rtol=0)
    torch.testing.assert_close(after[0][0].inner.factor, q, atol=2e-6, rtol=0)
    assert ((one + two) / 2 - means[0][0]).norm().item() == pytest.approx(1.431782, abs=1e-5)
    assert memory(after[0]).norm().item() == pytest.approx(2.840188, abs=1e-5)
    assert memory(after[1]).norm().item() == pytest.approx(2.581989, abs=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_each_step_is_a_projection_of_the_mean_and_the_memory_is_the_local_rest(rank: int) -> None:
    method = PowerSGD(rank=rank, min_compression_rate=EVERYTHING)
    states = started(method, [random(9, 7)], 3)
    memories = [np.zeros((9, 7)) for _ in range(3)]
    q = kernels.normal(7 * rank, Key(0).fold("PowerSGD", "w0").seed).view(7, rank).double().numpy()
    for i in range(4):
        tensors = [[random(9, 7, seed=10 * i + worker)] for worker in range(3)]
        means, states = step(method, tensors, states, Key(i))
        wide = [x[0].double().numpy() + e for x, e in zip(tensors, memories, strict=True)]
        mean = np.mean(wide, axis=0)
        basis = projected(mean, q)
        q = mean.T @ basis
        memories = [w - basis @ (basis.T @ w) for w in wide]
        np.testing.assert_allclose(means[0][0].numpy(), basis @ q.T, atol=1e-5)
        for state, oracle in zip(states, memories, strict=True):
            np.testing.assert_allclose(memory(state).numpy(), oracle, atol=1e-5)


def test_the_mean_of_independent_compressions_is_something_else() -> None:
    method = PowerSGD(rank=1, min_compression_rate=EVERYTHING)
    tensors = [[random(6, 8, seed=w)] for w in range(4)]
    joint, _ = step(method, tensors, started(method, tensors[0], 4), Key(0))
    alone = [step(method, [mine], started(method, mine, 1), Key(0))[0][0][0] for mine in tensors]
    assert (torch.stack(alone).mean(0) - joint[0][0]).norm() > 0.3 * joint[0][0].norm()


@pytest.mark.parametrize(("rank", "true_rank"), [(1, 1), (2, 2), (3, 3), (2, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("shape", [(6, 8), (40, 30), (3, 50)])
def test_exact_on_low_rank_means_whatever_else_has_the_same_shape(
    rank: int, true_rank: int, shape: tuple[int, int]
) -> None:
    """Several equal shapes of very different sizes: each matrix is orthonormalised by itself."""
    method = PowerSGD(rank=rank, min_compression_rate=EVERYTHING)
    tensors = [10.0 ** (3 * i - 4) * low_rank(*shape, min(true_rank, *shape), seed=i) for i in range(4)]
    means, states = step(method, [tensors], started(method, tensors, 1), Key(0))
    for at, x in enumerate(tensors):
        assert (means[0][at] - x).norm() <= 1e-5 * x.norm()
        assert memory(states[0], at).norm() <= 1e-5 * x.norm()


def test_exact_on_a_mean_of_low_rank_though_no_worker_has_low_rank() -> None:
    mean, noise = low_rank(8, 9, 2), random(8, 9, seed=5)
    method = PowerSGD(rank=2, min_compression_rate=EVERYTHING)
    tensors = [[mean + noise], [mean - noise]]
    means, _ = step(method, tensors, started(method, tensors[0], 2), Key(0))
    torch.testing.assert_close(means[0][0], mean, atol=1e-5, rtol=1e-5)


def test_full_rank_loses_nothing() -> None:
    method = PowerSGD(rank=9, min_compression_rate=EVERYTHING)
    x = random(5, 7)
    means, states = step(method, [[x]], started(method, [x], 1), Key(0))
    torch.testing.assert_close(means[0][0], x, atol=1e-5, rtol=1e-5)
    assert memory(states[0]).norm() < 1e-5
    assert states[0][0].inner.factor.shape == (7, 5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 3), (2, 1, 1)])
def test_matrices_smaller_than_the_rank(shape: tuple[int, ...]) -> None:
    method = PowerSGD(rank=4, min_compression_rate=EVERYTHING)
    x = random(*shape)
    means, _ = step(method, [[x], [3 * x]], started(method, [x], 2), Key(0))
    torch.testing.assert_close(means[0][0], 2 * x, atol=1e-5, rtol=1e-5)


def test_zero_gradients_are_zero_and_heal() -> None:
    method = PowerSGD(rank=2, min_compression_rate=EVERYTHING)
    zero, x = torch.zeros(5, 6), low_rank(5, 6, 1)
    states = started(method, [zero, x], 2)
    for i in range(3):
        means, states = step(method, [[zero, x], [zero, x]], states, Key(i))
        assert not means[0][0].any()
        assert states[0][0].inner.factor.isfinite().all()
        torch.testing.assert_close(means[0][1], x, atol=1e-5, rtol=1e-5)
    means, _ = step(method, [[x, x], [x, x]], states, Key(9))
    torch.testing.assert_close(means[0][0], x, atol=1e-5, rtol=1e-5)


def test_a_lost_subspace_is_found_again() -> None:
    """Q orthogonal to every row: nothing is sent. Without a new Q, |e| would be 50 |x| after 50 steps."""
    x = torch.zeros(6, 8)
    x[:, :4] = low_rank(6, 4, 1)
    q = torch.zeros(8, 1)
    q[5] = 1.0
    method = PowerSGD(rank=1, min_compression_rate=EVERYTHING)
    states = with_factor(started(method, [x], 2), q)
    means, states = step(method, [[x], [x]], states, Key(0))
    assert not means[0][0].any()
    torch.testing.assert_close(memory(states[0]), x)
    assert states[0][0].inner.factor.any()
    assert torch.equal(states[0][0].inner.factor, states[1][0].inner.factor)
    sent = torch.zeros_like(x)
    for i in range(1, 50):
        means, states = step(method, [[x], [x]], states, Key(i))
        sent += means[0][0]
        assert memory(states[0]).norm() <= 1.01 * x.norm()
    torch.testing.assert_close(sent, 50 * x, atol=1e-2, rtol=1e-3)


def test_a_lost_column_alone_is_drawn_anew() -> None:
    x = low_rank(6, 8, 1)
    method = PowerSGD(rank=2, min_compression_rate=EVERYTHING)
    _, one = step(method, [[x]], started(method, [x], 1), Key(0))
    q = one[0][0].inner.factor
    torch.testing.assert_close(q[:, :1] @ (q[:, :1].T @ x.T) / q[:, 0].square().sum(), x.T, atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(q) == 2


def heterogeneous(worker: int, i: int, workers: int) -> Tensor:
    """A gradient of its own on each worker, whose mean is small and noisy."""
    away = random(6, 5, seed=900) if worker % 2 else -random(6, 5, seed=900)
    return 10 * away + random(6, 5, seed=workers * i + worker)


def test_memories_stay_bounded_where_those_against_the_mean_would_grow() -> None:
    method, workers, steps = PowerSGD(rank=1, min_compression_rate=EVERYTHING), 2, 400
    states = started(method, [random(6, 5)], workers)
    unsent, largest = torch.zeros(6, 5), {"early": 0.0, "late": 0.0}
    for i in range(steps):
        tensors = [[heterogeneous(w, i, workers)] for w in range(workers)]
        means, states = step(method, tensors, states, Key(i))
        unsent += tensors[0][0] - means[0][0]  # what worker 0 would keep against the common estimate
        when = "early" if i < steps // 4 else "late"
        largest[when] = max(largest[when], memory(states[0]).norm().item())
    assert largest["late"] < 1.5 * largest["early"]
    assert unsent.norm() > 20 * largest["late"]


def test_sent_plus_mean_memory_is_all_that_came() -> None:
    method = PowerSGD(rank=1, min_compression_rate=EVERYTHING)
    states, came, sent = started(method, [random(6, 5)], 3), torch.zeros(6, 5), torch.zeros(6, 5)
    for i in range(20):
        tensors = [[random(6, 5, seed=3 * i + w)] for w in range(3)]
        means, states = step(method, tensors, states, Key(i))
        came += torch.stack([mine[0] for mine in tensors]).mean(0)
        sent += means[0][0]
    left = torch.stack([memory(state) for state in states]).mean(0)
    torch.testing.assert_close(sent + left, came, atol=1e-4, rtol=1e-4)


def best(x: Tensor, rank: int) -> float:
    """The relative error of the best approximation of this rank, by numpy's singular values."""
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))


def decaying() -> Tensor:
    left, right = torch.linalg.qr(random(40, 30))[0], torch.linalg.qr(random(30, 30, seed=1))[0]
    return left @ torch.diag(0.8 ** torch.arange(30.0)) @ right.T


def errors_without_feedback(method: PowerSGD, x: Tensor, steps: int) -> list[float]:
    """Relative errors step by step on one fixed matrix, the memory emptied each time."""
    states, found = started(method, [x], 1), []
    for i in range(steps):
        means, states = step(method, [[x]], states, Key(i))
        found.append(((means[0][0] - x).norm() / x.norm()).item())
        spec, kept = states[0][0]
        states = [(TensorState(spec, kept._replace(memory=torch.zeros_like(x))),)]
    return found


def test_a_warm_start_converges_to_the_best_approximation() -> None:
    x = decaying()
    warm = errors_without_feedback(PowerSGD(rank=2, min_compression_rate=EVERYTHING), x, 12)
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(warm))
    assert warm[0] > 1.02 * best(x, 2)
    assert warm[-1] == pytest.approx(best(x, 2), rel=1e-3)
    cold = errors_without_feedback(PowerSGD(rank=2, warm_start=False, min_compression_rate=EVERYTHING), x, 12)
    assert min(cold) > 1.01 * best(x, 2)
    assert len(set(cold)) == len(cold)


def test_power_iterations_sharpen_the_same_rank() -> None:
    x = decaying()
    errors = [
        errors_without_feedback(PowerSGD(rank=2, power_iterations=k, min_compression_rate=EVERYTHING), x, 1)[0]
        for k in (1, 2, 4, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1.02 * best(x, 2)
    assert errors[-1] == pytest.approx(best(x, 2), rel=1e-3)


def test_start_after_sends_everything_first() -> None:
    method, plain = PowerSGD(rank=1, start_after=2, min_compression_rate=EVERYTHING), AllReduce(Identity())
    x = random(6, 8)
    states = started(method, [x], 2)
    for i in range(3):
        tensors = [[random(6, 8, seed=2 * i + w)] for w in range(2)]
        means, states = step(method, tensors, states, Key(i))
        exact, _ = step(plain, tensors, [plain.init([TensorSpec((6, 8))])] * 2, Key(i))
        assert torch.equal(means[0][0], exact[0][0]) == (i < 2)
        assert memory(states[0]).any().item() == (i >= 2)
        assert states[0][0].inner.step == i + 1


@pytest.mark.parametrize(
    ("shape", "rank", "rate", "compressed"),
    [
        ((100,), 1, 0, False),
        ((), 1, 0, False),
        ((1, 1), 1, 0, True),
        ((8, 8), 1, 2, True),
        ((8, 8), 2, 2, False),  # 2 * 2 * 16 = 64 is not below 64
        ((8, 9), 2, 2, True),
        ((8, 8), 2, 1.9, True),
        ((64, 3, 3, 3), 4, 2, True),
        ((2, 1000), 8, 0.5, True),  # the rank is no larger than the matrix
        ((2, 1000), 8, 1, False),
    ],
)
def test_what_is_worth_factors(shape: tuple[int, ...], rank: int, rate: float, compressed: bool) -> None:
    assert PowerSGD(rank=rank, min_compression_rate=rate).compresses(TensorSpec(shape)) is compressed


def resnet18() -> list[tuple[int, ...]]:
    """The shapes of ResNet-18 in its CIFAR form: 11 173 962 parameters."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    width = 64
    for stage in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(stage, width, 3, 3), (stage,), (stage,), (stage, stage, 3, 3), (stage,), (stage,)]
            if block == 0 and stage != 64:
                shapes += [(stage, width, 1, 1), (stage,), (stage,)]
            width = stage
    return [*shapes, (10, 512), (10,)]


@pytest.mark.parametrize(("rank", "floats"), [(1, 45_935), (2, 82_260)])
def test_floats_per_step_on_resnet_18(rank: int, floats: int) -> None:
    """Counted on the ledger, not by formula; 9 610 of them are vectors."""
    specs = [TensorSpec(shape, name=str(i)) for i, shape in enumerate(resnet18())]
    assert sum(spec.numel for spec in specs) == 11_173_962
    assert sum(spec.numel for spec in specs if len(spec.shape) == 1) == 9_610
    method, ledger = PowerSGD(rank=rank, min_compression_rate=EVERYTHING), Ledger()
    step(method, [[torch.ones(spec.shape) for spec in specs]], [method.init(specs)], Key(0), ledger)
    assert ledger.payload_up_bytes == 4 * floats
    assert ledger.requests["AllReduce"] == 2


def test_half_precision_gradients_keep_float32_factors_and_memories() -> None:
    method = PowerSGD(rank=1)
    x = random(16, 16).bfloat16()
    means, states = step(method, [[x], [x]], started(method, [x], 2), Key(0))
    assert means[0][0].dtype == torch.bfloat16
    kept = states[0][0].inner
    assert kept.memory.dtype == kept.factor.dtype == torch.float32
    torch.testing.assert_close(means[0][0].float() + kept.memory, x.float(), atol=2**-8 * x.abs().max().item(), rtol=0)


def test_orthonormal_columns_span_the_same_space() -> None:
    batch = torch.stack([random(12, 4, seed=i) * 10.0 ** (6 * i - 9) for i in range(4)])
    batch[1, :, 2] = batch[1, :, 0] + 1e-3 * batch[1, :, 2]  # nearly parallel
    bases = orthonormal(batch)
    for p, basis in zip(batch, bases, strict=True):
        torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-6, rtol=0)
        torch.testing.assert_close(basis @ (basis.T @ p), p, atol=1e-5 * p.abs().max().item(), rtol=0)


def test_orthonormal_drops_what_depends_on_the_others() -> None:
    p = random(12, 3)
    p[:, 1] = 2 * p[:, 0]
    p[:, 2] = 0
    basis = orthonormal(p[None])[0]
    assert (basis != 0).any(0).tolist() == [True, False, False]
    assert orthonormal(torch.full((1, 4, 2), torch.nan)).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, "PowerSGD: rank must be at least 1, got 0"),
        ({"power_iterations": 0}, "PowerSGD: power_iterations must be at least 1, got 0"),
        ({"start_after": -1}, "PowerSGD: start_after must be at least 0, got -1"),
        ({"min_compression_rate": -1.0}, r"PowerSGD: min_compression_rate must be at least 0, got -1\.0"),
    ],
)
def test_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PowerSGD(**arguments)


def test_warns_when_there_is_nothing_to_compress() -> None:
    with pytest.warns(UserWarning, match=r"PowerSGD\(\) compresses none of the 2 tensors: .* all travel as they are"):
        PowerSGD().init([TensorSpec((100,)), TensorSpec((4, 4), name="w")])
