"""What crosses the wire, and what both ends know of it beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from thriftgrad.core.spec import TensorSpec
from thriftgrad.core.tree import leaves

Side = TypeVar("Side")


class PayloadError(ValueError):
    """Bytes that are not a whole, unaltered payload of the expected compressor and tensor."""


@dataclass(frozen=True)
class Layout:
    """What a receiver knows before a payload arrives, from the compressor and the tensor's spec alone.

    ``spec``: the tensor that was compressed. ``carrier`` and ``side``: the payload's tensors (``side`` a tree of
    specs in the shape of the payload's own). ``label``: the compressor's ``repr``, so that a payload
    of another compressor is refused even where the sizes agree.
    """

    spec: TensorSpec
    carrier: TensorSpec
    side: Any
    label: str

    @property
    def nbytes(self) -> int:
        """Bytes of a payload on the wire, without the header."""
        return sum(spec.nbytes for spec in leaves((self.carrier, self.side)))


@dataclass(frozen=True)
class Payload(Generic[Side]):
    """One compressed tensor: the ``carrier`` a later stage may compress further, and the ``side`` information.

    ``side`` is a tuple of tensors, all of which travel: decompress sees the payload and nothing else.
    """

    carrier: Tensor
    side: Side
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Bytes on the wire without the header; ``wire.pack`` writes exactly these."""
        return self.layout.nbytes
