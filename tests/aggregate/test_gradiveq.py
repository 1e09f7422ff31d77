"""GradiVeQ against numpy through two cycles, exact where it should be, and its bytes in both phases."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import same_bits, step
from thriftgrad import AllReduce, GradiVeQ, Identity, Key, Ledger, TensorSpec, kernels, simulate
from thriftgrad.aggregate import TensorState

WORLD = 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def started(method: GradiVeQ, shapes: list[tuple[int, ...]], dtype: torch.dtype, workers: int = WORLD) -> list[Any]:
    return [method.init([TensorSpec(s, dtype, name=f"w{i}") for i, s in enumerate(shapes)]) for _ in range(workers)]


def sliced(x: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    flat = np.zeros(-(-x.size // k) * k)
    flat[: x.size] = x.reshape(-1)
    return flat.reshape(-1, k)


class Oracle:
    """One tensor on all workers, in numpy and float64: the eigenvectors by a singular value decomposition of slices."""

    def __init__(self, method: GradiVeQ, shape: tuple[int, ...]) -> None:
        self.method, self.shape, self.size = method, shape, math.prod(shape)
        self.memories = [np.zeros(shape) for _ in range(WORLD)]
        self.steps, self.seen, self.projection = 0, [], np.eye(method.slice_elements)

    def step(self, xs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        m = self.method
        at = self.steps % (m.uncompressed_steps + m.compressed_steps)
        owed = [x + memory for x, memory in zip(xs, self.memories, strict=True)]
        mean = np.mean(owed, axis=0)
        if at < m.uncompressed_steps:
            self.seen = [*(self.seen if at else []), sliced(mean, m.slice_elements)]
            self.memories = [np.zeros(self.shape) for _ in owed]
            if at + 1 == m.uncompressed_steps:
                _, _, right = np.linalg.svd(np.concatenate(self.seen), full_matrices=True)
                self.projection = right[: m.components].T @ right[: m.components]
        else:
            self.memories = [x - self.projected(x) if m.memory else 0 * x for x in owed]
            mean = self.projected(mean)
        self.steps += 1
        return mean

    def projected(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = sliced(x, self.method.slice_elements) @ self.projection
        return out.reshape(-1)[: self.size].reshape(self.shape)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize(("burst", "compressed"), [(1, 1), (1, 3), (3, 2)])
def test_each_step_is_numpys(memory: bool, burst: int, compressed: int) -> None:
    """A length of slices that divides one tensor and not the other, and a tensor that is too short."""
    method = GradiVeQ(6, 2, burst, compressed, memory)
    shapes = [(6, 8), (5, 7), (6,)]
    states = started(method, shapes, torch.float64)
    oracles = [Oracle(method, shape) for shape in shapes[:2]]
    for i in range(2 * (burst + compressed) + burst):
        tensors = [[random(*s, seed=100 * i + 10 * w + at) for at, s in enumerate(shapes)] for w in range(WORLD)]
        means, states = step(method, tensors, states, Key(i))
        for at, oracle in enumerate(oracles):
            expected = oracle.step([mine[at].numpy() for mine in tensors])
            np.testing.assert_allclose(means[0][at].numpy(), expected, atol=1e-5)  # U is float32
            for state, kept in zip(states, oracle.memories, strict=True):
                found = state[at].inner.memory
                assert (found is not None) == memory
                np.testing.assert_allclose(kept if found is None else found.numpy(), kept, atol=1e-5)
        torch.testing.assert_close(means[0][2], torch.stack([mine[2] for mine in tensors]).mean(0))


def test_in_float64_what_was_sent_and_the_mean_memory_are_all_that_came() -> None:
    method = GradiVeQ(8, 2, 2, 3)
    states, owed = started(method, [(37,)], torch.float64), torch.zeros(37, dtype=torch.float64)
    for i in range(12):
        tensors = [[random(37, seed=10 * i + w)] for w in range(WORLD)]
        means, states = step(method, tensors, states, Key(i))
        owed += torch.stack([mine[0] for mine in tensors]).mean(0) - means[0][0]
        left = torch.stack([state[0].inner.memory for state in states]).mean(0)
        torch.testing.assert_close(owed, left, rtol=0, atol=1e-12)
        assert (left == 0).all() == (i % 5 < 2)


def in_a_subspace(basis: Tensor, slices: int, seed: int) -> Tensor:
    return random(slices, basis.shape[0], seed=seed) @ basis


@pytest.mark.parametrize("length", [40, 37])
def test_exact_on_means_whose_slices_lie_in_the_subspace(length: int) -> None:
    """Though no worker's own slices do; the last slice of 37 elements is cut off and filled with zeros."""
    method, basis = GradiVeQ(8, 3, 2, 4), random(2, 8, seed=7)
    basis[:, 5:] = 0  # so that the filled slice of 37 elements, 5 of them its own, lies in it too
    states = started(method, [(length,)], torch.float32, 2)
    for i in range(11):
        mean, noise = in_a_subspace(basis, 5, i).view(-1)[:length].float(), random(length, seed=50 + i).float()
        means, states = step(method, [[mean + noise], [mean - noise]], states, Key(i))
        torch.testing.assert_close(means[0][0], mean, rtol=0, atol=2e-5)


def test_all_components_lose_nothing() -> None:
    method = GradiVeQ(5, 5, 1, 3)
    states = started(method, [(4, 5), (13,)], torch.float32)
    for i in range(6):
        tensors = [[random(4, 5, seed=9 * i + w).float(), random(13, seed=9 * i + w).float()] for w in range(WORLD)]
        means, states = step(method, tensors, states, Key(i))
        for at, mean in enumerate(means[0]):
            exact = torch.stack([mine[at] for mine in tensors]).mean(0)
            torch.testing.assert_close(mean, exact, rtol=0, atol=2e-6)
            assert all(state[at].inner.memory.norm() < 1e-5 for state in states)


def test_the_best_subspace_of_what_was_seen() -> None:
    """Of the burst's own mean it loses exactly the singular values that are left out."""
    method, x = GradiVeQ(10, 4, 1, 1), random(20, 10, seed=3)
    x *= 0.7 ** torch.arange(10.0)
    states = started(method, [(200,)], torch.float64, 1)
    _, states = step(method, [[x.view(-1)]], states, Key(0))
    means, _ = step(method, [[x.view(-1)]], states, Key(1))
    left = np.linalg.svd(x.numpy(), compute_uv=False)[4:]
    assert (means[0][0] - x.view(-1)).norm().item() == pytest.approx(np.sqrt((left**2).sum()), rel=1e-6)


def test_the_subspace_is_learned_from_the_mean_and_is_the_same_on_all_workers() -> None:
    method = GradiVeQ(8, 2, 1, 2)
    states = started(method, [(64,)], torch.float32)
    mean, away = in_a_subspace(random(2, 8, seed=1), 8, 2).view(-1).float(), 100 * random(64, seed=3).float()
    _, states = step(method, [[mean + away], [mean - away], [mean]], states, Key(0))
    bases = [state[0].inner.basis for state in states]
    assert all(same_bits(basis, bases[0]) for basis in bases)
    torch.testing.assert_close(bases[0].T @ bases[0], torch.eye(2), rtol=0, atol=1e-6)
    slices = mean.view(8, 8)
    torch.testing.assert_close(slices @ bases[0] @ bases[0].T, slices, rtol=0, atol=2e-5 * float(slices.abs().max()))


def test_directions_that_a_burst_has_not_shown_are_drawn_and_do_not_hang_on_rounding() -> None:
    """Two slices show two directions of eight; the third component is a drawn one, less what lies in those two."""
    method, x = GradiVeQ(8, 3, 1, 1), random(16).float()
    found = []
    for near in (x, x * (1 + 2.0**-23 * (torch.arange(16) % 3))):
        states = started(method, [(16,)], torch.float32, 1)
        _, states = step(method, [[near]], states, Key(5))
        found.append(states[0][0].inner.basis)
    seen = np.linalg.svd(x.view(2, 8).double().numpy(), full_matrices=False)[2].T
    drawn = kernels.normal(24, Key(5).fold("GradiVeQ", "w0").seed).view(8, 3)[:, 2].double().numpy()
    rest = drawn - seen @ (seen.T @ drawn)
    rest /= np.linalg.norm(rest)
    np.testing.assert_allclose(found[0].numpy() @ found[0].numpy().T, seen @ seen.T + np.outer(rest, rest), atol=1e-6)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_what_the_state_holds_in_each_phase() -> None:
    method = GradiVeQ(4, 1, 2, 2)
    states, held = started(method, [(9,), (4,)], torch.float32, 1), []
    for i in range(9):
        kept, short = states[0][0].inner, states[0][1].inner
        held.append((kept.step, kept.moment is not None, kept.basis is not None))
        assert (short.memory, short.moment, short.basis) == (None, None, None)
        _, states = step(method, [[random(9, seed=i).float(), random(4, seed=i).float()]], states, Key(i))
    burst, seen, compressed = (False, False), (True, False), (False, True)
    cycle = [burst, seen, compressed, compressed]
    assert held == [(i, *cycle[i % 4]) for i in range(9)]


def test_tensors_at_different_steps_of_their_cycles_share_a_call() -> None:
    """The second rests once, so that it is a step behind; both go on as each would by itself."""
    method, shapes = GradiVeQ(4, 2, 2, 2), [(10,), (12,)]
    together = started(method, shapes, torch.float32, 2)
    alone = [started(method, [shape], torch.float32, 2) for shape in shapes]
    for i in range(9):
        moving = [0] if i == 1 else [0, 1]
        tensors = [[random(*s, seed=20 * i + 2 * w + at).float() for at, s in enumerate(shapes)] for w in range(2)]
        chosen = [[mine[at] for at in moving] for mine in tensors]
        means, after = step(method, chosen, [state[: len(moving)] for state in together], Key(i))
        together = [(*new, *old[len(moving) :]) for new, old in zip(after, together, strict=True)]
        for at in moving:
            expected, alone[at] = step(method, [[mine[at]] for mine in tensors], alone[at], Key(i))
            assert same_bits(means[0][at], expected[0][0])
    assert [state.inner.step for state in together[0]] == [9, 8]


@pytest.mark.parametrize("workers", [2, 4])
def test_bytes_of_both_phases_on_the_ledger(workers: int) -> None:
    """100 elements, slices of 16: 7 of them, 3 numbers each; a vector of 10 as it is; a digest once a cycle."""
    method, up = GradiVeQ(16, 3, 2, 3), []
    states = started(method, [(10, 10), (10,)], torch.float32, workers)
    for i in range(10):
        ledger = Ledger()
        tensors = [[random(10, 10, seed=i).float(), random(10, seed=i).float()] for _ in range(workers)]
        _, states = step(method, tensors, states, Key(i), ledger)
        up.append(ledger.payload_up_bytes)
        assert ledger.requests["AllReduce"] == 1
    cycle = [4 * 110, 4 * 110 + 8, *[4 * (7 * 3 + 10)] * 3]
    assert up == 2 * cycle


def test_half_precision_keeps_a_float32_memory() -> None:
    method = GradiVeQ(8, 2, 1, 1)
    states = started(method, [(40,)], torch.bfloat16, 2)
    x = random(40).bfloat16()
    for i in range(2):
        means, states = step(method, [[x], [x]], states, Key(i))
        kept = states[0][0].inner.memory
        assert means[0][0].dtype == torch.bfloat16
        assert kept.dtype == torch.float32
        torch.testing.assert_close(means[0][0].float() + kept, x.float(), rtol=2**-8, atol=2**-8)
    assert kept.any()


def test_zero_gradients_are_zero() -> None:
    method = GradiVeQ(4, 2, 1, 1)
    states = started(method, [(12,)], torch.float32, 2)
    for i in range(4):
        means, states = step(method, [[torch.zeros(12)], [torch.zeros(12)]], states, Key(i))
        assert not means[0][0].any()
    x = random(12).float()
    means, _ = step(method, [[x], [x]], states, Key(4))
    assert torch.equal(means[0][0], x)


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_the_subspace_does_not_depend_on_the_length(size: float) -> None:
    method, x = GradiVeQ(8, 3, 1, 1), random(48).float()
    found = []
    for factor in (1.0, size):
        states = started(method, [(48,)], torch.float32, 1)
        _, states = step(method, [[factor * x]], states, Key(0))
        means, _ = step(method, [[factor * x]], states, Key(1))
        found.append(means[0][0] / factor)
    assert (found[0] - x).norm() > 0.1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_what_float64_cannot_square_teaches_nothing_and_loses_nothing() -> None:
    method = GradiVeQ(8, 3, 2, 1)
    states, x = started(method, [(40,)], torch.float64, 2), random(40)
    means, states = step(method, [[1e300 * x], [1e300 * x]], states, Key(0))
    torch.testing.assert_close(means[0][0], 1e300 * x)
    assert not states[0][0].inner.moment.any()
    means, states = step(method, [[x], [x]], states, Key(1))
    means, states = step(method, [[x], [x]], states, Key(2))
    best = np.linalg.svd(x.view(5, 8).numpy(), compute_uv=False)
    assert (means[0][0] - x).norm().item() == pytest.approx(np.sqrt((best[3:] ** 2).sum()), rel=1e-5)


def test_a_nan_at_the_end_of_a_burst_raises_nothing_and_changes_nothing() -> None:
    method = GradiVeQ(8, 3, 1, 1)
    states = started(method, [(40,)], torch.float32, 2)
    bad = random(40).float()
    bad[3] = torch.nan
    means, after = step(method, [[bad], [random(40).float()]], states, Key(0))
    assert means[0][0].isnan().any()
    assert all(kept is was for kept, was in zip(after, states, strict=True))


def test_a_basis_that_differs_between_workers_is_replaced_by_the_first_ones(caplog: pytest.LogCaptureFixture) -> None:
    """As where workers' linear algebra differs: the moment of one is another, with one spare step of its burst."""
    method = GradiVeQ(8, 2, 2, 1)
    states = started(method, [(40,)], torch.float32, 2)
    x = random(40).float()
    _, states = step(method, [[x], [x]], states, Key(0))
    ((spec, kept),) = states[1]
    states[1] = (TensorState(spec, kept._replace(moment=kept.moment + 100 * torch.eye(8)[0].outer(torch.eye(8)[0]))),)

    def apart(worker: Any) -> Any:
        """Hide that the computation is the same on all workers, so that a simulation does it for each."""
        request, answer = next(worker), None
        try:
            while True:
                answer = request.compute() if hasattr(request, "compute") else (yield request)
                request = worker.send(answer)
        except StopIteration as end:
            return end.value

    with caplog.at_level("WARNING", logger="thriftgrad"):
        results = simulate([apart(method.aggregate([x], state, Key(1))) for state in states])
    bases = [state[0].inner.basis for _, state in results]
    assert same_bits(*bases)
    assert re.search(r"GradiVeQ: the factors of workers 1 had drifted from worker 0's", caplog.text)


def test_short_tensors_travel_as_they_are() -> None:
    method = GradiVeQ(slice_elements=16, components=2)
    specs = [TensorSpec((4, 4), name="short"), TensorSpec((17,), name="long"), TensorSpec((), name="scalar")]
    assert method.uncompressed(specs) == ("short", "scalar")
    tensors = [[random(4, 4, seed=w).float()] for w in range(2)]
    with pytest.warns(UserWarning, match=r"compresses none of the 1 tensors: each fits into one slice of 16 elements;"):
        states = [method.init(specs[:1]) for _ in range(2)]
    plain = AllReduce(Identity())
    exact, _ = step(plain, tensors, [plain.init(specs[:1])] * 2, Key(0))
    for i in range(3):
        means, states = step(method, tensors, states, Key(i))
        assert same_bits(means[0][0], exact[0][0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"slice_elements": 0}, "GradiVeQ: slice_elements must be at least 1, got 0."),
        ({"components": 0}, "GradiVeQ: components must be at least 1, got 0."),
        ({"uncompressed_steps": 0}, "GradiVeQ: uncompressed_steps must be at least 1, got 0."),
        ({"compressed_steps": -1}, "GradiVeQ: compressed_steps must be at least 1, got -1."),
        (
            {"slice_elements": 4, "components": 5},
            "GradiVeQ: a slice of 4 elements has no more components than that, got components=5; use fewer, or longer "
            "slices.",
        ),
    ],
)
def test_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        GradiVeQ(**arguments)


@pytest.mark.parametrize("name", ["slice_elements", "components", "uncompressed_steps", "compressed_steps"])
@pytest.mark.parametrize("value", [2.5, 4.0, True, "8"])
def test_refuses_what_is_no_integer(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(f'GradiVeQ: {name} must be an integer, got {value!r}.')}$"):
        GradiVeQ(**{name: value})
