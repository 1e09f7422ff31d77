"""Buckets: the runs of coordinates that share one scale."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]


class Scales(NamedTuple):
    """The side information of a bucketed quantiser."""

    scale: Tensor  # float32[ceil(n / bucket)]


def check_integer(name: str, setting: str, value: object) -> None:
    """``TypeError`` unless it is a plain integer, which prints as what it is."""
    if type(value) is not int:
        raise TypeError(f"{name}: {setting} must be an integer, got {value!r}.")


def check_bucket(name: str, bucket: int) -> None:
    """``TypeError`` unless it is an integer, ``ValueError`` unless a bucket holds something."""
    check_integer(name, "bucket", bucket)
    if bucket < 1:
        raise ValueError(f"{name}: bucket must be at least 1, got {bucket}.")


def check_norm(name: str, norm: str) -> None:
    """``ValueError`` for a norm that is not known."""
    if norm not in ("l2", "linf"):
        raise ValueError(f'{name}: norm must be "l2" or "linf", got {norm!r}.')


def width(n: int, bucket: int | None) -> int:
    """Coordinates in a bucket of a tensor of n; ``None``: all of them."""
    return max(1, n if bucket is None else min(bucket, n))


def count(n: int, bucket: int | None) -> int:
    """How many buckets there are.

    >>> count(1025, 512), count(0, 512), count(1025, None)
    (3, 0, 1)
    """
    return -(-n // width(n, bucket))


def rows(flat: Tensor, bucket: int | None) -> Tensor:
    """Buckets as rows, the last one filled with zeros."""
    columns = width(flat.numel(), bucket)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % columns)).view(-1, columns)


def normalised(buckets: Tensor, scale: Tensor) -> Tensor:
    """The rows over their scales, within [-1, 1]; zero where the scale is zero or NaN."""
    divisor = torch.where(scale > 0, scale, 1.0)  # NaN is not above 0: its bucket becomes NaN on the way back
    return (buckets / divisor[:, None]).clamp_(-1.0, 1.0).nan_to_num_(0.0)
