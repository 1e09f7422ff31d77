"""The contract of a lossless coder: symbols to a stream of bytes and back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec


@dataclass(frozen=True, repr=False)
class Coder(Compressor[None, tuple[()]]):
    """A lossless stage behind a compressor whose carrier holds symbols, as in ``QSGD(bits=4) >> Huffman()``.

    ``encode`` and ``decode`` are given the spec of the symbols (their number, alphabet, zero and probabilities), which
    both ends know. The stream's length depends on the data and travels with it.
    """

    lossless = True

    @abstractmethod
    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        """Flat uint8, the stream of the flat symbols; ``TypeError`` or ``ValueError`` if it is not for such symbols."""

    @abstractmethod
    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        """The symbols of a stream, in the type and shape of the spec; ``PayloadError`` if there are none."""

    @abstractmethod
    def limit_bytes(self, spec: TensorSpec) -> int:
        """A length that no stream of such symbols exceeds."""

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        stream = TensorSpec((self.limit_bytes(spec),), torch.uint8, spec.device, variable=True)
        return Layout(spec, stream, (), repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        return self.compress_carrier(x, TensorSpec.of(x), state, key)

    def compress_carrier(
        self, carrier: Tensor, spec: TensorSpec, state: None, key: Key
    ) -> tuple[Payload[tuple[()]], None]:
        return Payload(self.encode(carrier.detach().reshape(-1), spec), (), self.layout(spec)), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        return self.decode(payload.carrier, payload.layout.spec)

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def projection(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return 0.0
