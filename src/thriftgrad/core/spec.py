"""What is known of a tensor before it exists."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thriftgrad.kernels import recycled


@dataclass(frozen=True)
class TensorSpec:
    """Shape, type, device and name of a tensor, and how many different symbols it may hold.

    ``alphabet`` is set for tensors of integer symbols 0 ... alphabet - 1: these cross the wire packed,
    at ceil(log2 alphabet) bits each (alphabet 3: five symbols in a byte, 1.6 bits each). For coders: ``zero`` is the
    symbol that stands for the value 0, if one does; ``probabilities`` of the symbols, if both ends know them.

    ``variable``: a stream of at most ``numel`` bytes, uint8. Its length travels in front of it, in 4 bytes.

    >>> TensorSpec((1000,), torch.uint8, alphabet=15).nbytes
    500
    >>> TensorSpec((10, 5)).nbytes
    200
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    name: str = ""
    alphabet: int | None = None
    zero: int | None = None
    probabilities: tuple[float, ...] | None = None
    variable: bool = False

    @classmethod
    def of(cls, x: Tensor, name: str = "") -> TensorSpec:
        """The spec of an existing tensor."""
        return cls(tuple(x.shape), x.dtype, x.device, name)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire; of a variable stream, the most there can be."""
        if self.alphabet is None:
            return self.prefix_nbytes + self.numel * self.dtype.itemsize
        if self.alphabet == 3:
            return -(-self.numel // 5)
        return -(-self.numel * (self.alphabet - 1).bit_length() // 8)

    @property
    def prefix_nbytes(self) -> int:
        """Bytes that a variable stream's length takes."""
        return 4 if self.variable else 0

    def with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        """The same tensor in another type."""
        return replace(self, dtype=dtype)

    def zeros(self) -> Tensor:
        """A tensor of zeros that fits."""
        return self._full_of(0.0)

    def nothing(self) -> Tensor:
        """A tensor to add to that changes no bit of what is added: of -0.0, since 0.0 + -0.0 = 0.0."""
        return self._full_of(-0.0)

    def _full_of(self, value: float) -> Tensor:
        if self.device.type != "cpu":
            return torch.full(self.shape, value, dtype=self.dtype, device=self.device)
        return recycled.empty(self.numel, self.dtype).fill_(value).view(self.shape)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums and memories of such tensors are kept: float64 for float64, else float32."""
    return dtype if dtype == torch.float64 else torch.float32
