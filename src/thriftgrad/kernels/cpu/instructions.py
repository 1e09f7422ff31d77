"""Single instructions that numba has no name for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WORD = ir.IntType(64)


def _trailing_zeros(typing: Any, x: Any) -> Any:
    """How many of the lowest bits of a uint64 are 0; 64 for 0."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))  # 1: undefined for 0

    return types.uint64(types.uint64), code


def _ones(typing: Any, x: Any) -> Any:
    """How many bits of a uint64 are 1."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), code


def _word_at(typing: Any, stream: Any, place: Any) -> Any:
    """Eight bytes of a uint8 array from any place on, as a uint64, the first byte highest. Nothing is checked."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.load(_pointer(context, builder, signature, arguments))
        word.align = 1
        return builder.bswap(word)

    return types.uint64(stream, types.uint64), code


def _set_word_at(typing: Any, stream: Any, place: Any, word: Any) -> Any:
    """The inverse of ``word_at``: eight bytes are overwritten."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        swapped = builder.bswap(arguments[2])
        builder.store(swapped, _pointer(context, builder, signature, arguments)).align = 1
        return context.get_dummy_value()

    return types.void(stream, types.uint64, types.uint64), code


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), WORD.as_pointer())


trailing_zeros: Any = intrinsic(_trailing_zeros)
ones: Any = intrinsic(_ones)
word_at: Any = intrinsic(_word_at)
set_word_at: Any = intrinsic(_set_word_at)
