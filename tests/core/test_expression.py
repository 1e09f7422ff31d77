"""The language of method texts: what it reads, and what it answers to everything else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Identity,
    LinkModel,
    Partition,
    PowerSGD,
    RandomK,
    TopK,
    parse,
    recipes,
)
from thriftgrad.core.expression import LONGEST, ExpressionError, evaluate, nearest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("qsgd", recipes.qsgd()),
        ("  qsgd(bits=2)\n", recipes.qsgd(bits=2)),
        ("sgd('bf16', momentum=0)", recipes.sgd("bf16", momentum=0)),
        ("TopK(0.5)", TopK(0.5)),
        ("TopK(k=3) >> QSGD(bits=4) >> Identity()", TopK(k=3) >> QSGD(bits=4) >> Identity()),
        ("TopK(k=3) >> (TopK(k=2) >> Identity)", TopK(k=3) >> TopK(k=2) >> Identity()),
        ("AllGather(ErrorFeedback(TopK(fraction=1e-3), decay=1))", AllGather(ErrorFeedback(TopK(fraction=1e-3)))),
        ("AllReduce(RandomK(fraction=0.5, k=None, rescale=False))", AllReduce(RandomK(fraction=0.5, rescale=False))),
        (
            "Partition({'matrix': PowerSGD(rank=4), 'rest': AllReduce(Cast('bf16'))})",
            Partition({"matrix": PowerSGD(rank=4), "rest": AllReduce(Cast("bf16"))}),
        ),
        ("LinkModel(1e8, slowdown=(1, 2.0), latency_seconds=0)", LinkModel(1e8, slowdown=(1, 2.0))),
    ],
)
def test_reads(text: str, value: Any) -> None:
    assert parse(text) == value


def test_literals() -> None:
    assert evaluate("f(-1, 2.5, 'a', (True, None), [1], {'k': -0.5})", {"f": lambda *args: args}) == (
        -1,
        2.5,
        "a",
        (True, None),
        [1],
        {"k": -0.5},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read ''; write it like qsgd(bits=4) or AllGather"),
        ("TopK(", "cannot read 'TopK('"),
        ("a\0b", r"cannot read 'a\x00b'"),
        ("(" * 300 + ")" * 300, "cannot read"),
        (">>".join("1" * 1300), "cannot read"),
        ("x" * (LONGEST + 1), f"{LONGEST + 1} characters are more than the {LONGEST} allowed; shorten it"),
        ("qsdg", "unknown name 'qsdg'; did you mean 'qsgd'"),
        ("QSDG(bits=4)", "unknown name 'QSDG'; did you mean 'QSGD'"),
        ("topk(k=1)", "unknown name 'topk'; did you mean 'top_k'"),
        ("TOPK(k=1)", "unknown name 'TOPK'; did you mean 'TopK'"),
        ("AllGather(powersgd)", "unknown name 'powersgd'; did you mean 'power_sgd'"),
        ("zzz", "unknown name 'zzz'; known: ALQ, ALQ_N, AMQ"),
        ("qsgd(bit=4)", "qsgd has no argument 'bit'; did you mean 'bits'"),
        ("TopK(fractoin=0.1)", "TopK has no argument 'fractoin'; did you mean 'fraction'"),
        ("Identity(level=1)", "Identity has no argument 'level'; known: none"),
        ("top_k(1, 0.9, 3)", "top_k(fraction, momentum): too many positional arguments"),
        ("AllGather()", "AllGather(compressor, mean): missing a required argument: 'compressor'"),
        ("TopK(0.1, fraction=0.1)", "TopK(fraction, k, index_coder): multiple values for argument 'fraction'"),
        ("TopK(k=1) >> 3", ">> joins two compressors, got TopK(k=1) >> 3"),
        ("3 >> TopK(k=1)", ">> joins two compressors, got 3 >> TopK(k=1)"),
        ("3 >> 4", ">> joins two compressors, got 3 >> 4"),
        ("qsgd >> TopK(k=1)", ">> joins two compressors"),
        ("TopK(fraction='x')", "TopK: fraction must be of type float or None, got 'x'"),
        ("QSGD(bits=2.5)", "QSGD: bits must be of type int or None, got 2.5"),
        ("QSGD(bits=True)", "QSGD: bits must be of type int or None, got True"),
        ("Cast(16)", "Cast: to must be of type str, got 16"),
        ("AllGather(qsgd)", "AllGather: compressor must be of type Compressor, got Method("),
        ("AllReduce(3)", "AllReduce: compressor must be of type Compressor, got 3"),
        ("ErrorFeedback(AllGather(Sign))", "ErrorFeedback: compressor must be of type Compressor, got AllGather("),
        ("LocalMomentum(Sign)", "LocalMomentum: aggregator must be of type Aggregator, got Sign()"),
        ("Method(Sign)", "Method: aggregator must be of type Aggregator, got Sign()"),
        ("Partition(3)", "Partition: rules must be of type dict or tuple, got 3"),
        ("LinkModel(1e8, slowdown=[1])", "LinkModel: slowdown must be of type tuple, got [1]"),
        ("sgd(1)", "sgd: precision must be of type str, got 1"),
        ("1 if 2 else 3", "'1 if 2 else 3' is not allowed; use calls of known names"),
        ("().__class__", "'().__class__' is not allowed"),
        ("TopK.k", "'TopK.k' is not allowed"),
        ("TopK(k=1)(2)", "'TopK(k=1)(2)' is not allowed"),
        ("TopK(k=1, k=2)", "TopK is given an argument twice in 'TopK(k=1, k=2)'; give each once."),
        ("TopK(*[1])", "'*[1]' is not allowed"),
        ("TopK(**{'k': 1})", "\"TopK(**{'k': 1})\" is not allowed"),
        ("{[1]: 2}", "'{[1]: 2}' is not allowed"),
        ("{**{}}", "'{**{}}' is not allowed"),
        ("10 ** 10", "'10 ** 10' is not allowed"),
        ("TopK(k=9 * 9)", "'9 * 9' is not allowed"),
        ("f'{1}'", "is not allowed"),
        ("lambda: 1", "'lambda: 1' is not allowed"),
        ("(x := 1)", "is not allowed"),
        ("b'a'", "is not allowed"),
        ("__import__('os')", "unknown name '__import__'"),
    ],
)
def test_refuses_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(words)) as caught:
        parse(text)
    assert str(caught.value).startswith("expression: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("TopK(fraction=0)", ValueError, "fraction must lie in (0, 1], got 0"),
        ("qsgd(bits=9)", ValueError, "bits must lie in 2 ... 8"),
        ("sgd(precision='bf61')", ValueError, "unknown precision 'bf61'; did you mean 'bf16'"),
        ("AllReduce(TopK(k=1))", TypeError, "AllReduce needs a linear compressor"),
        ("QSGD(bits=4) >> TopK(k=1)", TypeError, "carries integer symbols"),
        ("Partition({'matrix': TopK(k=1)})", TypeError, "the rule 'matrix' needs an aggregator"),
        ("signum(momentum=1)", ValueError, "beta must lie in [0, 1), got 1"),
        ("qsgd(momentum=-1)", ValueError, "momentum must lie in [0, 1), got -1"),
        (
            "Method(AllGather(Sign), momentum=0, nesterov=True)",
            ValueError,
            "nesterov=True has no effect without momentum",
        ),
        ("Method(AllGather(Sign), learning_rate_scale=0)", ValueError, "learning_rate_scale must be positive, got 0"),
    ],
)
def test_the_errors_of_constructors_come_through(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        parse(text)
    assert not isinstance(caught.value, ExpressionError)


NAMES = ["TopK", "QSGD", "qsgd", "AllGather", "Partition", "k", "bits", "lambda"]
LITERALS = ["1", "0.5", "'rest'", "None", "True"]
words = st.one_of(st.sampled_from(NAMES), st.sampled_from(LITERALS), st.sampled_from("()[]{}:,=-*.\\"), st.just(">>"))


def error_of(text: str) -> Exception | None:
    try:
        parse(text)
    except (ValueError, TypeError) as error:
        return error
    return None


@given(st.one_of(st.text(max_size=30), st.lists(words, max_size=12).map(" ".join)))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_text_is_a_value_or_a_clear_error(text: str) -> None:
    error = error_of(text)
    assert error is None or (str(error) and type(error) in (ExpressionError, ValueError, TypeError))


def test_an_expression_error_is_a_value_error() -> None:
    assert issubclass(ExpressionError, ValueError)


def test_nearest() -> None:
    assert nearest("SGD", ["sgd", "qsgd"]) == "did you mean 'sgd'"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
    assert nearest("xyz", []) == "known: none"
