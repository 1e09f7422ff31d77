"""AsSquare against numpy, and what is kept when the tensors of its calls are grouped anew."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import same_bits, step
from thriftgrad import AllReduce, AsSquare, Identity, Key, Ledger, PowerSGD, TensorSpec, kernels
from thriftgrad.aggregate import TensorState

SHAPES = [(5, 4), (7,), (2, 3, 3), ()]
"""46 elements: a square of 7 x 7, 3 of whose elements are filled up."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(i: int, workers: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[list[Tensor]]:
    return [[random(*s, seed=100 * i + 10 * w + at) for at, s in enumerate(shapes)] for w in range(workers)]


def started(
    method: AsSquare, workers: int, shapes: list[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[Any]:
    return [method.init([TensorSpec(s, dtype, name=f"w{i}") for i, s in enumerate(shapes)]) for _ in range(workers)]


def laid(tensors: list[Tensor], side: int) -> np.ndarray[Any, Any]:
    flat = np.concatenate([x.double().numpy().reshape(-1) for x in tensors])
    return np.pad(flat, (0, side * side - flat.size)).reshape(side, side)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_each_step_is_subspace_iteration_on_the_square(rank: int) -> None:
    method = AsSquare(PowerSGD(rank=rank, min_compression_rate=0))
    states, memories = started(method, 2), [np.zeros((7, 7)) for _ in range(2)]
    q = kernels.normal(7 * rank, Key(0).fold("PowerSGD", "w0").seed).view(7, rank).double().numpy()
    outside = np.arange(49).reshape(7, 7) >= 46
    for i in range(6):
        tensors = drawn(i, 2)
        means, states = step(method, tensors, states, Key(i))
        owed = [laid(mine, 7) + memory for mine, memory in zip(tensors, memories, strict=True)]
        basis, _ = np.linalg.qr(np.mean(owed, axis=0) @ q)
        q = np.mean(owed, axis=0).T @ basis
        estimate = np.where(outside, 0, basis @ q.T)
        memories = [np.where(outside, 0, x - basis @ (basis.T @ x)) for x in owed]
        np.testing.assert_allclose(laid(means[0], 7), estimate, atol=2e-5)
        for state, memory in zip(states, memories, strict=True):
            np.testing.assert_allclose(laid([each.inner.memory for each in state], 7), memory, atol=2e-5)


def test_a_square_parameter_alone_is_powersgd() -> None:
    inner = PowerSGD(rank=2, min_compression_rate=0, residual_iterations=2)
    square, plain = started(AsSquare(inner), 2, [(6, 6)]), [inner.init([TensorSpec((6, 6), name="w0")])] * 2
    for i in range(4):
        tensors = drawn(i, 2, [(6, 6)])
        one, square = step(AsSquare(inner), tensors, square, Key(i))
        other, plain = step(inner, tensors, plain, Key(i))
        assert same_bits(one[0][0], other[0][0])
        assert all(same_bits(a[0].inner.memory, b[0].inner.memory) for a, b in zip(square, plain, strict=True))


GROUPS = [[[0, 1, 2, 3]], [[3, 0], [2, 1]], [[1], [0, 2, 3]], [[2, 3, 1, 0]]]
INNER = [
    PowerSGD(rank=1),
    PowerSGD(rank=2, min_compression_rate=0),
    PowerSGD(rank=1, alternating=True, residual_iterations=2, min_compression_rate=0, memory="global"),
    PowerSGD(rank=1, min_compression_rate=0, refresh="exact", refresh_every=3, start_after=1),
    PowerSGD(rank=2, min_compression_rate=0, warm_start=False),
]


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_regrouping_between_steps_loses_nothing(inner: PowerSGD) -> None:
    """Sent + mean memory = input, tensor by tensor; some squares of a regrouping are too small for factors."""
    method, workers = AsSquare(inner), 2
    states, owed = started(method, workers), [torch.zeros(s) for s in SHAPES]
    for i in range(12):
        tensors = drawn(i, workers)
        for group in GROUPS[i % len(GROUPS)]:
            mine = [[each[at] for at in group] for each in tensors]
            means, after = step(method, mine, [tuple(s[at] for at in group) for s in states], Key(i))
            assert all(same_bits(a, b) for a, b in zip(*means, strict=True))
            for place, at in enumerate(group):
                owed[at] += torch.stack([each[at] for each in tensors]).mean(0) - means[0][place]
                states = [(*s[:at], new[place], *s[at + 1 :]) for s, new in zip(states, after, strict=True)]
        for at, expected in enumerate(owed):
            left = torch.stack([s[at].inner.memory for s in states]).mean(0)
            torch.testing.assert_close(left, expected, rtol=0, atol=2e-5)
            assert left.shape == SHAPES[at]
    assert max(float(x.norm()) for x in owed) > 0.1


def test_the_factor_of_another_square_is_drawn_anew() -> None:
    method = AsSquare(PowerSGD(rank=1, min_compression_rate=0))
    _, states = step(method, drawn(0, 2), started(method, 2), Key(0))
    factors = [each.inner.factor for state in states for each in state]
    assert all(same_bits(factor, factors[0]) for factor in factors)
    assert factors[0].shape == (7, 1)
    pair = [(state[0], state[3]) for state in states]  # 21 elements: a square of 5 x 5
    means, after = step(method, [[mine[0], mine[3]] for mine in drawn(1, 2)], pair, Key(1))
    forgotten = [tuple(TensorState(e.spec, e.inner._replace(factor=None)) for e in state) for state in pair]
    again, _ = step(method, [[mine[0], mine[3]] for mine in drawn(1, 2)], forgotten, Key(1))
    assert all(same_bits(a, b) for a, b in zip(means[0], again[0], strict=True))
    assert after[0][0].inner.factor.shape == (5, 1)
    # The same side keeps it, whoever is first.
    turned = [state[::-1] for state in states]
    kept, _ = step(method, [mine[::-1] for mine in drawn(1, 2)], turned, Key(1))
    new = [tuple(TensorState(e.spec, e.inner._replace(factor=None)) for e in state) for state in turned]
    other, _ = step(method, [mine[::-1] for mine in drawn(1, 2)], new, Key(1))
    assert not torch.equal(kept[0][0], other[0][0])


def test_the_furthest_step_counts() -> None:
    """A tensor that rested, as an unused parameter does, follows the others."""
    method = AsSquare(PowerSGD(rank=1, min_compression_rate=0))
    rested = started(method, 2)
    _, states = step(method, [mine[1:] for mine in drawn(0, 2)], [state[1:] for state in rested], Key(0))
    together = [(old[0], *new) for old, new in zip(rested, states, strict=True)]
    _, after = step(method, drawn(1, 2), together, Key(1))
    assert [each.inner.step for each in after[0]] == [2, 2, 2, 2]


def test_a_square_that_is_too_small_travels_as_it_is() -> None:
    method = AsSquare(PowerSGD(rank=2))  # 2 * 2 * 14 = 56 floats are no less than 49
    specs = [TensorSpec(s, name=f"w{i}") for i, s in enumerate(SHAPES)]
    assert method.uncompressed(specs) == ("w0", "w1", "w2", "w3")
    assert method.uncompressed([*specs, TensorSpec((500,), name="more")]) == ()
    assert method.uncompressed([]) == ()
    sentence = r"compresses none of the 4 tensors: their square of 7 x 7 is too small for its rank to save 2\.0 times;"
    with pytest.warns(UserWarning, match=sentence):
        states = started(method, 2)
    plain = AllReduce(Identity())
    for i in range(2):
        means, states = step(method, drawn(i, 2), states, Key(i))
        exact, _ = step(plain, drawn(i, 2), [plain.init(specs)] * 2, Key(i))
        assert all(same_bits(a, b) for a, b in zip(means[0], exact[0], strict=True))


@pytest.mark.parametrize(("rank", "elements", "floats"), [(1, 10_000, 200), (2, 10_001, 404), (3, 9_999, 600)])
def test_bytes_on_the_ledger(rank: int, elements: int, floats: int) -> None:
    method, ledger = AsSquare(PowerSGD(rank=rank)), Ledger()
    shapes = [(50, 100), (elements - 5_000,)]
    step(method, drawn(0, 2, shapes), started(method, 2, shapes), Key(0), ledger)
    assert ledger.payload_up_bytes == 4 * floats
    assert ledger.requests["AllReduce"] == 2


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float64")])
def test_types_and_their_memories(dtypes: tuple[str, str]) -> None:
    """A tensor of float64 among others makes a square of float64; every memory has its own tensor's type."""
    method = AsSquare(PowerSGD(rank=2, min_compression_rate=0))
    types = [getattr(torch, name) for name in dtypes]
    tensors = [[random(6, 5).to(types[0]), random(9, seed=1).to(types[1])] for _ in range(2)]
    states = [method.init([TensorSpec.of(x, str(i)) for i, x in enumerate(tensors[0])]) for _ in range(2)]
    means, states = step(method, tensors, states, Key(0))
    for at, (x, kind) in enumerate(zip(tensors[0], types, strict=True)):
        kept = states[0][at].inner.memory
        assert means[0][at].dtype == kind
        assert kept.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        torch.testing.assert_close(means[0][at].double() + kept.double(), x.double(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("inner", [AllReduce(Identity()), Identity(), None, 2], ids=repr)
def test_refuses_what_is_no_powersgd(inner: Any) -> None:
    sentence = f"AsSquare needs a PowerSGD such as PowerSGD(rank=2), got {inner!r}."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        AsSquare(inner)
