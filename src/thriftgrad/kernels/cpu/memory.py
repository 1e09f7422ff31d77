"""Memory as the processor sees it: what numba has no words for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from thriftgrad.kernels.cpu.settings import COMPILED

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LINE = ir.VectorType(ir.FloatType(), 16)


@intrinsic
def pointer(context: Any, array: Any) -> Any:
    """To the first element; it does not keep the array alive. None stays None."""
    if isinstance(array, types.NoneType):
        return types.none(array), lambda context, builder, signature, arguments: context.get_dummy_value()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@njit(**COMPILED)
def keep(arrays: Any) -> None:
    """To be called when the pointers into them have done their work: numba lets an array go after its last use."""


@intrinsic
def load_word(context: Any, data: Any, index: Any) -> Any:
    """Eight bytes from data[index] on, the first one lowest; data: bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.load(builder.bitcast(builder.gep(arguments[0], [arguments[1]]), _I64.as_pointer()))
        word.align = 1
        return word

    return types.uint64(data, types.uint64), generate


@intrinsic
def store_word(context: Any, data: Any, index: Any, word: Any) -> Any:
    """The inverse of ``load_word``: eight bytes are overwritten."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), _I64.as_pointer())
        builder.store(arguments[2], place).align = 1
        return context.get_dummy_value()

    return types.void(data, types.uint64, types.uint64), generate


@intrinsic
def word_at(context: Any, stream: Any, place: Any) -> Any:
    """Eight bytes of a uint8 array from any place on, as a uint64, the first byte highest. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.load(_word_pointer(context, builder, signature, arguments))
        word.align = 1
        return builder.bswap(word)

    return types.uint64(stream, types.uint64), generate


@intrinsic
def set_word_at(context: Any, stream: Any, place: Any, word: Any) -> Any:
    """The inverse of ``word_at``: eight bytes are overwritten."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        swapped = builder.bswap(arguments[2])
        builder.store(swapped, _word_pointer(context, builder, signature, arguments)).align = 1
        return context.get_dummy_value()

    return types.void(stream, types.uint64, types.uint64), generate


def _word_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), _I64.as_pointer())


@intrinsic
def prefetch(context: Any, data: Any, index: Any) -> Any:
    """Ask for the cache line of ``data[index]``, which need not exist, into the first-level cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), cgutils.voidptr_t)
        builder.call(function, [place, _I32(0), _I32(3), _I32(1)])  # to read, first level, data
        return context.get_dummy_value()

    return types.void(data, types.uint64), generate


@intrinsic
def copy_past_cache(context: Any, to: Any, i: Any, source: Any, j: Any) -> Any:
    """A cache line of float32, source[j:j + 16], to to[i:i + 16], which is a whole line, without reading that first.

    What is written will not be read soon. Before another thread may read it, ``settle``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, at, origin, begin = arguments
        line = builder.load(builder.bitcast(builder.gep(origin, [begin]), _LINE.as_pointer()))
        line.align = 4
        store = builder.store(line, builder.bitcast(builder.gep(target, [at]), _LINE.as_pointer()))
        store.align = 64
        store.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
        return context.get_dummy_value()

    return types.void(to, types.uint64, source, types.uint64), generate


@intrinsic
def settle(context: Any) -> Any:
    """Wait until all that was written can be read by other threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
