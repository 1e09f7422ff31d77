"""Single instructions that numba has no name for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I32, _DOUBLE = ir.IntType(32), ir.DoubleType()


@intrinsic
def trailing_zeros(context: Any, x: Any) -> Any:
    """How many of the lowest bits of a uint64 are 0; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))  # 1: undefined for 0

    return types.uint64(types.uint64), generate


@intrinsic
def ones(context: Any, x: Any) -> Any:
    """How many bits of a uint64 are 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def folded_lanes(context: Any, lanes: Any) -> Any:
    """The sum of float64[64] by halves: first half plus second half, until one is left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = 64
        sums = builder.load(builder.bitcast(arguments[0], ir.VectorType(_DOUBLE, count).as_pointer()))
        sums.align = 8
        while count > 1:
            count //= 2
            half = ir.VectorType(_I32, count)
            low = builder.shuffle_vector(sums, sums, half([_I32(i) for i in range(count)]))
            high = builder.shuffle_vector(sums, sums, half([_I32(i) for i in range(count, 2 * count)]))
            sums = builder.fadd(low, high)
        return builder.extract_element(sums, _I32(0))

    return types.float64(lanes), generate
