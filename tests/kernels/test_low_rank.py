"""Products of matrices with factors of few columns: numpy in float64, both backends, any number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from samples import same_bits, step
from thriftgrad import Key, PowerSGD, TensorSpec, kernels
from thriftgrad.kernels import Size, low_rank
from thriftgrad.kernels.cpu import low_rank as compiled
from thriftgrad.kernels.cpu import threads

CPU = torch.device("cpu")
SHAPES = [(64, 147), (5, 7), (300, 320), (300, 320), (1, 1), (1, 40), (40, 1), (3, 17), (7, 15), (130, 1100), (2048, 8)]
"""Rows and columns that fill vectors and blocks, or do not; equal neighbours; several blocks of columns."""

each = pytest.mark.parametrize("kernel", [low_rank, compiled], ids=["reference", "compiled"])
ranks = pytest.mark.parametrize("rank", [1, 2, 3, 6, 9])
Matrix = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sizes_of(rank: int) -> tuple[Size, ...]:
    return tuple(Size(n, m, min(rank, n, m)) for n, m in SHAPES)


def gradients() -> list[Tensor]:
    return [normal(n, m, seed=i) for i, (n, m) in enumerate(SHAPES)]


def memories() -> list[Tensor]:
    return [normal(n, m, seed=100 + i) for i, (n, m) in enumerate(SHAPES)]


def factor(sizes: Sequence[Size], left: bool, seed: int = 7) -> Tensor:
    return normal(sum((n if left else m) * r for n, m, r in sizes), seed=seed)


def split(vector: Tensor, sizes: Sequence[Size], left: bool) -> list[Matrix]:
    """Each matrix's own factor, by numpy."""
    lengths = [(n if left else m, r) for n, m, r in sizes]
    cuts = np.cumsum([length * r for length, r in lengths])[:-1]
    pieces = np.split(vector.double().numpy(), cuts)
    return [piece.reshape(shape) for piece, shape in zip(pieces, lengths, strict=True)]


def wide(tensors: Sequence[Tensor]) -> list[Matrix]:
    return [x.double().numpy() for x in tensors]


def check(found: Sequence[Any], expected: Sequence[Matrix]) -> None:
    """To 1e-5 of the largest element, matrix by matrix."""
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert np.abs(np.asarray(x, np.float64).reshape(y.shape) - y).max() <= 1e-5 * np.abs(y).max()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    threads.set_threads(None)
    kernels.use(None)


@each
@ranks
@pytest.mark.parametrize("remembered", [True, False], ids=["memory", "no memory"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_products_and_what_they_leave(kernel: ModuleType, rank: int, remembered: bool, left: bool) -> None:
    """M F, or M^T F, divided by the number of workers; M less the product of both factors, the division undone."""
    sizes, given, kept = sizes_of(rank), gradients(), memories() if remembered else [None] * len(SHAPES)
    before = [x.clone() for x in given]
    total = [x + e for x, e in zip(wide(given), wide(memories()), strict=True)] if remembered else wide(given)
    f = factor(sizes, left)
    own = split(f, sizes, left)
    products = [(m.T @ p if left else m @ p) / 3 for m, p in zip(total, own, strict=True)]
    rests = [m - (p @ (3 * q).T if left else (3 * q) @ p.T) for m, p, q in zip(total, own, products, strict=True)]
    for first in ("times", "split"):
        matrices = kernel.low_rank_matrices(CPU, given, kept, sizes)
        if first == "times":
            check(split(matrices.times(f, left, 3), sizes, not left), products)
            check(matrices.tensors(), total)
        check(split(matrices.split(f, left, 3), sizes, not left), products)
        check(matrices.tensors(), rests)
        again = [m.T @ p if left else m @ p for m, p in zip(wide(matrices.tensors()), own, strict=True)]
        check(split(matrices.times(f, left, 1), sizes, not left), again)
    assert all(same_bits(x, y) for x, y in zip(given, before, strict=True))


@each
def test_starts_are_brought_to_length_one(kernel: ModuleType) -> None:
    """However long they are, and zeros stay zeros."""
    sizes = (Size(6, 40, 3), Size(6, 40, 3), Size(20, 9, 2))
    given = [normal(n, m, seed=n * m) for n, m, _ in sizes]
    starts = [normal(m, r, seed=r) * scale for (_, m, r), scale in zip(sizes, (1e-30, 1e30, 1.0), strict=True)]
    starts[1][:, 1] = 0
    found = kernel.low_rank_matrices(CPU, given, [None] * 3, sizes).times_unit(starts, 1)
    expected = []
    for x, q in zip(wide(given), wide(starts), strict=True):
        lengths = np.linalg.norm(q, axis=0)
        expected.append(x @ (q / np.where(lengths == 0, 1, lengths)))
    check(split(found, sizes, True), expected)


@each
@ranks
def test_outer_products(kernel: ModuleType, rank: int) -> None:
    sizes = sizes_of(rank)
    lefts, rights = factor(sizes, True), factor(sizes, False)
    outs = [torch.empty(n * m) for n, m, _ in sizes]
    kernel.outer_products(lefts, rights, sizes, outs)
    pairs = zip(split(lefts, sizes, True), split(rights, sizes, False), strict=True)
    check(outs, [p @ q.T for p, q in pairs])


@ranks
def test_estimates_are_defined_to_the_last_bit(rank: int) -> None:
    """Rounded after every operation, products added in order by twos or fours: no processor has other bits."""
    sizes = (Size(10, 40, rank),)
    lefts, rights, out = factor(sizes, True), factor(sizes, False), torch.empty(400)
    compiled.outer_products(lefts, rights, sizes, [out])
    p, q = lefts.view(10, rank).numpy(), rights.view(40, rank).numpy()
    together = 2 if rank <= 2 else 4
    expected = np.zeros((10, 40), np.float32)
    for start in range(0, rank, together):
        part = np.zeros((10, 40), np.float32)
        for c in range(start, min(rank, start + together)):
            part += np.outer(p[:, c], q[:, c])
        expected += part
    np.testing.assert_array_equal(out.view(10, 40).numpy(), expected)


@each
@ranks
def test_factors_are_orthonormalised_each_by_itself(kernel: ModuleType, rank: int) -> None:
    """As numpy's QR has it, with the signs of Gram-Schmidt; a lost column is zero."""
    sizes = (Size(30, 50, rank), Size(30, 50, rank), Size(12, 17, rank))
    f = factor(sizes, True)
    f[: 30 * rank] *= 1e-20
    basis = split(kernel.orthonormal_factors(f, sizes, True), sizes, True)
    for x, own in zip(basis, split(f, sizes, True), strict=True):
        q, r = np.linalg.qr(own)
        np.testing.assert_allclose(x, q * np.sign(np.diag(r)), atol=1e-6)
    if rank > 1:
        f.view(-1, rank)[:, 1] = 2 * f.view(-1, rank)[:, 0]
        for x in split(kernel.orthonormal_factors(f, sizes, True), sizes, True):
            assert not x[:, 1].any()
            np.testing.assert_allclose(np.linalg.norm(x[:, 0]), 1, atol=1e-6)


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite_comes_through(kernel: ModuleType, bad: float) -> None:
    """In every element that it has a part in; nothing divides it away."""
    sizes = (Size(20, 33, 2), Size(6, 5, 2))
    given = [normal(20, 33), normal(6, 5, seed=1)]
    given[0][17, 32] = bad
    found = split(
        kernel.low_rank_matrices(CPU, given, [None, None], sizes).times(factor(sizes, False), False, 1), sizes, True
    )
    assert not np.isfinite(found[0][17]).any()
    assert np.isfinite(np.delete(found[0], 17, 0)).all()
    assert np.isfinite(found[1]).all()
    f = factor(sizes, True)
    f[3] = bad
    assert not kernel.orthonormal_factors(f, sizes, True)[:40].isfinite().all()


@each
def test_extremes(kernel: ModuleType) -> None:
    x = torch.tensor([-3.0, 0.5, 2.0])
    assert kernel.extremes(x) == (0.5, 3.0)
    assert kernel.extremes(torch.tensor([1.0, -0.0])) == (0.0, 1.0)
    assert kernel.extremes(torch.tensor([1.0, -torch.inf]))[1] == torch.inf
    assert np.isnan(kernel.extremes(torch.tensor([1.0, -torch.nan, torch.inf]))[1])
    assert kernel.extremes(x.double()) == (0.5, 3.0)


def results(count: int, rank: int) -> list[Tensor]:
    """All that the kernels make of large enough matrices, with so many threads."""
    threads.set_threads(count)
    sizes = tuple(Size(n, m, rank) for n, m in ((257, 1030), (300, 640), (64, 64), (1200, 100)))
    given = [normal(n, m, seed=n) for n, m, _ in sizes]
    kept = [normal(n, m, seed=m) for n, m, _ in sizes]
    found: list[Tensor] = []
    for left in (False, True):
        matrices = compiled.low_rank_matrices(CPU, given, kept, sizes)
        found += [matrices.split(factor(sizes, left), left, 2), *(x.clone() for x in matrices.tensors())]
        found += [matrices.times(factor(sizes, left), left, 2)]
    outs = [torch.empty(n * m) for n, m, _ in sizes]
    compiled.outer_products(factor(sizes, True), factor(sizes, False), sizes, outs)
    return [*found, *outs]


@pytest.mark.parametrize("rank", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(rank: int) -> None:
    one = results(1, rank)
    for count in (2, 3):
        assert all(same_bits(x, y) for x, y in zip(one, results(count, rank), strict=True))


def test_large_results_go_past_the_cache_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one = results(2, 3)
    monkeypatch.setattr(compiled, "STREAMED", 1)
    assert all(same_bits(x, y) for x, y in zip(one, results(2, 3), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_read_too(dtype: torch.dtype) -> None:
    """Doubles stay double, by the reference; halves become float32 as they are read."""
    sizes = (Size(30, 40, 2),)
    x = normal(30, 40).to(dtype)
    matrices = compiled.low_rank_matrices(CPU, [x], [None], sizes)
    f = factor(sizes, True)
    expected = x.double().numpy().T @ f.view(30, 2).double().numpy()
    np.testing.assert_allclose(matrices.times(f, True, 1).view(40, 2).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert matrices.tensors()[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_rows_that_do_not_lie_together_are_read_in_order() -> None:
    sizes = (Size(30, 40, 2),)
    x, e = normal(40, 30).T, normal(30, 80)[:, ::2]
    matrices = compiled.low_rank_matrices(CPU, [x], [e], sizes)
    f = factor(sizes, True)
    check([matrices.times(f, True, 1)], [(x.double() + e.double()).numpy().T @ f.view(30, 2).double().numpy()])


FORMS: dict[str, dict[str, Any]] = {
    "two sides": {"rank": 2},
    "rank 5": {"rank": 5},
    "alternating": {"rank": 2, "alternating": True},
    "two blocks": {"rank": 1, "residual_iterations": 2},
    "two power iterations": {"rank": 2, "power_iterations": 2},
    "global memory": {"rank": 2, "memory": "global"},
    "no memory": {"rank": 1, "memory": "none"},
}


def trained(backend: Any, form: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The means of three steps of two workers, and worker 0's memories after them."""
    kernels.use(backend)
    method = PowerSGD(**form, min_compression_rate=0)
    shapes = [(40, 33), (40, 33), (7, 3, 3, 3), (11,), (25, 64)]
    states = [method.init([TensorSpec(shape, name=str(i)) for i, shape in enumerate(shapes)])] * 2
    found: list[Tensor] = []
    for i in range(3):
        tensors = [[normal(*s, seed=100 * i + 10 * w + k) for k, s in enumerate(shapes)] for w in range(2)]
        means, states = step(method, tensors, states, Key(i))
        found += means[0]
    return found, [state.inner.memory for state in states[0] if state.inner.memory is not None]


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_power_sgd_is_the_same_with_either_backend(form: dict[str, Any]) -> None:
    """To rounding, which three steps hardly carry further."""
    for ours, theirs in zip(trained("cpu", form), trained("reference", form), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert (x - y).norm() <= 1e-5 * y.norm()


def test_means_lie_as_the_bucket_does() -> None:
    """End to end in the order of the tensors, so that DDP's hook need not copy them."""
    shapes = [(11,), (40, 33), (5,), (6,), (25, 64), (40, 33)]
    tensors = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    for backend in ("cpu", "reference"):
        kernels.use(backend)
        method = PowerSGD(min_compression_rate=0)
        means, _ = step(method, [tensors], [method.init([TensorSpec.of(x) for x in tensors])], Key(0))
        start = means[0][0].storage_offset()
        for mean in means[0]:
            assert mean.is_contiguous()
            assert mean.untyped_storage().data_ptr() == means[0][0].untyped_storage().data_ptr()
            assert mean.storage_offset() == start
            start += mean.numel()
