"""Zstandard, for bytes of any kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.wire.coders.bits import Bytes
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.symbols import (
    bytes_of,
    check_numel,
    optional,
    packed,
    packed_bytes,
    tensor_of,
    unpacked,
    values_of,
)


@dataclass(frozen=True, repr=False)
class Zstd(Coder):
    """Symbols packed to a fixed width, or the bytes of a tensor of any other type, in one Zstandard frame (RFC 8878).

    level: 1 (fast; the best choice for symbols that are nearly independent) to 22. Streams are the same for one
    version of the library; every version reads them.

    Raises ``ValueError`` for another level, ``ImportError`` without the package zstandard.

    >>> import torch; from thriftgrad import TensorSpec
    >>> len(Zstd().encode(torch.zeros(1000), TensorSpec((1000,)))) < 30  # 4000 bytes
    True
    """

    level: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.level, bool) or not isinstance(self.level, int) or not 1 <= self.level <= 22:
            raise ValueError(f"Zstd: level must be a whole number from 1 to 22, got {self.level!r}.")

    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        raw = self._raw(symbols, spec)
        # The library skips what lies behind the header of an empty frame, so nothing is sent as nothing.
        frame = optional("zstandard", self).ZstdCompressor(level=self.level).compress(raw) if len(raw) else b""
        return torch.tensor(np.frombuffer(frame, np.uint8), device=symbols.device)

    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        raw = self._decompressed(bytes_of(stream).tobytes(), spec)
        if spec.alphabet is not None:
            return tensor_of(unpacked(raw, spec.numel, spec.alphabet), spec)
        x = torch.from_numpy(raw).view(spec.dtype).to(spec.device)
        return x if spec.variable else x.view(spec.shape)

    def limit_bytes(self, spec: TensorSpec) -> int:
        # The library's own bound, ZSTD_compressBound; below 2**17 bytes it has a margin that large sizes do not need.
        raw = _raw_bytes(spec)
        return raw + (raw >> 8) + max((1 << 17) - raw, 0) // (1 << 11)

    def _raw(self, symbols: Tensor, spec: TensorSpec) -> Bytes:
        if spec.alphabet is not None:
            return packed(values_of(symbols, spec, self), spec.alphabet)
        check_numel(symbols, spec, self)
        return symbols.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()

    def _decompressed(self, frame: bytes, spec: TensorSpec) -> Bytes:
        zstd, most = optional("zstandard", self), _raw_bytes(spec)
        size = 0
        try:
            if frame:
                size = zstd.get_frame_parameters(frame).content_size
            if size > most or (size < most and not spec.variable) or (frame and not size):
                raise PayloadError(f"payload: the frame announces {size} bytes where {most} belong; it was altered.")
            raw = zstd.ZstdDecompressor().decompress(frame, allow_extra_data=False) if frame else b""
        except zstd.ZstdError as error:
            raise PayloadError(f"payload: no whole Zstandard frame ({error}); it was altered on the way.") from None
        return np.frombuffer(bytearray(raw), np.uint8)


def _raw_bytes(spec: TensorSpec) -> int:
    if spec.alphabet is not None:
        return packed_bytes(spec.numel, spec.alphabet)
    return spec.numel * spec.dtype.itemsize
