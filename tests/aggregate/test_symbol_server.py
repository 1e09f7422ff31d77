"""TernGrad's exchange: the mean of the workers' estimates, exactly, in ceil(log2(2 N + 1)) bits a coordinate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import estimates, same_bits, step, vector
from thriftgrad import AllGather, Key, Ledger, TensorSpec, wire
from thriftgrad.aggregate import SymbolServer
from thriftgrad.compress import TernGrad
from thriftgrad.core import Payload

WORLDS = (2, 3, 4, 16)
N = 1000


def inputs(world: int, n: int = N) -> list[Tensor]:
    """Gradients of different lengths, so that the shared scale is not everybody's own."""
    return [vector("gaussian", n, seed) * (1 + seed % 3) for seed in range(world)]


def local_estimates(compressor: TernGrad, xs: list[Tensor], key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Every worker's signs, int64[N, n], by its own key and on everybody's scale; and that scale for each bucket."""
    peaks = [compressor.peaks(x, compressor.init(TensorSpec.of(x)), key) for x in xs]
    scale = torch.stack(peaks).amax(0)
    signs = []
    for rank, x in enumerate(xs):
        state = compressor.adapt(compressor.init(TensorSpec.of(x)), scale, None)
        payload, _ = compressor.compress(x, state, key.fold("0").private(rank))
        signs.append(payload.carrier.numpy().astype(np.int64) - 1)
    return np.stack(signs), scale.numpy().astype(np.float64)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("compressor", [TernGrad(), TernGrad(clip=None), TernGrad(bucket=64), TernGrad(clip=1.5)])
def test_the_estimate_is_the_exact_mean_of_everybodys(compressor: TernGrad, world: int) -> None:
    """Sum of integers times scale over N, in float64 and rounded once: the nearest float32 to the mean."""
    xs, key = inputs(world), Key(5)
    signs, scale = local_estimates(compressor, xs, key)
    width = compressor.bucket or N
    exact = signs.sum(0) / world * scale.repeat(width)[:N]
    results = estimates(SymbolServer(compressor), [[x] for x in xs], key)
    for (mean,) in results:
        assert same_bits(mean, torch.from_numpy(exact.astype(np.float32)))
    (gathered,) = estimates(AllGather(compressor), [[x] for x in xs], key)[0]
    # The same estimates, but summed in float32.
    torch.testing.assert_close(results[0][0], gathered, rtol=0, atol=world * 2.0**-24 * scale.max())
    if world == 2:
        assert same_bits(results[0][0], gathered)


@pytest.mark.parametrize("world", WORLDS)
def test_the_mean_has_at_most_two_n_plus_one_levels(world: int) -> None:
    xs = inputs(world, 20_000)
    (mean,) = estimates(SymbolServer(TernGrad()), [[x] for x in xs])[0]
    scale = max(min(2.5 * float(x.double().square().mean().sqrt()), float(x.abs().max())) for x in xs)
    multiples = np.unique(np.round(mean.double().numpy() / scale * world, 4))
    assert set(multiples) <= set(range(-world, world + 1))
    assert len(multiples) > min(world, 4)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", [1, 64, N, 1001])
def test_bytes_in_both_directions(world: int, n: int) -> None:
    """Up: 1.6 bits a coordinate and a scale. Down: ceil(log2(2 N + 1)) bits. Before: 4 bytes to everybody."""
    aggregator, ledger = SymbolServer(TernGrad()), Ledger()
    xs = inputs(world, n)
    step(aggregator, [[x] for x in xs], [aggregator.init([TensorSpec((n,))])] * world, Key(0), ledger)
    up = wire.HEADER_BYTES + math.ceil(n / 5) + 4
    down = wire.HEADER_BYTES + math.ceil(n * math.ceil(math.log2(2 * world + 1)) / 8)
    for rank, book in ledger.per_worker.items():
        agreeing = 4 * (world - 1)
        if rank == 0:
            assert book.payload_down_bytes == agreeing + (world - 1) * up
            assert (book.up_bytes, book.down_bytes) == (agreeing + (world - 1) * down, agreeing + (world - 1) * up)
        else:
            assert book.payload_up_bytes == 4 + up
            assert (book.up_bytes, book.down_bytes) == (agreeing + up, agreeing + down)
    assert ledger.requests == {"AllGather": 1, "Gather": 1, "Broadcast": 1}


def test_the_server_holds_a_scale_of_its_own_and_nobody_elses_is_read() -> None:
    """All tensors of a step agree in one round, whatever their number."""
    aggregator, ledger = SymbolServer(TernGrad(bucket=16)), Ledger()
    specs = [TensorSpec((n,), name=str(n)) for n in (5, 16, 33)]
    tensors = [[vector("gaussian", spec.numel, seed) for spec in specs] for seed in range(3)]
    results, states = step(aggregator, tensors, [aggregator.init(specs)] * 3, Key(0), ledger)
    assert ledger.requests == {"AllGather": 1, "Gather": 1, "Broadcast": 1}
    assert all(same_bits(a, b) for mine in results for a, b in zip(mine, results[0], strict=True))
    assert all(entry.inner.scale is None for mine in states for entry in mine)  # agreed anew at each step


def test_coordinates_near_the_end_of_float32_stay_finite() -> None:
    """A sum of scales would leave the range; a sum of symbols does not."""
    xs = [torch.tensor([3e38, -3e38, 0.0, 1e-40]) for _ in range(4)]
    (mean,) = estimates(SymbolServer(TernGrad(clip=None)), [[x] for x in xs])[0]
    assert torch.equal(mean[:3], torch.tensor([3e38, -3e38, 0.0]))
    assert mean[3] == 0
    assert not estimates(AllGather(TernGrad(clip=None)), [[x] for x in xs])[0][0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_narrow_and_wide_types(dtype: torch.dtype) -> None:
    xs = [vector("gaussian", 40, seed).to(dtype) for seed in range(3)]
    (mean,) = estimates(SymbolServer(TernGrad()), [[x] for x in xs])[0]
    (wide,) = estimates(SymbolServer(TernGrad()), [[x.float()] for x in xs])[0]
    assert mean.dtype == dtype
    torch.testing.assert_close(mean.float(), wide, rtol=1e-2, atol=0)


def test_a_message_with_a_sum_that_nobody_can_reach_is_refused() -> None:
    """Three workers' symbols sum to six at most; the answer's layout says so."""
    aggregator: Any = SymbolServer(TernGrad())
    layout = aggregator._of_sum(TernGrad().layout(TensorSpec((10,))), 3)
    assert (layout.carrier.alphabet, layout.nbytes) == (7, 4)
    message = wire.pack(Payload(torch.full((10,), 6), (), layout))
    assert wire.unpack_all(message, [layout])[0].carrier.tolist() == [6] * 10
    with pytest.raises(wire.PayloadError, match="symbol 7 outside the alphabet of 7"):
        wire.unpack_all(wire.pack(Payload(torch.full((10,), 7), (), layout)), [layout])
