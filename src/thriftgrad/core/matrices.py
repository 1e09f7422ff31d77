"""Tensors seen as matrices."""

from __future__ import annotations

from thriftgrad.core.spec import TensorSpec


def matrix_shape(spec: TensorSpec) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix: its first dimension, and all the others together.

    >>> matrix_shape(TensorSpec((64, 3, 3, 3))), matrix_shape(TensorSpec((7,)))
    ((64, 27), (7, 1))
    """
    n = spec.shape[0] if spec.shape else 1
    return n, spec.numel // n if n else 0
