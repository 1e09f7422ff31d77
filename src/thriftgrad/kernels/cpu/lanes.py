"""Blocks of sixteen-lane vectors, by address: what numba's own vectoriser does not find, or not reliably.

A block is four rows of M by some columns of factors (2 or 4), so that what is read once serves several products.
``fresh`` is an empty tuple where M is x, and one of a number where it is x + e and shall be stored. All addresses,
strides and offsets are in bytes. LLVM splits sixteen lanes into the registers that the processor has, so
sums have the same order on all of them. In ``product``, whose results must be equal on all workers, every operation is
rounded; elsewhere a product and a sum may be one instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

ROWS = 4
LANES = 16
NBYTES = 4 * LANES

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)
_FUSED = ("contract",)
"""Of a product and a sum that may be one instruction."""

Builder = Any
Value = Any


class Lanes(types.Type):  # type: ignore[misc]  # numba is untyped here
    """Numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(Lanes)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


_LANES = Lanes()


@intrinsic
def zeros(context: Any, like: Any) -> Any:
    """A block of zeros with as many columns as there are numbers in a tuple."""
    count = ROWS * like.count

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        return cgutils.pack_array(b, [ir.Constant(_VECTOR, [0.0] * LANES)] * count)

    return types.UniTuple(_LANES, count)(like), generate


@intrinsic
def splats(context: Any, like: Any, p: Any, stride: Any) -> Any:
    """The numbers p[k, c] of a block, each in all lanes; ``like``: the vectors of any such block."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        _, p, stride = arguments
        columns = signature.return_type.count // ROWS
        numbers = [
            _number(b, _place(b, p, stride, ir.Constant(_I64, 4 * c), k)) for k in range(ROWS) for c in range(columns)
        ]
        return cgutils.pack_array(b, [_splat(b, x) for x in numbers])

    return like(like, p, stride), generate


@intrinsic(prefer_literal=True)
def dots(
    context: Any,
    sums: Any,
    fresh: Any,
    x: Any,
    e: Any,
    to: Any,
    stride: Any,
    q: Any,
    width: Any,
    at: Any,
    stream: Any,
) -> Any:
    """sums[k, c] + M[k] q[c], lane by lane, at this offset of every row; ``stream``: see ``_store``."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        sums, _, x, e, to, stride, q, width, at, _ = arguments
        columns = signature.return_type.count // ROWS
        factors = _rows(b, q, width, at, columns)
        found = []
        for k, row in enumerate(_matrix(b, fresh.count > 0, x, e, to, stride, at, stream.literal_value)):
            found += [_plus_product(b, b.extract_value(sums, k * columns + c), row, f) for c, f in enumerate(factors)]
        return cgutils.pack_array(b, found)

    return sums(sums, fresh, x, e, to, stride, q, width, at, stream), generate


@intrinsic
def totals(context: Any, sums: Any, out: Any, stride: Any) -> Any:
    """out[k, c] = the sum of the lanes of sums[k, c]: the upper half added to the lower until one is left."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        sums, out, stride = arguments
        columns = signature.args[0].count // ROWS
        for i in range(ROWS * columns):
            k, c = divmod(i, columns)
            v, width = b.extract_value(sums, i), LANES
            while width > 1:
                width //= 2
                low, high = (_part(b, v, start, width) for start in (0, width))
                v = b.fadd(low, high)
            address = _place(b, out, stride, ir.Constant(_I64, 4 * c), k)
            b.store(b.extract_element(v, ir.Constant(_I32, 0)), b.inttoptr(address, _FLOAT.as_pointer()))
        return context.get_dummy_value()

    return types.void(sums, out, stride), generate


@intrinsic
def accumulate(
    context: Any, p: Any, fresh: Any, x: Any, e: Any, to: Any, stride: Any, q: Any, width: Any, at: Any
) -> Any:
    """q[c] += sum over k of p[k, c] M[k]."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        p, _, x, e, to, stride, q, width, at = arguments
        columns = signature.args[0].count // ROWS
        found = _rows(b, q, width, at, columns)
        for k, row in enumerate(_matrix(b, fresh.count > 0, x, e, to, stride, at, False)):
            found = [_plus_product(b, f, row, b.extract_value(p, k * columns + c)) for c, f in enumerate(found)]
        for c, f in enumerate(found):
            _store(b, f, _place(b, q, width, at, c), False)
        return context.get_dummy_value()

    return types.void(p, fresh, x, e, to, stride, q, width, at), generate


@intrinsic
def less(context: Any, p: Any, x: Any, stride: Any, q: Any, width: Any, at: Any) -> Any:
    """x[k] -= sum over c of p[k, c] q[c]."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        p, x, stride, q, width, at = arguments
        factors, rests = _rows(b, q, width, at, signature.args[0].count // ROWS), _rows(b, x, stride, at, ROWS)
        for c, f in enumerate(factors):
            parts = [b.fmul(f, b.extract_value(p, k * len(factors) + c), flags=_FUSED) for k in range(ROWS)]
            rests = [b.fsub(rest, part, flags=_FUSED) for rest, part in zip(rests, parts, strict=True)]
        for k, rest in enumerate(rests):  # after all loads, since all four rows may be the same one
            _store(b, rest, _place(b, x, stride, at, k), False)
        return context.get_dummy_value()

    return types.void(p, x, stride, q, width, at), generate


@intrinsic(prefer_literal=True)
def product(context: Any, p: Any, out: Any, stride: Any, q: Any, width: Any, at: Any, add: Any, stream: Any) -> Any:
    """out[k] = sum over c of p[k, c] q[c], or that added to it; ``stream``: see ``_store``."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        p, out, stride, q, width, at, _, _ = arguments
        factors = _rows(b, q, width, at, signature.args[0].count // ROWS)
        found = [_sum_of_products(b, p, factors, k) for k in range(ROWS)]
        if add.literal_value:
            found = [b.fadd(old, f) for old, f in zip(_rows(b, out, stride, at, ROWS), found, strict=True)]
        for k, f in enumerate(found):
            _store(b, f, _place(b, out, stride, at, k), stream.literal_value)
        return context.get_dummy_value()

    return types.void(p, out, stride, q, width, at, add, stream), generate


@intrinsic
def number(context: Any, address: Any) -> Any:
    """The float32 at an address."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        return _number(b, arguments[0])

    return types.float32(address), generate


@intrinsic
def put(context: Any, address: Any, x: Any) -> Any:
    """Store a float32."""

    def generate(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        address, x = arguments
        b.store(x, b.inttoptr(address, _FLOAT.as_pointer()))
        return context.get_dummy_value()

    return types.void(address, types.float32), generate


def _place(b: Builder, base: Value, stride: Value, at: Value, k: int) -> Value:
    """The address at an offset of the k-th row; added up so that rows share what changes with the offset."""
    return b.add(b.add(base, at), b.mul(stride, ir.Constant(_I64, k)))


def _rows(b: Builder, base: Value, stride: Value, at: Value, count: int) -> list[Value]:
    addresses = [_place(b, base, stride, at, k) for k in range(count)]
    return [b.load(b.inttoptr(address, _VECTOR.as_pointer()), align=4, typ=_VECTOR) for address in addresses]


def _matrix(
    b: Builder, fresh: bool, x: Value, e: Value, to: Value, stride: Value, at: Value, stream: bool
) -> list[Value]:
    """Four rows of M: x, or x + e, which is stored."""
    rows = _rows(b, x, stride, at, ROWS)
    if fresh:
        rows = [b.fadd(row, kept) for row, kept in zip(rows, _rows(b, e, stride, at, ROWS), strict=True)]
        for k, row in enumerate(rows):
            _store(b, row, _place(b, to, stride, at, k), stream)
    return rows


def _store(b: Builder, v: Value, address: Value, stream: bool) -> None:
    """``stream``: past the cache, which saves reading what is overwritten; the address is a multiple of 64 then."""
    store = b.store(v, b.inttoptr(address, _VECTOR.as_pointer()), align=NBYTES if stream else 4)
    if stream:
        store.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(_I32, 1)]))


def _number(b: Builder, address: Value) -> Value:
    return b.load(b.inttoptr(address, _FLOAT.as_pointer()), typ=_FLOAT)


def _splat(b: Builder, x: Value) -> Value:
    first = b.insert_element(_UNDEFINED, x, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, _UNDEFINED, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _part(b: Builder, v: Value, start: int, width: int) -> Value:
    mask = ir.Constant(ir.VectorType(_I32, width), list(range(start, start + width)))
    return b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask)


def _plus_product(b: Builder, total: Value, x: Value, y: Value) -> Value:
    return b.fadd(total, b.fmul(x, y, flags=_FUSED), flags=_FUSED)


def _sum_of_products(b: Builder, p: Value, factors: list[Value], k: int) -> Value:
    total, *others = [b.fmul(f, b.extract_value(p, k * len(factors) + c)) for c, f in enumerate(factors)]
    for each in others:
        total = b.fadd(total, each)
    return total
