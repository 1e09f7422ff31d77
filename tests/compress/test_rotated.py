"""EDEN and DRIVE against scipy's Hadamard matrix, the published Lloyd-Max codebooks and their known errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard

from samples import KINDS, compressed, same_bits, vector
from thriftgrad import Key, TensorSpec, kernels, wire
from thriftgrad.compress import DRIVE, EDEN
from thriftgrad.core import Payload

DISTORTION = {1: 0.36338, 2: 0.11748, 3: 0.03454, 4: 0.009497}  # of the best codebook for a Gaussian (Max, 1960)
POSITIVE = {  # its levels
    1: [0.7979],
    2: [0.4528, 1.5104],
    3: [0.2451, 0.7560, 1.3439, 2.1520],
}


def codebook(bits: int) -> NDArray[np.float64]:
    positive = np.array(POSITIVE[bits])
    return np.concatenate([-positive[::-1], positive])


@pytest.mark.parametrize("d", [1, 2, 4, 64, 512])
def test_the_hadamard_kernel_is_the_matrix_and_its_own_inverse(d: int) -> None:
    rows = vector("gaussian", 5 * d).view(5, d)
    expected = rows.double().numpy() @ hadamard(d) / math.sqrt(d)
    np.testing.assert_allclose(kernels.hadamard(rows).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(kernels.hadamard(kernels.hadamard(rows)), rows, rtol=0, atol=1e-5)
    lengths = torch.linalg.vector_norm(rows, dim=1)
    torch.testing.assert_close(torch.linalg.vector_norm(kernels.hadamard(rows), dim=1), lengths)


def blocks(n: int, bucket: int) -> list[int]:
    """Whole buckets, then the powers of two that the rest is the sum of, largest first."""
    sizes = [bucket] * (n // bucket)
    left = n % bucket
    while left:
        sizes.append(2 ** int(math.log2(left)))
        left -= sizes[-1]
    return sizes


@pytest.mark.parametrize("scale", ["unbiased", "biased"])
@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 127, 200])
def test_an_estimate_is_what_the_definition_says(n: int, bits: int, scale: Any) -> None:
    """s R^T q(R x), block by block, with a matrix for R and a search over all levels for q."""
    x = vector("heavy", n)
    compressor = EDEN(bits=bits, bucket=64, scale=scale)
    payload, _ = compressor.compress(x, None, Key(9))
    v, signs = x.double().numpy(), kernels.random_signs(n, int(payload.side.seed)).double().numpy()
    expected, scales, start, levels = [], [], 0, codebook(bits)
    for size in blocks(n, 64):
        part = slice(start, start + size)
        start += size
        rotation = hadamard(size) / math.sqrt(size) * signs[part]  # H D
        rotated = rotation @ v[part]
        length = np.linalg.norm(rotated)
        q = levels[np.abs(rotated[:, None] / length * math.sqrt(size) - levels).argmin(1)]
        s = length**2 / (rotated @ q) if scale == "unbiased" else (rotated @ q) / (q @ q)
        expected.append(s * rotation.T @ q)
        scales.append(s)
    assert payload.side.scale.shape == (len(scales),)
    np.testing.assert_allclose(payload.side.scale.numpy(), scales, rtol=1e-3)
    estimate = compressor.decompress(payload).double().numpy()
    np.testing.assert_allclose(estimate, np.concatenate(expected), rtol=1e-3, atol=2e-3 * np.linalg.norm(v))
    assert payload.nbytes == math.ceil(n * bits / 8) + 4 * len(scales) + 8


def test_drive_is_eden_with_one_bit() -> None:
    """s = |x|^2 / |R x|_1, or |R x|_1 / d, and the signs."""
    x = vector("gaussian", 100)
    scales: tuple[Any, ...] = ("unbiased", "biased")
    for scale in scales:
        drive, eden = DRIVE(bucket=64, scale=scale), EDEN(bits=1, bucket=64, scale=scale)
        torch.testing.assert_close(compressed(drive, x, Key(2)), compressed(eden, x, Key(2)))
        assert drive.compress(x, None, Key(2))[0].nbytes == 13 + 4 * 3 + 8


@pytest.mark.parametrize("kind", ["gaussian", "flat", "heavy"])
@pytest.mark.parametrize("bits", DISTORTION)
def test_the_error_is_the_known_constant_whatever_the_data(kind: str, bits: int) -> None:
    """D with the biased scale, D / (1 - D) with the unbiased one: 0.571, 0.133, 0.0358, 0.0096."""
    x = vector(kind, 8 * 4096)
    d = DISTORTION[bits]
    scales: dict[Any, float] = {"biased": d, "unbiased": d / (1 - d)}
    # The heavy one has buckets with one large coordinate, and rotated those are flat: less than a Gaussian's error.
    most, least = 1.03, 0.5 if kind == "heavy" else 0.97
    for scale, expected in scales.items():
        error = (compressed(EDEN(bits=bits, scale=scale), x, Key(bits)) - x).double().square().sum()
        relative = (error / x.double().square().sum()).item()
        assert least * expected < relative < most * expected
    if bits == 1:
        error = (compressed(DRIVE(), x, Key(1)) - x).double().square().sum() / x.double().square().sum()
        assert least * (math.pi / 2 - 1) < error < most * (math.pi / 2 - 1)


@pytest.mark.parametrize("compressor", [EDEN(bits=1), EDEN(bits=2), EDEN(bits=3), DRIVE()], ids=repr)
def test_the_mean_over_keys_is_near_a_dense_vector(compressor: Any) -> None:
    """The error of a mean of K is a K-th; the biased scale stays away by D of the vector."""
    x, keys = vector("gaussian", 2048), 100
    mean = sum(compressed(compressor, x, Key(i)).double() for i in range(keys)) / keys
    d = DISTORTION[getattr(compressor, "bits", 1)]
    relative = ((mean - x).square().sum() / x.double().square().sum()).item()
    assert relative == pytest.approx(d / (1 - d) / keys, rel=0.15)
    along = ((mean @ x.double()) / x.double().square().sum()).item()
    assert along == pytest.approx(1, abs=1e-4)
    biased = type(compressor)(
        **{"scale": "biased"} | ({"bits": compressor.bits} if hasattr(compressor, "bits") else {})
    )
    mean = sum(compressed(biased, x, Key(i)).double() for i in range(keys)) / keys
    assert ((mean @ x.double()) / x.double().square().sum()).item() == pytest.approx(1 - d, abs=3e-3)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_one_coordinate_is_exact_wherever_it_stands(bits: int) -> None:
    """Rotated it is flat, so one level serves all of the block."""
    for n, at in ((64, 5), (64, 63), (100, 99), (3, 1)):
        x = torch.zeros(n)
        x[at] = -7.5
        estimate = compressed(EDEN(bits=bits, bucket=64), x, Key(n))
        torch.testing.assert_close(estimate, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_biased_scale_is_the_best_one(kind: str) -> None:
    """Any other raises the error, and the error is never more than |x|^2."""
    for n in (1, 7, 64):
        x = vector(kind, n)
        compressor = EDEN(bits=2, bucket=64, scale="biased")
        payload, _ = compressor.compress(x, None, Key(3))
        errors = []
        for factor in (1, 0.98, 1.02):
            side = payload.side._replace(scale=payload.side.scale * factor)
            y = compressor.decompress(Payload(payload.carrier, side, payload.layout))
            errors.append(float((y.double() - x.double()).square().sum()))
        square = x.double().square().sum().item()
        assert errors[0] <= min(errors) + 1e-6 * square
        assert errors[0] <= (1 - compressor.contraction(n)) * square * (1 + 1e-6) + 1e-6 * square  # type: ignore[operator]


def test_the_key_decides_the_rotation_and_the_seed_travels() -> None:
    x = vector("gaussian", 300)
    compressor = EDEN(bits=2)
    one, other = (compressor.compress(x, None, Key(k))[0] for k in (1, 2))
    assert int(one.side.seed) != int(other.side.seed)
    assert int(one.side.seed) >= 0
    assert same_bits(compressor.decompress(one), compressed(compressor, x, Key(1)))
    received = wire.unpack(wire.pack(one), compressor, TensorSpec.of(x))
    assert same_bits(compressor.decompress(received), compressor.decompress(one))
    hostile = Payload(one.carrier, one.side._replace(seed=torch.tensor([-1])), one.layout)
    assert compressor.decompress(hostile).isfinite().all()


@pytest.mark.parametrize("compressor", [EDEN(bits=3, bucket=16), DRIVE(bucket=16)], ids=repr)
def test_edges(compressor: Any) -> None:
    for n in (0, 1, 16, 37):
        assert torch.equal(compressed(compressor, torch.zeros(n)), torch.zeros(n))
        for value in (1e-40, 1e-30, 1e30):
            x = value * vector("flat", n).sign()
            assert ((compressed(compressor, x) - x).abs() <= 8 * value).all()
    x = vector("gaussian", 40)
    x[20] = math.nan
    estimate = compressed(compressor, x)
    assert estimate[16:32].isnan().all()
    assert estimate[:16].isfinite().all()
    assert estimate[32:].isfinite().all()
