"""The GPU's kernels against their definition on the CPU: the first part of ``gpu.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.kernels import quantised, sparse
from thriftgrad.kernels.gpu import compiled

SEED = 0x9E37_79B9_7F4A_7C15
LEVELS = torch.linspace(-1, 1, 16) ** 3
SIZES = ((1, 1), (129, 64), (1000, 100), (70_001, 512), (70_000, 8192), (70_003, 70_003), (1_048_576, 512))
"""Elements and bucket."""

FEW = 3
"""As many of the sizes where triton's interpreter computes."""

Comparison = tuple[str, Callable[[], bool]]


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """What is compared, and the comparison."""
    for n, bucket in SIZES if device.type == "cuda" else SIZES[:FEW]:
        x, memory = random(n), random(n, 1)
        for kept in (None, memory):
            for norm in ("l2", "linf"):
                for s in (1, 3, 7, 127, 255):
                    yield equal(device, quantised, "quantise_uniform", x, s, bucket, norm, SEED, kept, 0.9)
                yield equal(device, quantised, "quantise_levels", x, LEVELS, bucket, norm, SEED, kept, 0.9)
            yield equal(device, quantised, "quantise_sign", x, bucket, kept, 0.9)
        for alphabet in (2, 3, 4, 8, 16, 256, 511):
            yield from dequantising(device, n, bucket, alphabet)
        for k in sorted({1, n // 100, n // 2, n} - {0}):
            for data in (x, (x * 4).round(), torch.zeros(n)):
                yield equal(device, sparse, "choose_largest", data, k, memory, 0.9)


def random(n: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, on the CPU."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def equal(device: torch.device, definition: ModuleType, name: str, *arguments: Any) -> Comparison:
    """A kernel's result on the device and the definition's here."""
    label = f"{name}({', '.join(f'{a.numel()} elements' if isinstance(a, Tensor) else repr(a) for a in arguments)})"
    defined = getattr(definition, name)
    return label, lambda: same(getattr(compiled, name)(*moved(arguments, device)), defined(*arguments))


def dequantising(device: torch.device, n: int, bucket: int, alphabet: int) -> Iterator[Comparison]:
    """Adding, and the largest symbol."""
    symbols = torch.randint(alphabet, (n,), generator=torch.Generator().manual_seed(n))
    stream = kernels.pack(symbols.to(torch.uint8 if alphabet <= 256 else torch.int64), alphabet)
    arguments = (stream, random(-(-n // bucket)), random(alphabet), bucket)

    def adds() -> bool:
        ours, defined = random(n, 2).to(device), random(n, 2)
        compiled.dequantise_add(*moved(arguments, device), ours)
        quantised.dequantise_add(*arguments, defined)
        return same(ours, defined)

    yield f"dequantise_add({n} elements, {alphabet} levels, bucket {bucket})", adds
    yield equal(device, quantised, "largest_symbol", stream, n, alphabet)


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or those of a tuple, on another device."""
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


def same(ours: Any, defined: Any) -> bool:
    """Whether results on any devices have the same bits."""
    if isinstance(defined, tuple):
        return all(same(*pair) for pair in zip(ours, defined, strict=True))
    if isinstance(defined, Tensor):
        return ours.dtype == defined.dtype and torch.equal(ours.cpu().view(torch.uint8), defined.view(torch.uint8))
    return bool(ours == defined)
