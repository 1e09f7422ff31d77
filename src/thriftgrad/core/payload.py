"""What crosses the wire, and what both ends know of it beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from torch import Tensor

from thriftgrad.core.spec import TensorSpec
from thriftgrad.core.tree import leaves
from thriftgrad.kernels import pack, unpack

Side = TypeVar("Side")


class PayloadError(ValueError):
    """Bytes that are not a whole, unaltered payload of the expected compressor and tensor."""


@dataclass(frozen=True)
class Codebook:
    """Levels that all workers have agreed on. They do not travel: a message says which version it was packed with.

    ``levels``: sorted, on [-1, 1]. ``probabilities``: of the levels, as the statistics they were made from say; for
    entropy coders. Version 1 is what a compressor starts with.
    """

    version: int
    levels: tuple[float, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Layout:
    """What a receiver knows before a payload arrives, from the compressor and the tensor's spec alone.

    ``spec``: the tensor that was compressed. ``carrier`` and ``side``: the payload's tensors (``side`` a tree of
    specs in the shape of the payload's own). ``label``: the compressor's ``repr``, so that a payload
    of another compressor is refused even where the sizes agree. ``shared``: a tree of the codebooks that both ends
    hold, None where there are none.
    """

    spec: TensorSpec
    carrier: TensorSpec
    side: Any
    label: str
    shared: Any = None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of a payload on the wire, without the header; the most there can be if the length varies."""
        return sum(spec.nbytes for spec in leaves((self.carrier, self.side)))

    @cached_property
    def variable(self) -> bool:
        """Whether the length depends on the data."""
        return any(spec.variable for spec in leaves((self.carrier, self.side)))

    @cached_property
    def identity(self) -> str:
        """What tells this layout from another one, levels included."""
        books = "".join(f"|{codebook}" for codebook in leaves(self.shared))
        return f"{self.label}|{self.spec.shape}|{self.spec.dtype}{books}"


@dataclass(frozen=True)
class Payload(Generic[Side]):
    """One compressed tensor: the ``carrier`` a later stage may compress further, and the ``side`` information.

    ``side`` is a tuple of tensors, all of which travel: decompress sees the payload and nothing else. A carrier of
    symbols may be held as the ``stream`` of bytes in which it travels, as fast kernels write and read it.
    """

    held: Tensor | None  # the carrier; None where there is a stream
    side: Side
    layout: Layout
    stream: Tensor | None = None  # uint8

    @property
    def carrier(self) -> Tensor:
        """The carrier: of symbols, one to an element."""
        if self.held is not None:
            return self.held
        assert self.stream is not None
        assert self.layout.carrier.alphabet is not None
        symbols = unpack(self.stream, self.layout.carrier.numel, self.layout.carrier.alphabet)
        return symbols.to(self.layout.carrier.dtype).view(self.layout.carrier.shape)

    @property
    def packed(self) -> Tensor:
        """The symbols as they travel, uint8."""
        assert self.layout.carrier.alphabet is not None
        return pack(self.carrier, self.layout.carrier.alphabet) if self.stream is None else self.stream

    @property
    def nbytes(self) -> int:
        """Bytes on the wire without the header; ``wire.pack`` writes exactly these."""
        tensors = leaves((self.stream if self.held is None else self.held, self.side))
        return sum(
            spec.prefix_nbytes + tensor.numel() if spec.variable else spec.nbytes
            for tensor, spec in zip(tensors, leaves((self.layout.carrier, self.layout.side)), strict=True)
        )
