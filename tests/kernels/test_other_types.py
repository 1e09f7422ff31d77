"""What a kernel is not compiled for, it computes as the definition does, whatever the type or the place in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.kernels import Grouping, Size

N, BUCKET, SIZES = 2048, 512, (Size(32, 64, 2),)
LEVELS = torch.linspace(-1, 1, 7)
GROUPING = Grouping(2, 0, 7, 3)
DRAWN = torch.Generator().manual_seed(0)
X, MEMORY = torch.randn(2, N, generator=DRAWN)
ROWS = X.view(8, 256)
SYMBOLS = torch.randint(0, 7, (N,), dtype=torch.uint8, generator=DRAWN)
STREAM, SCALE, _ = kernels.quantise_levels(X, LEVELS, BUCKET, "linf", 0)
INDICES = torch.randperm(N, generator=DRAWN)[:50]
LENGTHS = kernels.code_lengths(kernels.count_groups(SYMBOLS, GROUPING))
BITS = int((kernels.count_groups(SYMBOLS, GROUPING) * LENGTHS).sum())
TABLE = kernels.write_lengths(LENGTHS)
BODY = kernels.write_groups(TABLE, SYMBOLS, GROUPING, LENGTHS, BITS)[len(TABLE) :]


def dequantised(stream: Tensor, scale: Tensor, levels: Tensor, total: Tensor) -> Tensor:
    kernels.dequantise_add(stream, scale, levels, BUCKET, total)
    return total


def added(total: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    kernels.add_at(total, indices, values)
    return total


def multiplied(x: Tensor, memory: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    matrices = kernels.low_rank_matrices(torch.device("cpu"), [x.view(32, 64)], [memory.view(32, 64)], SIZES)
    return matrices.split(factor, False, 1), matrices.tensors()[0]


def outer(lefts: Tensor, rights: Tensor, out: Tensor) -> Tensor:
    kernels.outer_products(lefts, rights, SIZES, [out])
    return out


CALLS: dict[str, tuple[Callable[..., object], tuple[Tensor, ...]]] = {
    "round_stochastic": (lambda x: kernels.round_stochastic(x, 1), (X,)),
    "round_to_levels": (lambda x, levels: kernels.round_to_levels(x, levels, 1), (X.clamp(-1, 1), LEVELS)),
    "round_to_powers": (lambda x: kernels.round_to_powers(x, 1), (X,)),
    "nearest_level": (kernels.nearest_level, (X, LEVELS)),
    "hadamard": (kernels.hadamard, (ROWS,)),
    "pack": (lambda s: kernels.pack(s, 7), (SYMBOLS,)),
    "pack wide": (lambda s: kernels.pack(s, 1000), (SYMBOLS,)),
    "unpack": (lambda s: kernels.unpack(s, N, 7), (STREAM,)),
    "largest_symbol": (lambda s: kernels.largest_symbol(s, N, 7), (STREAM,)),
    "lane_sums": (kernels.lane_sums, (ROWS,)),
    "bucket_norms": (lambda rows: kernels.bucket_norms(rows, "l2"), (ROWS,)),
    "uniform": (lambda x, e: kernels.quantise_uniform(x, 3, BUCKET, "l2", 1, e, 0.5), (X, MEMORY)),
    "levels": (lambda x, t, e: kernels.quantise_levels(x, t, BUCKET, "linf", 1, e, 0.5), (X, LEVELS, MEMORY)),
    "sign": (lambda x, e: kernels.quantise_sign(x, BUCKET, e, 0.5), (X, MEMORY)),
    "dequantise_add": (dequantised, (STREAM, SCALE, LEVELS, MEMORY)),
    "largest": (lambda x: kernels.largest(x, 20), (X,)),
    "choose_largest": (lambda x, e: kernels.choose_largest(x, 20, e, 0.5), (X, MEMORY)),
    "largest_of_rows": (lambda rows: kernels.largest_of_rows(rows, 5), (ROWS,)),
    "owed": (lambda x, e: kernels.owed(x, e, 0.5), (X, MEMORY)),
    "add_at": (added, (MEMORY, INDICES, X[:50])),
    "count_groups": (lambda s: kernels.count_groups(s, GROUPING), (SYMBOLS,)),
    "write_lengths": (kernels.write_lengths, (LENGTHS,)),
    "read_lengths": (lambda s: kernels.read_lengths(s, GROUPING.groups), (TABLE,)),
    "write_groups": (lambda h, s, w: kernels.write_groups(h, s, GROUPING, w, BITS), (TABLE, SYMBOLS, LENGTHS)),
    "read_groups": (lambda s, w: kernels.read_groups(s, N, GROUPING, w), (BODY, LENGTHS)),
    "matrices": (multiplied, (X, MEMORY, X[:128])),
    "outer_products": (outer, (X[:64], X[:128], MEMORY)),
    "orthonormal_factors": (lambda f: kernels.orthonormal_factors(f, SIZES, True), (X[:64],)),
    "extremes": (kernels.extremes, (X,)),
}
TO_ROUNDING = ("matrices", "outer_products", "orthonormal_factors")


def spread(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 0]


def to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype) if x.is_floating_point() else x.clone()


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "float64": to(torch.float64),
    "bfloat16": to(torch.bfloat16),
    "float16": to(torch.float16),
    "apart": spread,
    "with a gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x.clone(),
    "yet to be negated": lambda x: torch._neg_view(-x) if x.is_floating_point() else x.clone(),
}


def outcome(call: Callable[..., object], arguments: list[Tensor]) -> object:
    """What comes out; or torch's own error, where torch refuses, as it does to write where a gradient is wanted."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        return str(error)


def flat(found: object) -> Iterator[object]:
    if isinstance(found, tuple):
        for each in found:
            yield from flat(each)
    else:
        yield found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLS)
def test_other_types_are_computed_as_defined(name: str, form: str) -> None:
    call, arguments = CALLS[name]
    # One argument at a time, then all.
    for changed in [*({i} for i in range(len(arguments))), set(range(len(arguments)))]:

        def fresh(changed: set[int] = changed) -> list[Tensor]:
            return [FORMS[form](x) if i in changed else x.clone() for i, x in enumerate(arguments)]

        kernels.use("reference")
        try:
            right = list(flat(outcome(call, fresh())))
        finally:
            kernels.use(None)
        for ours, theirs in zip(flat(outcome(call, fresh())), right, strict=True):
            if not isinstance(ours, Tensor):
                assert ours == theirs
                continue
            assert isinstance(theirs, Tensor)
            near = 2e-2 if name in TO_ROUNDING else 0.0
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=near, atol=near)
