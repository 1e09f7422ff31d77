"""One grammar for the labels of sparse, quantised, local methods: ``op[k=...,s=...]·H=...·EF±·sync|async``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Support = Literal["dense", "TopK", "RandK"]
Values = Literal["fp32", "QSGD", "Sign"]

OPS: dict[str, tuple[Support, Values]] = {
    "SGD": ("dense", "fp32"),
    "QSGD": ("dense", "QSGD"),
    "Sign": ("dense", "Sign"),
    "TopK": ("TopK", "fp32"),
    "QTopK": ("TopK", "QSGD"),
    "SignTopK": ("TopK", "Sign"),
    "RandK": ("RandK", "fp32"),
    "QRandK": ("RandK", "QSGD"),
    "SignRandK": ("RandK", "Sign"),
}
"""The operators by the paper's names: which coordinates are sent, and how their values are."""

_LABEL = re.compile(
    r"(?P<op>\w+)(?:\[(?:k=(?P<k>\d+))?,?(?:s=(?P<s>\d+))?(?P<unscaled>,unscaled)?\])?"
    r"·H=(?P<h>\d+)·EF(?P<memory>[+-])·(?P<mode>sync|async)"
)
_LEGEND = re.compile(r"(?P<op>\w+?)(?:_(?P<h>\d+)L)?")


@dataclass(frozen=True)
class Setting:
    """A method as its label says it.

    ``op``: one of ``OPS``. ``k``: coordinates sent of each tensor, of sparse operators. ``s``: levels, of quantising
    ones, which are ``scaled`` by 1 / (1 + beta) unless the label says "unscaled". ``h``: local steps between two syncs
    of a worker, the gap. ``memory``: error feedback, EF+ or EF-. ``asynchronous``: each worker has sync steps of its
    own.

    Raises ``ValueError`` for another operator, or k or s where the operator has none, or has one and none is given.

    >>> Setting("QTopK", k=32, s=15, h=4).label
    'QTopK[k=32,s=15]·H=4·EF+·sync'
    >>> Setting("SGD", h=8, memory=False).label
    'SGD·H=8·EF-·sync'
    """

    op: str
    k: int | None = None
    s: int | None = None
    h: int = 1
    memory: bool = True
    scaled: bool = True
    asynchronous: bool = False

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"label: there is no operator {self.op!r}; there are {', '.join(OPS)}.")
        for name, given, needed in (
            ("k", self.k, self.support != "dense"),
            ("s", self.s, self.values == "QSGD"),
        ):
            if (given is not None) != needed:
                raise ValueError(f"label: {self.op} has {'a' if needed else 'no'} {name}, got {name}={given}.")
        if not self.scaled and self.values != "QSGD":
            raise ValueError(f"label: {self.op} has no factor 1 / (1 + beta) to leave out; drop unscaled.")

    @property
    def support(self) -> Support:
        """Which coordinates are sent."""
        return OPS[self.op][0]

    @property
    def values(self) -> Values:
        """How what is sent is rounded."""
        return OPS[self.op][1]

    @property
    def label(self) -> str:
        """The label."""
        inside = [f"{name}={value}" for name, value in (("k", self.k), ("s", self.s)) if value is not None]
        inside += [] if self.scaled else ["unscaled"]
        brackets = f"[{','.join(inside)}]" if inside else ""
        sign, mode = "+" if self.memory else "-", "async" if self.asynchronous else "sync"
        return f"{self.op}{brackets}·H={self.h}·EF{sign}·{mode}"


def read_label(label: str) -> Setting:
    """The setting that a label says: ``read_label(setting.label) == setting``.

    >>> read_label("SignTopK[k=1000]·H=4·EF+·sync")
    Setting(op='SignTopK', k=1000, s=None, h=4, memory=True, scaled=True, asynchronous=False)

    Raises ``ValueError`` for a text that is no label.
    """
    found = _LABEL.fullmatch(label)
    if found is None:
        raise ValueError(f"label: {label!r} is none; write op[k=...,s=...]·H=...·EF+·sync, say.")
    k, s = (int(found[name]) if found[name] else None for name in ("k", "s"))
    return Setting(
        found["op"],
        k,
        s,
        int(found["h"]),
        memory=found["memory"] == "+",
        scaled=not found["unscaled"],
        asynchronous=found["mode"] == "async",
    )


def read_legend(legend: str, k: int, s: int = 15) -> Setting:
    """What a legend of the paper's figures says, its ``_4L`` being the gap; memory is on, workers are in step.

    >>> read_legend("SignTopK_4L", k=1000).label
    'SignTopK[k=1000]·H=4·EF+·sync'

    The meaning of ``_4L`` is recalled, and agrees with the sync period of the authors' code. Raises ``ValueError`` for
    another operator. Basu et al., 2019, arXiv:1906.02367, which states neither k nor s there.
    """
    found = _LEGEND.fullmatch(legend)
    op, h = (found["op"], int(found["h"] or 1)) if found else (legend, 1)
    if op not in OPS:
        raise ValueError(f"label: the legend {legend!r} names no operator; there are {', '.join(OPS)}.")
    support, values = OPS[op]
    memory = (support, values) != ("dense", "fp32")
    return Setting(op, k if support != "dense" else None, s if values == "QSGD" else None, h, memory)
