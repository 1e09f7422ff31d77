"""Verdicts follow from intervals alone."""

import pytest

from thriftgrad.lab.reproduce.claims import Reasons, Verdict, below, together, within
from thriftgrad.lab.reproduce.intervals import Interval

HOLDS, PART, NOT, UNSETTLED = Verdict.HOLDS, Verdict.IN_PART, Verdict.CONTRADICTED, Verdict.NOT_MEASURABLE


def spanning(low, high):
    return Interval((low + high) / 2, low, high, 5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-2, -1, HOLDS), (1, 2, NOT), (-1, 1, UNSETTLED), (-1, 0, UNSETTLED)]
)
def test_below_zero(low, high, verdict):
    assert below(spanning(low, high), 0) is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 0.5, HOLDS), (-1, 1, HOLDS), (-2, 0.5, UNSETTLED), (-3, 3, UNSETTLED), (1.1, 2, NOT), (-2, -1.1, NOT)],
)
def test_within_one(low, high, verdict):
    assert within(spanning(low, high), -1, 1) is verdict


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([NOT, NOT], NOT),
        ([UNSETTLED], UNSETTLED),
        ([HOLDS, NOT], PART),
        ([HOLDS, UNSETTLED], PART),
        ([NOT, UNSETTLED], NOT),
        ([PART, HOLDS], PART),
        ([PART, UNSETTLED], PART),
        ([HOLDS, NOT, UNSETTLED], PART),
    ],
)
def test_several_together(verdicts, verdict):
    assert together(verdicts) is verdict


def test_each_verdict_has_its_reason():
    reasons = Reasons(holds="h", contradicted="c", in_part="p", unsettled="u")
    assert [reasons.of(each) for each in Verdict] == ["h", "p", "c", "u"]
