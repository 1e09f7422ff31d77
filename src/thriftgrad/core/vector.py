"""Whether tensors are pieces of one vector, as gradients are in a DDP bucket."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def as_vector(tensors: Sequence[Tensor]) -> Tensor | None:
    """All elements as one vector, a view, where they lie in memory one after the other; else None.

    >>> import torch
    >>> vector = torch.arange(6)
    >>> as_vector([vector[1:3], vector[3:]]), as_vector([vector[3:], vector[:3]])
    (tensor([1, 2, 3, 4, 5]), None)
    """
    first = tensors[0]
    end = begin = first.storage_offset()
    for x in tensors:
        if not (x.is_contiguous() and x.storage_offset() == end):
            return None
        if x.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += x.numel()
    return first.as_strided((end - begin,), (1,))
