"""Arguments of the wrong type: one sentence each, with the function, the setting, the value and the cure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from thriftgrad import theory

LAW = theory.TruncatedNormal(0, 0.1)
GRID = [0, 0.5, 1]

BITS: dict[str, Callable[[Any], Any]] = {
    "alq_levels": lambda bits: theory.alq_levels(LAW, bits, False),
    "alq_levels_by_gradient": lambda bits: theory.alq_levels_by_gradient(LAW, bits, False, steps=1),
    "amq_levels": lambda bits: theory.amq_levels(0.5, bits, False),
    "amq_multiplier": lambda bits: theory.amq_multiplier(LAW, bits, False),
    "lloyd_levels": lambda bits: theory.lloyd_levels(LAW, bits),
}
OF_N_AND_S: list[Callable[[Any, Any], float]] = [
    theory.qsgd_variance_bound,
    theory.nuqsgd_variance_bound,
    theory.qsgd_nonzeros_bound,
    theory.nuqsgd_nonzeros_bound,
    theory.qsgd_code_length_bits,
    theory.nuqsgd_code_length_bits,
]
SIZES: dict[str, Callable[[Any], Any]] = {
    **{function.__name__: partial(function, s=2) for function in OF_N_AND_S},
    "worst_case_variance": lambda n: theory.worst_case_variance(GRID, n),
    "worst_case_vector": lambda n: theory.worst_case_vector(GRID, n),
    "variance_bound": lambda n: theory.variance_bound(GRID, n),
    "alq_code_length_bits": lambda n: theory.alq_code_length_bits(GRID, LAW, n),
}
INTEGERS = {
    **{f"{name} bits": (name, "bits", call) for name, call in BITS.items()},
    **{f"{name} n": (name, "n", call) for name, call in SIZES.items()},
    **{f"{f.__name__} s": (f.__name__, "s", partial(f, 10_000)) for f in OF_N_AND_S},
    "alq_levels_by_gradient steps": (
        "alq_levels_by_gradient",
        "steps",
        lambda steps: theory.alq_levels_by_gradient(LAW, 3, False, steps),
    ),
}
NUMBERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "amq_levels": ("the multiplier", lambda p: theory.amq_levels(p, 3, False)),
    "alq_levels_by_gradient": (
        "the learning rate",
        lambda rate: theory.alq_levels_by_gradient(LAW, 3, False, 1, rate),
    ),
    "exact_variance": ("the scale", lambda scale: theory.exact_variance([1], GRID, scale)),
    "variance_bound": ("q", lambda q: theory.variance_bound(GRID, 9, q)),
    "alq_code_length_bits": ("q", lambda q: theory.alq_code_length_bits(GRID, LAW, 9, q)),
}
MORE_NUMBERS = {
    **{(name, setting): call for name, (setting, call) in NUMBERS.items()},
    ("TruncatedNormal", "mean"): lambda x: theory.TruncatedNormal(x, 0.1),
    ("TruncatedNormal", "std"): lambda x: theory.TruncatedNormal(0, x),
    ("TruncatedNormal", "low"): lambda x: theory.TruncatedNormal(0, 1, x, 1),
    ("TruncatedNormal", "high"): lambda x: theory.TruncatedNormal(0, 1, -1, x),
    ("two_stage_variance", "epsilon_up"): lambda x: theory.two_stage_variance(x, 1, [1], 1),
    ("two_stage_variance", "epsilon_down"): lambda x: theory.two_stage_variance(1, x, [1], 1),
    ("two_stage_variance", "the mean's squared norm"): lambda x: theory.two_stage_variance(1, 1, [1], x),
}
ROWS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("check", "levels"): lambda x: theory.check_levels(x, "check"),
    ("levels", "levels"): theory.signed,
    ("expected_variance", "levels"): lambda x: theory.expected_variance(x, LAW),
    ("exact_variance", "levels"): lambda x: theory.exact_variance([1], x, 1),
    ("exact_variance", "coordinates"): lambda x: theory.exact_variance(x, GRID, 1),
    ("level_probabilities", "levels"): lambda x: theory.level_probabilities(x, LAW),
    ("worst_case_variance", "levels"): lambda x: theory.worst_case_variance(x, 9),
    ("worst_case_vector", "levels"): lambda x: theory.worst_case_vector(x, 9),
    ("variance_bound", "levels"): lambda x: theory.variance_bound(x, 9),
    ("alq_code_length_bits", "levels"): lambda x: theory.alq_code_length_bits(x, LAW, 9),
    ("entropy_bits", "probabilities"): theory.entropy_bits,
    ("two_stage_variance", "the workers' squared norms"): lambda x: theory.two_stage_variance(1, 1, x, 1),
    ("Histogram", "edges"): lambda x: theory.Histogram(x, [1]),
    ("Histogram", "counts"): lambda x: theory.Histogram([0, 1], x),
    ("Histogram.symmetric", "edges"): lambda x: theory.Histogram.symmetric(x, [1]),
    ("Histogram.symmetric", "counts"): lambda x: theory.Histogram.symmetric([0, 1], x),
    ("Mixture", "weights"): lambda x: theory.Mixture([LAW], x),
}
DISTRIBUTIONS: dict[str, Callable[[Any], Any]] = {
    "alq_levels": lambda law: theory.alq_levels(law, 3, False),
    "alq_levels_by_gradient": lambda law: theory.alq_levels_by_gradient(law, 3, False),
    "amq_multiplier": lambda law: theory.amq_multiplier(law, 3, False),
    "lloyd_levels": lambda law: theory.lloyd_levels(law, 3),
    "expected_variance": lambda law: theory.expected_variance(GRID, law),
    "level_probabilities": lambda law: theory.level_probabilities(GRID, law),
    "alq_code_length_bits": lambda law: theory.alq_code_length_bits(GRID, law, 9),
}


def refused(error: type[Exception], sentence: str, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call(*arguments)


@pytest.mark.parametrize(("name", "setting", "call"), INTEGERS.values(), ids=INTEGERS)
@pytest.mark.parametrize(
    ("value", "words"),
    [(2.5, "2.5"), (3.0, "3.0"), ("3", "'3'"), (None, "None"), (True, "True"), ([3], "[3]"), (math.nan, "nan")],
)
def test_no_integers(name: str, setting: str, call: Callable[[Any], Any], value: Any, words: str) -> None:
    refused(TypeError, f"{name}: {setting} must be an integer, got {words}; pass an int.", call, value)
    with pytest.raises(TypeError, match="must be an integer, got"):
        call(np.bool_(True))


@pytest.mark.parametrize(("name", "setting", "call"), INTEGERS.values(), ids=INTEGERS)
def test_integers_out_of_range(name: str, setting: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .*got .*-1.*\.$"):
        call(-1)
    if setting in ("n", "bits"):
        with pytest.raises(ValueError, match=rf"^{name}: .*got .*0.*\.$"):
            call(0)


def test_integers_of_any_type_are_the_same_integer() -> None:
    """Eight bits of NumPy's hold no 2**8, and 32 no square of 100,000."""
    for call in BITS.values():
        for kind, bits in ((np.int8, 8), (np.uint8, 3), (np.int64, 3), (torch.tensor, 3)):
            assert np.asarray(call(kind(bits)) == call(bits)).all()
    levels = theory.alq_levels(LAW, 2, False, "ltq")
    assert theory.alq_levels(LAW, np.uint8(2), False, "ltq").tolist() == levels.tolist()
    for function in OF_N_AND_S:
        assert function(np.int32(10**9), np.int8(4)) == function(10**9, 4)
    assert theory.qsgd_variance_bound(10, np.int32(100_000)) == 10 / 1e10
    for call in SIZES.values():
        assert np.asarray(call(np.int64(1000)) == call(1000)).all()


@pytest.mark.parametrize(("where", "call"), MORE_NUMBERS.items(), ids=map(str, MORE_NUMBERS))
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a", "'a'"),
        ("1", "'1'"),
        (None, "None"),
        (True, "True"),
        (1j, "1j"),
        ([1.0], "[1.0]"),
        (np.ones(1), "array([1.])"),
    ],
    ids=str,
)
def test_no_numbers(where: tuple[str, str], call: Callable[[Any], Any], value: Any, words: str) -> None:
    name, setting = where
    refused(TypeError, f"{name}: {setting} must be a real number, got {words}; pass a float.", call, value)


def test_numbers_of_any_type_are_the_same_number() -> None:
    plain = theory.TruncatedNormal(0.5, 0.25)
    for kind in (np.float32, np.float64, torch.tensor, np.asarray, Fraction):
        law = theory.TruncatedNormal(kind(0.5), kind(0.25))
        assert law == plain
        assert repr(law) == repr(plain)  # plain floats, so that nothing is computed in float32
        assert hash(law) == hash(plain)
        assert theory.exact_variance([3, 4], [0, 1], kind(5)) == 10
        assert theory.amq_levels(kind(0.5), 3, True).tolist() == theory.amq_levels(0.5, 3, True).tolist()
    assert theory.check_levels(torch.tensor([0.0, 0.5, 1.0])).tolist() == GRID
    assert theory.check_levels([0, Fraction(1, 2), 1]).tolist() == GRID
    assert theory.Histogram([0, 0.5, 1], [10**30, 10**30]).m0(0, 0.5) == 0.5


@pytest.mark.parametrize(("where", "call"), ROWS.items(), ids=map(str, ROWS))
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("abc", "'abc'"),
        (None, "None"),
        (["0", "1"], "['0', '1']"),
        ([0, None, 1], "[0, None, 1]"),
        ([0, [1]], "[0, [1]]"),
        ([0, 1j], "[0, 1j]"),
        ([10**400], None),
        ({0.0, 1.0}, "{0.0, 1.0}"),
        (LAW, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_no_rows_of_numbers(where: tuple[str, str], call: Callable[[Any], Any], value: Any, words: str | None) -> None:
    name, setting = where
    quoted = ".{9,50}" if words is None else re.escape(words)
    cure = "pass a sequence or an array of floats"
    with pytest.raises(TypeError, match=f"^{name}: {setting} must be real numbers, got {quoted}; {cure}.$") as caught:
        call(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "setting"), [key for key in ROWS if key[0] in ("Histogram", "Mixture")])
def test_rows_are_flat(name: str, setting: str) -> None:
    call = ROWS[name, setting]
    for value, words in ((1, "1"), ([[0, 1]], "[[0, 1]]"), (np.ones((2, 1)), "array([[1.], [1.]])")):
        refused(
            ValueError,
            f"{name}: {setting} must be a sequence of numbers, got {words}; pass a flat list.",
            call,
            value,
        )


def test_long_values_are_cut_short() -> None:
    for value in (["a"] * 1000, "a" * 1000, np.array(["a"] * 1000), [[0.0] * 1000] * 1000):
        with pytest.raises((TypeError, ValueError)) as caught:
            theory.check_levels(value)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "call"), DISTRIBUTIONS.items(), ids=DISTRIBUTIONS)
def test_no_distributions(name: str, call: Callable[[Any], Any]) -> None:
    for value, words in (
        (None, "None"),
        (np.ones(2), "array([1., 1.])"),
        ("normal", "'normal'"),
        (theory.TruncatedNormal, "<class 'thriftgr...runcatedNormal'>"),
    ):
        with pytest.raises(TypeError) as caught:
            call(value)
        start = f"{name}: the distribution must be a Distribution, such as theory.TruncatedNormal(0, 0.1), got "
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith(".")
        assert words[:10] in str(caught.value)


def test_parts_of_a_mixture() -> None:
    cure = "such as theory.TruncatedNormal(0, 0.1)"
    for parts, words in ((["a"], "'a'"), ([LAW, None], "None"), ("ab", "'a'")):
        sentence = f"Mixture: each part must be a Distribution, {cure}, got {words}."
        refused(TypeError, sentence, theory.Mixture, parts, [1, 1])
    refused(ValueError, "Mixture: there must be at least one part, got [].", theory.Mixture, [], [])
    for parts in (LAW, None, 3):
        with pytest.raises(
            TypeError, match=r"^Mixture: the parts must be a sequence, got .*; put one alone in a list\.$"
        ):
            theory.Mixture(parts, [1])  # type: ignore[arg-type]
