"""What is compared: the user's methods or one visible list, and what is always there to be measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from thriftgrad.aggregate import Aggregator, AllGather, AllReduce, PowerSGD
from thriftgrad.compress import QSGD, Cast, Sign, TopK
from thriftgrad.core import Compressor, ErrorFeedback
from thriftgrad.lab.advise.errors import AdviseError
from thriftgrad.lab.comparison import ComparisonError, read
from thriftgrad.local import LocalMethod
from thriftgrad.recipes import diloco, qsparse_local_sgd
from thriftgrad.train.method import Method

METHODS: tuple[tuple[str, Aggregator[Any] | Compressor[Any, Any] | LocalMethod], ...] = (
    ("4 bits", QSGD(bits=4, norm="linf", per_tensor=False)),
    ("3 bits", QSGD(bits=3, norm="linf", per_tensor=False)),
    ("sign, memory", ErrorFeedback(Sign())),
    ("top 1 %, memory", ErrorFeedback(TopK(fraction=0.01))),
    ("top 0.1 %, memory", ErrorFeedback(TopK(fraction=0.001))),
    ("PowerSGD rank 1", PowerSGD(rank=1)),
    ("PowerSGD rank 2", PowerSGD(rank=2)),
    ("PowerSGD rank 4", PowerSGD(rank=4)),
    ("Qsparse-local, H = 8", qsparse_local_sgd(fraction=0.01, h=8)),
    ("DiLoCo, H = 50", diloco(h=50)),
)
"""Compressors are given the aggregator that is fastest on the link."""

DDP, BF16 = "DDP, float32", "bf16"
"""The exchanges that do not compress: DDP as it comes, and the baseline that counts."""


@dataclass(frozen=True)
class Candidate:
    """One exchange; ``aggregator`` None: DDP's own. ``gap``: steps between two syncs, where workers train apart.

    ``compressor``: what the aggregator carries, where the fastest that can is yet to be chosen.
    """

    label: str
    expression: str
    aggregator: Aggregator[Any] | None
    gap: int | None = None
    compressor: Compressor[Any, Any] | None = None

    @property
    def compresses(self) -> bool:
        """Whether it is none of the two that are there for comparison."""
        return self.label not in (DDP, BF16)


def candidates(texts: Sequence[str]) -> list[Candidate]:
    """The baselines, and the user's methods or the list above. Raises ``AdviseError`` for what is no method."""
    cast = AllReduce(Cast("bf16"))
    given = [(text, _read(text)) for text in dict.fromkeys(texts)] or METHODS
    found = [Candidate(DDP, "DistributedDataParallel", None), Candidate(BF16, repr(cast), cast)]
    return found + [_candidate(label, value) for label, value in given]


def carried_by(candidate: Candidate, aggregator: Aggregator[Any]) -> Candidate:
    """The same method with this aggregator."""
    return replace(candidate, expression=repr(aggregator), aggregator=aggregator)


def _candidate(label: str, value: Any) -> Candidate:
    match value:
        case LocalMethod(aggregator=Aggregator() as aggregator):
            return Candidate(label, repr(value), aggregator, value.schedule.gap())
        case Method():
            return Candidate(label, repr(value.aggregator), value.aggregator)
        case Aggregator():
            return Candidate(label, repr(value), value)
        case Compressor():
            gathered = AllGather(value)
            return Candidate(label, repr(gathered), gathered, compressor=value)
        case LocalMethod():
            raise AdviseError(
                f"advise: workers of an asynchronous server come when they like, so {label!r} has no step to model; "
                "leave it out."
            )
    raise AdviseError(f"advise: {label!r} is no method; try qsgd, power_sgd(rank=2) or TopK(fraction=0.01).")


def _read(text: str) -> Any:
    try:
        return read(text)
    except ComparisonError as error:
        raise AdviseError(str(error)) from error
