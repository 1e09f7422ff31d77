"""One language for the command line, configuration files, labels and tests: ``parse(repr(x)) == x``."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isabstract
from typing import Any

from thriftgrad import aggregate, compress, local, recipes
from thriftgrad.comm import LinkModel
from thriftgrad.compress import qsparse
from thriftgrad.core import ErrorFeedback, Shrink
from thriftgrad.core.compressor import Expression
from thriftgrad.core.expression import evaluate
from thriftgrad.train.method import Method
from thriftgrad.wire import coders


def names() -> dict[str, Callable[..., Any]]:
    """Everything an expression may call: compressors, coders, aggregators, schedules, wrappers, recipes and links."""
    words: dict[str, Callable[..., Any]] = {cls.__name__: cls for cls in (ErrorFeedback, Shrink, Method, LinkModel)}
    for module in (compress, coders, aggregate, local):
        words |= {name: thing for name, thing in vars(module).items() if _is_constructor(thing)}
    for named in (qsparse, recipes):
        words |= {name: getattr(named, name) for name in named.__all__}
    return words


def _is_constructor(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, Expression) and not isabstract(thing)


def parse(text: str) -> Any:
    """The compressor, aggregator, method or link that an expression stands for; a bare name is called as it is.

    Raises ``ExpressionError`` (a ``ValueError``) for anything else; an unknown name or argument is answered with the
    nearest right one.

    >>> parse("TopK(fraction=0.01) >> QSGD(bits=4)")
    TopK(fraction=0.01) >> QSGD(bits=4)
    >>> parse("qsgd").aggregator
    AllGather(compressor=QSGD(bits=4))
    >>> parse("AllGather(QSDG(bits=4))")
    Traceback (most recent call last):
        ...
    thriftgrad.core.expression.ExpressionError: expression: unknown name 'QSDG'; did you mean 'QSGD'.
    """
    return evaluate(text, names())
