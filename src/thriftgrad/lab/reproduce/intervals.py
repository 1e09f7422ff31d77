"""Means over seeds with 95 % confidence intervals; verdicts are read off the intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import fmean, stdev

# Student's t at 97.5 %, for 1 ... 30 degrees of freedom.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Interval:
    """A mean over ``count`` seeds and where the true one lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 3) -> str:
        """The mean with its interval, in significant digits.

        >>> Interval(1.2345, 1.1, 1.37, 5).text()
        '1.23 [1.1, 1.37]'
        """
        return f"{self.mean:.{digits}g} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values and its 95 % interval by Student's t; one value alone has an infinite one.

    >>> interval([1.0, 2.0, 3.0]).text()
    '2 [-0.484, 4.48]'

    Raises ``ValueError`` for no value.
    """
    if not values:
        raise ValueError("interval: there is no value to take the mean of; give at least one.")
    mean, freedom = fmean(values), len(values) - 1
    if freedom == 0:
        return Interval(mean, -inf, inf, 1)
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
    half = t * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The geometric mean of paired ratios above / below with its 95 % interval; all values are positive.

    >>> ratio([2.0, 4.0], [1.0, 2.0])
    Interval(mean=2.0, low=2.0, high=2.0, count=2)
    """
    logs = interval([log(a / b) for a, b in zip(above, below, strict=True)])
    return Interval(exp(logs.mean), exp(logs.low), exp(min(logs.high, 700.0)), logs.count)
