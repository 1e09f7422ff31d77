"""Sparsification at random, in one piece: a block of neighbours that all workers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.compress import fraction as share
from thriftgrad.core import Key, Layout, LinearCompressor, Payload, TensorSpec, floating


class Start(NamedTuple):
    """The side information: where the block begins."""

    start: Tensor  # int64[1], 0 ... n - 1


@dataclass(frozen=True, repr=False)
class RandomBlock(LinearCompressor[None, Start]):
    """Keep k = ceil(fraction n) neighbours (or ``k`` itself, at most n) from a random start on, drop the rest.

    ``rank``: as many as factors of rank r have numbers, k = min(r (n1 + n2), n) of a tensor seen as a matrix [n1, n2];
    in the claims k is then min(2 r sqrt(n), n), the least for any shape.
    After the last element comes the first one, so each is kept with probability k / n. No index travels and nothing
    is scattered: it is the cheapest sparsifier.
    Wire: k values of the tensor's own type and the start in ceil(log2 n) bits.
    Linear: under a public key all workers keep one block, so the values may be all-reduced.

    Claims: an orthogonal projection with delta = k / n, in the mean over starts; fit for ``ErrorFeedback``.

    Raises ``ValueError`` for a fraction outside (0, 1], k or rank below 1, or unless exactly one is given;
    ``TypeError`` for a rank that is no integer, or tensors that are not floating point.
    A baseline of Vogels et al., PowerSGD, 2019, arXiv:1905.13727.

    >>> import torch; from thriftgrad import Key
    >>> payload, _ = RandomBlock(k=3).compress(torch.arange(8.0), None, Key(2))
    >>> payload.side.start.tolist(), RandomBlock(k=3).decompress(payload).tolist()
    ([2], [0.0, 0.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0])
    """

    fraction: float | None = None
    k: int | None = None
    rank: int | None = None

    isometric = True

    def __post_init__(self) -> None:
        share.check_with_rank("RandomBlock", self.fraction, self.k, self.rank)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        values = TensorSpec((self._kept(spec),), spec.dtype, spec.device)
        start = TensorSpec((1,), torch.int64, alphabet=max(spec.numel, 1))
        return Layout(spec, values, Start(start), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Start], None]:
        flat, spec = floating(x, self), TensorSpec.of(x)
        n = spec.numel
        start = key.fold("RandomBlock").seed % max(n, 1)
        end = start + self._kept(spec)
        values = torch.cat((flat[start:end], flat[: max(0, end - n)]))
        return Payload(values, Start(torch.tensor([start])), self.layout(spec)), None

    def decompress(self, payload: Payload[Start]) -> Tensor:
        spec, start = payload.layout.spec, int(payload.side.start)
        flat = torch.zeros(spec.numel, dtype=spec.dtype, device=payload.carrier.device)
        values = payload.carrier.to(spec.dtype)
        before_the_end = min(spec.numel - start, values.numel())
        flat[start : start + before_the_end] = values[:before_the_end]
        flat[: values.numel() - before_the_end] = values[before_the_end:]
        return flat.view(spec.shape)

    def _kept(self, spec: TensorSpec) -> int:
        return share.kept_of(spec, self.fraction, self.k, self.rank)

    @property
    def projection(self) -> bool:
        return True

    def contraction(self, n: int) -> float | None:
        return share.least_kept(n, self.fraction, self.k, self.rank) / n if n else 1.0
