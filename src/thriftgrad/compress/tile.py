"""Changes of basis that lose nothing: a matrix cut into tiles, and the cosine transform of each tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Key, Layout, LinearCompressor, Payload, TensorSpec, floating

AT_A_TIME = 1 << 20
"""Elements that are transformed at a time."""


class _Tiled(LinearCompressor[None, tuple[()]]):
    """C(x) = x. The carrier is [tiles, elements of a tile], or what a member makes of it."""

    chunk: int

    isometric = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_integer(name, "chunk", self.chunk)
        if self.chunk < 1:
            raise ValueError(f"{name}: chunk must be at least 1, got {self.chunk}.")

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        elements = math.prod(self._sides(spec))
        return Layout(spec, TensorSpec((spec.numel // elements, elements), spec.dtype, spec.device), (), repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        spec = TensorSpec.of(x)
        h, w = self._sides(spec)
        tiles = floating(x, self).view(self._grid(spec)).transpose(1, 2).reshape(-1, h, w)
        return Payload(self._transformed(tiles).reshape(-1, h * w).clone(), (), self.layout(spec)), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        spec = payload.layout.spec
        rows, h, columns, w = self._grid(spec)
        tiles = self._restored(payload.carrier.view(-1, h, w))
        return tiles.view(rows, columns, h, w).transpose(1, 2).reshape(spec.shape).to(spec.dtype)

    def _transformed(self, tiles: Tensor) -> Tensor:
        """An orthonormal map of each tile, float[tiles, h, w]; the identity unless a member says otherwise."""
        return tiles

    def _restored(self, tiles: Tensor) -> Tensor:
        """Its inverse."""
        return tiles

    def _sides(self, spec: TensorSpec) -> tuple[int, int]:
        h, w = _matrix(spec)
        return _side(h, self.chunk), _side(w, self.chunk)

    def _grid(self, spec: TensorSpec) -> tuple[int, int, int, int]:
        """(rows of tiles, h, columns of tiles, w)."""
        (height, width), (h, w) = _matrix(spec), self._sides(spec)
        return height // h, h, width // w, w

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def projection(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float | None:
        return 0.0

    def contraction(self, n: int) -> float | None:
        return 1.0


@dataclass(frozen=True, repr=False)
class Tile(_Tiled):
    """C(x) = x, in another order: the elements of each tile of a matrix side by side, tile after tile.

    A tensor is a matrix of its first dimension by all others, a vector stays one. A tile's sides are the largest
    divisors of the matrix's sides that are not above ``chunk``: 64 by 64 for most layers.
    Wire: n elements of the tensor's own type. The carrier is [tiles, elements of a tile], so that
    ``Tile(chunk=64) >> ChunkedTopK(k=32, chunk=None)`` keeps 32 elements of every tile.

    Claims: unbiased with omega = 0, delta = 1, isometric, linear.

    Raises ``ValueError`` for a chunk below 1; ``TypeError`` for a chunk that is no integer and tensors that are not
    floating point. The chunks of SparseLoCo, Sarfi et al., 2025, arXiv:2508.15706.

    >>> import torch; from thriftgrad import Key
    >>> Tile(chunk=2).compress(torch.arange(8.0).view(2, 4), None, Key(0))[0].carrier
    tensor([[0., 1., 4., 5.],
            [2., 3., 6., 7.]])
    """

    chunk: int = 64


@dataclass(frozen=True, repr=False)
class DCT(_Tiled):
    """C(x) = x, in another basis: the orthonormal cosine transform (DCT-II) of each tile, along both of its sides.

    Coefficient (p, q) of a tile X of h by w elements is sum_ij B_h[p, i] X[i, j] B_w[q, j], with
    B_d[p, i] = sqrt(2 / d) cos(pi (2 i + 1) p / (2 d)), and B_d[0, i] = sqrt(1 / d). Tiles as in ``Tile``; of a vector,
    runs of the largest divisor of n not above ``chunk``. Computed in float64.
    Wire: n coefficients of the tensor's own type, [tiles, elements of a tile]: a later stage that keeps some of each
    row, as in ``DCT(chunk=64) >> ChunkedTopK(k=32, chunk=None)``, spreads what it sends over the whole tile.

    Claims: unbiased with omega = 0, delta = 1, isometric, linear, all up to the rounding of coefficients to that type.
    A tile with a NaN or an infinity becomes NaN; coefficients beyond the type's range are its largest number.

    Raises ``ValueError`` for a chunk below 1; ``TypeError`` for a chunk that is no integer and tensors that are not
    floating point. Peng et al., DeMo, 2024, arXiv:2411.19870, where tensors have at most two dimensions.

    >>> import torch; from thriftgrad import Key
    >>> DCT().compress(torch.ones(4, 4), None, Key(0))[0].carrier[0, :3].round(decimals=6).abs()
    tensor([4., 0., 0.])
    """

    chunk: int = 64

    def _transformed(self, tiles: Tensor) -> Tensor:
        left, right = (_basis(d).to(tiles.device) for d in tiles.shape[1:])
        return _between(left, tiles, right.T)

    def _restored(self, tiles: Tensor) -> Tensor:
        left, right = (_basis(d).to(tiles.device) for d in tiles.shape[1:])
        return _between(left.T, tiles, right)


def _between(left: Tensor, tiles: Tensor, right: Tensor) -> Tensor:
    """left X right for each tile X, in the tiles' own type; some at a time, so that float64 stays in the cache."""
    some = max(1, AT_A_TIME // max(1, tiles[:1].numel()))
    return torch.cat([_within(left @ part.to(torch.float64) @ right, tiles.dtype) for part in torch.split(tiles, some)])


def _within(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another type, NaN where it is not finite and the type's largest number where it is beyond."""
    largest = torch.finfo(dtype).max
    return torch.where(x.isfinite(), x.clamp(-largest, largest), torch.nan).to(dtype)


def _matrix(spec: TensorSpec) -> tuple[int, int]:
    """The first dimension by all others; a vector or a number is one row."""
    return (spec.shape[0], math.prod(spec.shape[1:])) if len(spec.shape) > 1 else (1, spec.numel)


@lru_cache(maxsize=1024)
def _side(length: int, chunk: int) -> int:
    """The largest divisor of a length that is not above ``chunk``.

    >>> _side(96, 64), _side(127, 64), _side(50, 64), _side(0, 64)
    (48, 1, 50, 1)
    """
    return next(d for d in range(min(length, chunk), 0, -1) if length % d == 0) if length else 1


@lru_cache(maxsize=64)
def _basis(d: int) -> Tensor:
    """The orthonormal DCT-II as a matrix, float64[d, d]: a row a frequency."""
    # (2 i + 1) p as an integer modulo 4 d, which is a whole turn, so that large ones lose no digits.
    turns = torch.outer(torch.arange(d), 2 * torch.arange(d) + 1) % (4 * d)
    basis = (turns.to(torch.float64) * (math.pi / (2 * d))).cos() * math.sqrt(2 / d)
    basis[0] /= math.sqrt(2)
    return basis
