"""Text to values: constructor calls, ``>>`` and literals, read from a syntax tree and never evaluated as Python."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from thriftgrad.core.compressor import Expression

LONGEST = 4000


class ExpressionError(ValueError):
    """Text that is no expression of the vocabulary."""


def evaluate(text: str, vocabulary: Mapping[str, Callable[..., Any]]) -> Any:
    """The value of an expression such as ``ErrorFeedback(TopK(fraction=0.01) >> Sign())``.

    Allowed: calls of names in the vocabulary (a bare name is called without arguments), ``>>``, numbers, strings,
    booleans, None, tuples, lists and dictionaries. Everything else raises ``ExpressionError``, with the nearest right
    name where a name is unknown and the right type where an argument has another; the errors of the constructors
    themselves come through.
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"expression: {len(text)} characters are more than the {LONGEST} allowed; shorten it.")
    try:
        if "\0" in text:
            raise SyntaxError  # not what every version of ast.parse raises
        tree = ast.parse(text.strip(), mode="eval")
        return _value(tree.body, text, vocabulary)
    except (SyntaxError, RecursionError, MemoryError):
        raise ExpressionError(
            f"expression: cannot read {text!r}; write it like qsgd(bits=4) or AllGather(QSGD(bits=4, bucket=512))."
        ) from None


def _value(node: ast.expr, text: str, vocabulary: Mapping[str, Callable[..., Any]]) -> Any:
    def value(child: ast.expr) -> Any:
        return _value(child, text, vocabulary)

    match node:
        case ast.Constant(constant) if constant is None or type(constant) in (int, float, str, bool):
            return constant
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.Tuple(elements):
            return tuple(value(each) for each in elements)
        case ast.List(elements):
            return [value(each) for each in elements]
        case ast.Dict(keys, values) if all(isinstance(k, ast.Constant) for k in keys):
            return _dictionary([(value(k), value(v)) for k, v in zip(keys, values, strict=True) if k is not None])
        case ast.BinOp(left, ast.RShift(), right):
            first, second = value(left), value(right)
            if isinstance(first, int):
                raise ExpressionError(f"expression: >> joins two compressors, got {first!r} >> {second!r}.")
            try:
                return first >> second
            except TypeError as error:
                if "unsupported operand" not in str(error):
                    raise
                raise ExpressionError(f"expression: >> joins two compressors, got {first!r} >> {second!r}.") from None
        case ast.Name(name):
            return _call(name, (), {}, vocabulary)
        case ast.Call(ast.Name(name), args, keywords) if all(k.arg for k in keywords):
            if len({k.arg for k in keywords}) < len(keywords):
                raise ExpressionError(f"expression: {name} is given an argument twice in {text!r}; give each once.")
            given = {k.arg: value(k.value) for k in keywords if k.arg is not None}
            return _call(name, tuple(value(each) for each in args), given, vocabulary)
    raise ExpressionError(
        f"expression: {ast.get_source_segment(text.strip(), node) or text!r} is not allowed; "
        "use calls of known names, >>, numbers, strings, tuples and dictionaries."
    )


def _call(name: str, args: tuple[Any, ...], given: dict[str, Any], vocabulary: Mapping[str, Callable[..., Any]]) -> Any:
    if name not in vocabulary:
        raise ExpressionError(f"expression: unknown name {name!r}; {nearest(name, vocabulary)}.")
    function = vocabulary[name]
    signature = inspect.signature(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    names = [parameter.name for parameter in parameters]
    for argument in given:
        if argument not in names:
            raise ExpressionError(f"expression: {name} has no argument {argument!r}; {nearest(argument, names)}.")
    try:
        bound = signature.replace(parameters=parameters).bind(*args, **given)
    except TypeError as error:
        raise ExpressionError(f"expression: {name}({', '.join(names)}): {error}.") from None
    hints = get_type_hints(function)
    for argument, value in bound.arguments.items():
        kinds = _kinds(hints.get(argument, object))
        if not {object, _family(type(value))} & {*kinds} and not (type(value) is int and float in kinds):
            wanted = " or ".join(kind.__name__.replace("NoneType", "None") for kind in kinds)
            raise ExpressionError(f"expression: {name}: {argument} must be of type {wanted}, got {value!r}.")
    return function(*args, **given)


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a parameter takes, each standing for its family."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(dict.fromkeys(kind for each in get_args(hint) for kind in _kinds(each)))
    if get_origin(hint) is Literal:
        return tuple(dict.fromkeys(type(each) for each in get_args(hint)))
    kind = get_origin(hint) or hint
    return (dict,) if kind is Mapping else (_family(kind),)


def _family(kind: type) -> type:
    """Compressor, Aggregator, Method ... for their subclasses; every other type stands for itself.

    Coarse on purpose: AllReduce itself says best why it refuses a compressor that is not linear.
    """
    return next((base for base in kind.__mro__ if Expression in base.__bases__), kind)


def _dictionary(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The items as a dictionary, none lost."""
    keys = [key for key, _ in items]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ExpressionError(f"expression: the key {twice[0]!r} is given twice; keep one of them.")
    return dict(items)


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice on a name that is not known.

    >>> nearest("qsdg", ["qsgd", "sgd"])
    "did you mean 'qsgd'"
    """
    known = list(known)
    lower = {each.lower(): each for each in known}
    close = get_close_matches(name, known, n=1) or [lower[each] for each in get_close_matches(name.lower(), lower, n=1)]
    return f"did you mean {close[0]!r}" if close else f"known: {', '.join(sorted(known)) or 'none'}"
