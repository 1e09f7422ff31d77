"""From a setting to a method: the operators of Qsparse-local-SGD, with a memory, a schedule and a downlink."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from thriftgrad.aggregate import Aggregator, AllGather, AllReduce, ParameterServer
from thriftgrad.compress import QSGD, Identity, Nonzeros, RandomK, Sign, TopK
from thriftgrad.core import Compressor, ErrorFeedback, Shrink
from thriftgrad.lab.reproduce.labels import OPS, Setting
from thriftgrad.lab.reproduce.studies import Arm
from thriftgrad.local import AsyncServer, Every, InnerSGD, LocalMethod, Schedule

PLAIN = InnerSGD()
"""Without momentum, as in the theory and the paper's convex experiments."""
NESTEROV = InnerSGD(momentum=0.9, nesterov=True)
"""Local and never exchanged, as in the authors' code."""

FORWARDED, DENSE, UNION, RECOMPRESSED = "forwarded", "dense", "union", "recompressed"
DOWNLINKS = (FORWARDED, DENSE, UNION, RECOMPRESSED)


def operator(setting: Setting, elements: int) -> Compressor[Any, Any]:
    """The compressor without its memory; ``elements``: of the largest tensor, the norm's length where all is sent."""
    support: Compressor[Any, Any] = Identity()
    if setting.support == "TopK":
        support = TopK(k=setting.k)
    elif setting.support == "RandK":
        support = RandomK(k=setting.k, rescale=False)
    if setting.values == "fp32":
        return support
    values: Compressor[Any, Any] = Sign()
    if setting.s is not None:
        values = QSGD(levels=setting.s, bucket=None if setting.scaled or setting.k else elements)
        values = Shrink(values) if setting.scaled else values
    return values if setting.support == "dense" else support >> values


def compressor(setting: Setting, elements: int) -> Compressor[Any, Any]:
    """The operator with its memory. Raises ``ValueError`` where theory forbids it: unscaled, with beta >= 1."""
    found = operator(setting, elements)
    return ErrorFeedback(found) if setting.memory else found


def method(
    setting: Setting,
    elements: int,
    inner: InnerSGD = PLAIN,
    *,
    downlink: str = FORWARDED,
    down_k: int | None = None,
    schedule: Schedule | None = None,
) -> LocalMethod:
    """The method of a setting; BatchNorm's buffers stay local, as in the authors' code.

    ``downlink``: one of ``DOWNLINKS``; what sends all in fp32 is all-reduced, unless it goes through a server.
    ``down_k``: coordinates that a server sends of each tensor where it compresses again, if not as many as a worker.
    ``schedule``: instead of every h steps.
    """
    up = compressor(setting, elements)
    aggregator: Aggregator[Any] | AsyncServer
    if setting.asynchronous:
        aggregator = AsyncServer(up)
    elif downlink == FORWARDED:
        aggregator = AllReduce(up) if up == Identity() else AllGather(up)
    else:
        downs: dict[str, Compressor[Any, Any]] = {DENSE: Identity(), UNION: Nonzeros()}
        if downlink == RECOMPRESSED:
            downs[RECOMPRESSED] = ErrorFeedback(operator(replace(setting, k=down_k or setting.k), elements))
        aggregator = ParameterServer(up, downs[downlink])
    return LocalMethod(aggregator, schedule=schedule or Every(setting.h), inner=inner, buffers="local")


def arm(setting: Setting, elements: int, inner: InnerSGD = PLAIN) -> Arm:
    """An arm of a study under the setting's own label."""
    return Arm(setting.label, method(setting, elements, inner))


def beta(setting: Setting, elements: int) -> float:
    """The variance bound of its quantiser on what is sent; 0 for other values."""
    n = min(setting.k or elements, elements)
    return QSGD(levels=setting.s, bucket=None).variance_bound(n) if setting.s is not None else 0.0


def factorial(
    k: int, levels: tuple[int, ...], gaps: tuple[int, ...], elements: int
) -> tuple[list[Setting], list[Setting], int]:
    """The cells of supports x values x gaps x memory x scaling: those that can be run, those forbidden, all there are.

    Forbidden: unscaled with beta >= 1 and a memory, which would grow without bound. Cells that do not exist are in the
    number alone: memories of what loses nothing, scalings of what is not rounded at random.
    """
    values = [(op, s) for op in OPS for s in (levels if OPS[op][1] == "QSGD" else (None,))]
    found: list[Setting] = []
    forbidden: list[Setting] = []
    for (op, s), h, memory, scaled in product(values, gaps, (True, False), (True, False)):
        if (op == "SGD" and memory) or (s is None and not scaled):
            continue
        setting = Setting(op, k if OPS[op][0] != "dense" else None, s, h, memory, scaled)
        refused = memory and not scaled and beta(setting, elements) >= 1
        (forbidden if refused else found).append(setting)
    return found, forbidden, len(values) * len(gaps) * 4
