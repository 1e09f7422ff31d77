"""Orthonormal columns: three ways that agree with numpy, and what each does where columns are lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from thriftgrad import TensorSpec
from thriftgrad.core.matrices import matrix_shape
from thriftgrad.kernels import orthonormal as ways
from thriftgrad.kernels.orthonormal import cholesky_qr, gram_schmidt, orthonormal, qr


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(p: Tensor) -> np.ndarray:
    """Numpy's QR in float64, with the signs of Gram-Schmidt."""
    basis, upper = np.linalg.qr(p.double().numpy())
    return basis * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None, :]


def whole(way: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    """One of the two that also say where they are accurate: here everywhere."""

    def of(p: Tensor) -> Tensor:
        basis, good = way(p)
        assert good.all()
        return basis

    return of


WAYS = {
    "orthonormal": orthonormal,
    "gram_schmidt": gram_schmidt,
    "qr": whole(qr),
    "cholesky_qr": whole(cholesky_qr),
}


def close_columns(apart: float) -> Tensor:
    """Columns 0 and 3 of length one at this distance."""
    p = random(40, 4, seed=3)
    p[:, 0] /= p[:, 0].norm()
    away = random(40, seed=4)
    away -= p[:, 0] * (away @ p[:, 0])
    p[:, 3] = p[:, 0] + apart * away / away.norm()
    return p[None]


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize(("n", "r"), [(1, 1), (7, 1), (7, 2), (12, 3), (5, 5), (64, 8), (200, 32)])
def test_all_ways_are_numpys(way: Callable[[Tensor], Tensor], n: int, r: int) -> None:
    """Sizes of the matrices of one batch differ by ten orders of magnitude, which none of them minds."""
    p = torch.stack([random(n, r, seed=i) * 10.0 ** (5 * i - 5) for i in range(3)])
    given, basis = p.clone(), way(p)
    assert basis.dtype == torch.float32
    assert basis.shape == p.shape
    np.testing.assert_allclose(basis.numpy(), oracle(p), atol=2e-5 if n == r else 1e-6)
    assert torch.equal(p, given)


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-5])
def test_columns_that_nearly_coincide(way: Callable[[Tensor], Tensor], apart: float) -> None:
    """What single precision, or normal equations done once, would lose."""
    p = close_columns(apart)
    basis = way(p)
    torch.testing.assert_close(basis[0].T @ basis[0], torch.eye(4), atol=1e-6, rtol=0)
    np.testing.assert_allclose(basis.numpy(), oracle(p), atol=1e-6)
    torch.testing.assert_close(basis[0] @ (basis[0].T @ p[0]), p[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-6])
def test_a_lost_column_is_zero_and_named_by_those_that_cannot_leave_it_out(apart: float) -> None:
    """Below 2e-6 of its length a column is what rounding left of it."""
    p = close_columns(apart)
    for way in (orthonormal, gram_schmidt):
        basis = way(p)[0]
        assert (basis != 0).any(0).tolist() == [True, True, True, False]
        torch.testing.assert_close(basis[:, :3].T @ basis[:, :3], torch.eye(3), atol=1e-6, rtol=0)
    for fast in (qr, cholesky_qr):
        assert not fast(p)[1].any()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_one_bad_matrix_of_a_batch_costs_the_others_nothing(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way for graphics cards is taken here by calling what ``orthonormal`` would call there."""
    good, other = random(1, 12, 4), random(1, 12, 4, seed=1)
    twice, nothing = good.clone(), torch.zeros(1, 12, 4)
    twice[0, :, 2] = 3 * twice[0, :, 1]
    batch = torch.cat([good, twice, nothing, other])
    if on_gpu:
        basis = ways._mended(batch, *cholesky_qr(batch), lambda rest: ways._mended(rest, *qr(rest), gram_schmidt))
    else:
        basis = orthonormal(batch)
    np.testing.assert_allclose(basis[[0, 3]].numpy(), oracle(batch[[0, 3]]), atol=1e-6)
    assert (basis[1] != 0).any(0).tolist() == [True, True, False, True]
    np.testing.assert_allclose(basis[1][:, [0, 1, 3]].numpy(), oracle(twice[:, :, [0, 1, 3]])[0], atol=1e-6)
    assert not basis[2].any()
    assert cholesky_qr(batch)[1].tolist() == qr(batch)[1].tolist() == [True, False, False, True]


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 4), (3, 2, 3)])
def test_more_columns_than_rows(shape: tuple[int, int, int]) -> None:
    """The first columns make the basis; the others are lost."""
    n = shape[1]
    p = random(*shape)
    basis = orthonormal(p)
    assert basis.shape == shape
    assert not basis[:, :, n:].any()
    np.testing.assert_allclose(basis[:, :, :n].numpy(), oracle(p[:, :, :n]), atol=2e-5)


@pytest.mark.parametrize("r", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_sizes_at_the_edges(r: int, size: float) -> None:
    p = random(2, 9, r) * size
    np.testing.assert_allclose(orthonormal(p).numpy(), oracle(p), atol=1e-6)


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(r: int, bad: float) -> None:
    """Nor does it touch the other matrix of the batch."""
    p = random(2, 6, r)
    p[0, 2, 0] = bad
    basis = orthonormal(p)
    assert not basis[0].isfinite().all()
    np.testing.assert_allclose(basis[1].numpy(), oracle(p[1:])[0], atol=1e-6)
    everywhere = torch.full((1, 4, r), torch.nan)
    assert orthonormal(everywhere).isnan().all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)),
        ((7,), (7, 1)),
        ((7, 1), (7, 1)),
        ((1, 7), (1, 7)),
        ((3, 5), (3, 5)),
        ((64, 3, 7, 7), (64, 147)),
        ((2, 3, 4, 5, 6), (2, 360)),
        ((0, 4), (0, 0)),
        ((4, 0), (4, 0)),
    ],
)
def test_rows_are_the_first_dimension(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert matrix_shape(TensorSpec(shape)) == expected
