"""What a claim is, and how a verdict follows from intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    CONTRADICTED = "contradicted"
    NOT_MEASURABLE = "not measurable here"


@dataclass(frozen=True)
class Table:
    """Numbers behind a finding; every cell is text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Curve:
    """One line of a chart, with an interval around each point or none."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    dots: bool = False  # points that no line joins


@dataclass(frozen=True)
class Chart:
    """A picture of a finding."""

    caption: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A picture of numbers on a grid, a row of values for each of ``rows``."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    def lines(self) -> tuple[tuple[str, ...], ...]:
        """The same numbers as lines of a table."""
        cells = [[f"{value:.3g}" for value in line] for line in self.values]
        return tuple((row, *line) for row, line in zip(self.rows, cells, strict=True))


@dataclass(frozen=True)
class Bars:
    """A picture of what sums are made of: a bar for each of ``bars``, its parts one on top of the other."""

    caption: str
    y: str
    bars: tuple[str, ...]
    parts: tuple[tuple[str, tuple[float, ...]], ...]  # what it is called, and its height in each bar


@dataclass(frozen=True)
class Finding:
    """What was measured: ``ours`` in a sentence, the verdict, and why it is so, in a sentence.

    ``judged``: the methods whose numbers the verdict was read off; tables and charts may show others beside them.
    """

    ours: str
    verdict: Verdict
    why: str
    judged: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart | HeatMap | Bars, ...] = ()


Check = Callable[[Evidence], Finding]
"""How a claim is checked: the evidence, looked at."""


@dataclass(frozen=True)
class Claim:
    """A statement, what the paper says about it (with how far that is known), and how it is checked here."""

    statement: str
    paper: str
    measure: Check


@dataclass(frozen=True)
class Reasons:
    """Why a claim would meet each verdict, a sentence each."""

    holds: str
    contradicted: str
    in_part: str = "Part of it holds, and part does not or is not settled."
    unsettled: str = "The intervals hold the boundary: the seeds do not settle it."

    def of(self, verdict: Verdict) -> str:
        """The reason that goes with a verdict."""
        return {
            Verdict.HOLDS: self.holds,
            Verdict.CONTRADICTED: self.contradicted,
            Verdict.IN_PART: self.in_part,
            Verdict.NOT_MEASURABLE: self.unsettled,
        }[verdict]


def below(measured: Interval, bound: float) -> Verdict:
    """The verdict on "measured < bound"; an interval that holds the bound settles nothing.

    >>> below(Interval(-2.0, -3.0, -1.0, 5), 0.0).value, below(Interval(-2.0, -5.0, 1.0, 5), 0.0).value
    ('holds', 'not measurable here')
    """
    if measured.high < bound:
        return Verdict.HOLDS
    return Verdict.CONTRADICTED if measured.low > bound else Verdict.NOT_MEASURABLE


def within(measured: Interval, low: float, high: float) -> Verdict:
    """The verdict on "measured lies between low and high": the whole interval must, or must not.

    >>> within(Interval(0.2, -0.4, 0.8, 5), -1.0, 1.0).value, within(Interval(3.0, 2.0, 4.0, 5), -1.0, 1.0).value
    ('holds', 'contradicted')
    """
    if low <= measured.low and measured.high <= high:
        return Verdict.HOLDS
    return Verdict.CONTRADICTED if measured.low > high or measured.high < low else Verdict.NOT_MEASURABLE


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on several statements at once: what is not settled counts neither for nor against.

    All that is settled holds: "holds"; none of it: "contradicted"; some: "holds in part". Where part is not
    settled and the rest holds, the claim holds in part.

    >>> together([Verdict.HOLDS, Verdict.CONTRADICTED]).value, together([Verdict.NOT_MEASURABLE]).value
    ('holds in part', 'not measurable here')
    """
    found = set(verdicts)
    if found <= {Verdict.NOT_MEASURABLE}:
        return Verdict.NOT_MEASURABLE
    if len(found) == 1:
        return found.pop()
    return Verdict.CONTRADICTED if found == {Verdict.CONTRADICTED, Verdict.NOT_MEASURABLE} else Verdict.IN_PART


def named(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The labels of pairs, each once.

    >>> named([("ALQ", "QSGDinf"), ("AMQ", "QSGDinf")])
    ('ALQ', 'QSGDinf', 'AMQ')
    """
    return tuple(dict.fromkeys(label for pair in pairs for label in pair))
