"""What the public functions ask of the types of their arguments: a value, or one sentence on what it is instead."""

from __future__ import annotations

import operator
import reprlib
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def integer(value: Any, setting: str, name: str) -> int:
    """The value as an int, whichever integer type it has; ``TypeError`` for anything else, True and False too."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: {setting} must be an integer, got {shown(value)}; pass an int.")


def number(value: Any, setting: str, name: str) -> float:
    """The value as a float; ``TypeError`` for what is no single real number, or True or False."""
    array = _real(value)
    if array is None or array.ndim or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: {setting} must be a real number, got {shown(value)}; pass a float.")
    return float(array)


def numbers(values: ArrayLike, setting: str, name: str) -> NDArray[np.float64]:
    """A copy of the values as float64, in their shape; ``TypeError`` if one of them is no real number."""
    array = _real(values)
    if array is None:
        raise TypeError(
            f"{name}: {setting} must be real numbers, got {shown(values)}; pass a sequence or an array of floats."
        )
    return array


def row(values: ArrayLike, setting: str, name: str) -> NDArray[np.float64]:
    """As :func:`numbers`, of one dimension; ``ValueError`` for another shape."""
    array = numbers(values, setting, name)
    if array.ndim != 1:
        raise ValueError(f"{name}: {setting} must be a sequence of numbers, got {shown(values)}; pass a flat list.")
    return array


def shown(value: object) -> str:
    """The value as a message quotes it: short, and on one line."""
    return " ".join(reprlib.repr(value).split())


def _real(values: Any) -> NDArray[np.float64] | None:
    """float64, or None for what holds something else than real numbers; texts and None are none of them."""
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":  # integers beyond 64 bits, fractions
            return array.astype(np.float64) if all(isinstance(each, Real) for each in array.flat) else None
        return array.astype(np.float64) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged, or not NumPy's to read
        return None
