"""How everything here is compiled, and the sizes that kernels share."""

from __future__ import annotations

from typing import Any

import numpy as np

COMPILED: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Strict IEEE arithmetic: no ``fastmath`` and no contraction to FMA, so that the bits are the reference's.

What makes loops fast here: unsigned indices, because to signed ones belongs the wrap-around of negative indices, a
branch; sums, differences and shifts of 32-bit integers cast back to 32 bits, of which numba makes 64 and so halves the
lanes; and pointers where functions call each other, because numba counts references to arrays, atomically.
"""

INLINED: dict[str, Any] = {**COMPILED, "forceinline": True}
"""For what is called for single elements."""

CACHED: dict[str, Any] = {**COMPILED, "cache": True}
"""For what Python calls. Numba looks at the file of the function that is called and not at those it imports: who edits
one of these runs ``make forget-kernels``, or sets NUMBA_CACHE_DIR to a new folder, as the tests do."""

U, I, F = np.uint64, np.int32, np.float32  # noqa: E741  # short, because every operation is cast

LINE = 16
"""float32 in a cache line."""

CHUNK = 128
"""Elements that take their random bits from the same 16 Philox counters."""

TILE = 10 * CHUNK
"""The most elements that go through all stages together, so that what is in between stays in the first-level cache.

Tiles are multiples of a packed chunk: 512 symbols of one bit, 256 of two, 128 of four, 5 in base 3, 8 of other widths.
"""

SLICE = 40 * CHUNK
"""Slices begin at multiples of this, which all tiles divide."""
