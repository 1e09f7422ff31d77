"""What a local method and its schedule stand for: sync steps, memories, bytes a sync and a step, and what is proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate import Aggregator
from thriftgrad.comm import Ledger, simulate
from thriftgrad.core import Compressor, ErrorFeedback, Key, TensorSpec, memories
from thriftgrad.core.compressor import Expression
from thriftgrad.core.feedback import WithMemory
from thriftgrad.lab.comparison import ring_traffic
from thriftgrad.lab.load import Traffic
from thriftgrad.lab.table import human_bytes, significant
from thriftgrad.local import Average, Caller, Hub, LocalMethod, Schedule, tick

STEPS = 10_000
"""Over how many local steps, rounded up to whole gaps, syncs are counted."""

SHOWN = 5
"""How many sync steps are told of."""

Facts = list[tuple[str, str]]


def of_schedule(schedule: Schedule, workers: int) -> Facts:
    """When workers synchronise. Raises ``ValueError`` if the schedule does not suit so many workers."""
    schedule.check(workers)
    if schedule.parts > 1:
        rows = [(f"fragment {part + 1}", _first(schedule, 0, part)) for part in range(schedule.parts)]
    elif schedule.common:
        rows = [("all workers", _first(schedule, 0, 0))]
    else:
        rows = [(f"worker {rank}", _first(schedule, rank, 0)) for rank in range(min(workers, 8))]
    begins = "exchange begins after steps" if schedule.delay_steps else "after steps"
    facts = [("schedule" if i == 0 else "", f"{who} {begins} {steps}") for i, (who, steps) in enumerate(rows)]
    if schedule.delay_steps:
        facts.append(
            (
                "",
                f"the result is used {_steps(schedule.delay_steps)} later, mixed with {schedule.kept:.0%} of the local "
                "model",
            )
        )
    syncs = syncs_per_step(schedule, workers)
    return [
        *facts,
        ("gap", f"at most {_steps(schedule.gap())} between two syncs of a worker, and before its first"),
        ("syncs a local step", f"{significant(syncs)}, mean over workers and the first {_horizon(schedule):,} steps"),
    ]


def _first(schedule: Schedule, rank: int, part: int) -> str:
    """The first sync steps of a worker, or of a part of the model."""
    found = (step for step in range(1, _horizon(schedule) + 1) if part in schedule.starting(step, rank))
    steps = list(islice(found, SHOWN + 1))
    return ", ".join(map(str, steps[:SHOWN])) + (" ..." if len(steps) > SHOWN else "")


def syncs_per_step(schedule: Schedule, workers: int) -> float:
    """How much of the model a worker synchronises in a local step, mean over workers and many steps.

    >>> from thriftgrad.local import Every
    >>> syncs_per_step(Every(8), workers=4)
    0.125
    """
    steps, ranks = _horizon(schedule), 1 if schedule.common else workers
    parts = sum(len(schedule.starting(step, rank)) for step in range(1, steps + 1) for rank in range(ranks))
    return parts / schedule.parts / steps / ranks


def _horizon(schedule: Schedule) -> int:
    return -(-STEPS // schedule.gap()) * schedule.gap()


def of_method(method: LocalMethod, size: int, workers: int) -> Facts:
    """When, by which optimisers, where memory and momentum sit, and what is claimed and proved at this size."""
    return [
        *of_schedule(method.schedule, workers),
        ("inner optimiser", f"{method.inner!r}, on each worker; its state is never exchanged"),
        ("outer optimiser", f"{method.outer!r}, equal on all workers"),
        ("momentum", method.momentum_described),
        ("memory", _memory(method)),
        *[(_where(path), _claim(compressor, size)) for path, compressor in compressors(method.aggregator)],
        *[("theory" if i == 0 else "", sentence) for i, sentence in enumerate(theory(method, size))],
    ]


def compressors(value: Any, path: str = "") -> Iterator[tuple[str, Compressor[Any, Any]]]:
    """The outermost compressors of an aggregator or server, each with the name of its field: up, down, compressor."""
    if isinstance(value, Compressor):
        yield path, value
    elif isinstance(value, tuple):
        for each in value:
            yield from compressors(each, path)
    elif isinstance(value, Expression):
        for field in fields(value):  # type: ignore[arg-type]  # every expression is a dataclass
            # A basis is no compressor that anything is sent through.
            if field.name != "basis":
                yield from compressors(getattr(value, field.name), field.name)


def _where(path: str) -> str:
    return "sent back" if path == "down" else "sent"


def _memory(method: LocalMethod) -> str:
    held = [(path, each) for path, each in compressors(method.aggregator) if each.has_memory]
    places = [f"{'at the server' if path == 'down' else 'on each worker'}{_fading(each)}" for path, each in held]
    if not places and isinstance(method.aggregator, Aggregator):
        places = ["on each worker"] if list(memories((*method.aggregator.forms(TensorSpec((64, 64))),))) else []
    if not places:
        return "none"
    reset = ", emptied by a sync at a lower learning rate" if method.reset_memory_on_lr_drop else ""
    return f"{' and '.join(places)}, in parameter units (learning rate included): what was not sent{reset}"


def _fading(compressor: Compressor[Any, Any]) -> str:
    decay = getattr(compressor, "decay", 1.0)
    return "" if decay == 1 else f" (fading by {decay:g} a sync)"


def _claim(compressor: Compressor[Any, Any], size: int) -> str:
    """The compressor, without its memory, and what it claims at this size."""
    inner = compressor.compressor if isinstance(compressor, WithMemory) else compressor
    delta, omega = inner.contraction(size), inner.variance_bound(size)
    claims = [
        *(["unbiased"] if inner.unbiased else []),
        *([f"contraction delta {delta:.4g}, of Gaussian numbers {_measured(inner, size):.3g}"] if delta else []),
        *([f"variance bound omega {omega:.4g}"] if omega is not None else []),
    ]
    return f"{inner!r}: {', '.join(claims) or 'claims nothing'}"


def _measured(compressor: Compressor[Any, Any], size: int) -> float:
    """1 - |C(x) - x|^2 / |x|^2 for Gaussian x: where delta lies when the worst case does not happen."""
    spec = spec_of(size)
    x = gaussian(spec)
    payload, _ = compressor.compress(x, compressor.init(spec), Key(0))
    left = (compressor.decompress(payload) - x).double().square().sum() / x.double().square().sum()
    return 1 - float(left)


def theory(method: LocalMethod, size: int) -> list[str]:
    """What is proved of the method, and what is not, in sentences."""
    told = []
    for path, compressor in compressors(method.aggregator):
        way = "down" if path == "down" else "up"
        if compressor.has_memory:
            told += _bounded(compressor, method.schedule, size) if path != "down" else []
        elif not compressor.unbiased:
            told.append(f"the way {way} is biased and has no memory: what it drops is lost, and no proof covers that")
        elif omega := compressor.variance_bound(size):
            told.append(f"the way {way} adds no bias, but a variance of up to omega = {omega:.4g} |x|^2 a message")
    if method.momentum_described != "none" or method.outer != Average():
        told.append("momentum, AdamW and outer steps are outside the proofs of local SGD and Qsparse-local-SGD")
    return told


def _bounded(compressor: Compressor[Any, Any], schedule: Schedule, size: int) -> list[str]:
    """The bound on error feedback: |m| <= 2 sqrt(1 - delta) / delta times the longest drift, eta H G."""
    if not isinstance(compressor, ErrorFeedback) or not (delta := compressor.compressor.contraction(size)):
        return []
    bound = significant(2 * sqrt(1 - delta) / delta)
    return [
        f"a worker's memory stays within {bound} eta H G, in the root mean square, where steps are at most eta G: "
        f"2 sqrt(1 - delta) / delta, H = {schedule.gap()}"
    ]


class Sync(NamedTuple):
    """What a worker moves in one sync of the whole model, mean over workers."""

    payload: Traffic
    link: Traffic


def of_bytes(method: LocalMethod, size: int, workers: int) -> RenderableType:
    """Bytes a sync and a local step, up, down and their sum, counted in a simulation, against an fp32 all-reduce."""
    sync, rate = synced(method, size, workers), syncs_per_step(method.schedule, workers)
    ring, whole = ring_traffic(size, torch.float32, workers), Traffic(4 * size, 4 * size)
    title = f"bytes of a worker, of {workers} (payload: what it hands in and gets out; link: what its own wire moves)"
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", title=title)
    table.add_column("")
    for name in ("up", "down", "sum"):
        table.add_column(name, justify="right")
    for book, moved, plain in (("payload", sync.payload, whole), ("link", sync.link, ring)):
        columns = [(moved.up, plain.up), (moved.down, plain.down), (moved.both, plain.both)]
        table.add_row(f"{book}, a sync", *(human_bytes(x) for x, _ in columns))
        table.add_row(f"{book}, a local step", *(human_bytes(x * rate) for x, _ in columns))
        less = [f"{significant(all_reduced / (x * rate))}x" if x * rate else "-" for x, all_reduced in columns]
        table.add_row("  times less than fp32 all-reduce at every step", *less)
    return table


def synced(method: LocalMethod, size: int, workers: int) -> Sync:
    """The bytes of a sync with Gaussian drifts of ``size`` elements."""
    if isinstance(method.aggregator, Aggregator):
        _, ledger = exchanged(method.aggregator, spec_of(size), workers)
        payload = Traffic(ledger.payload_up_bytes, ledger.payload_down_bytes)
        return Sync(payload, Traffic(ledger.up_bytes, ledger.down_bytes))
    return _visited(method, spec_of(size), workers)


def exchanged(aggregator: Aggregator[Any], spec: TensorSpec, workers: int) -> tuple[Ledger, Ledger]:
    """The books of a first exchange, which may be unlike all others, and of the second, like those that follow."""
    first, later = Ledger(), Ledger()
    states = [aggregator.init([spec]) for _ in range(workers)]
    tensors = [[gaussian(spec, rank)] for rank in range(workers)]
    for step, ledger in enumerate((first, later)):
        both = zip(tensors, states, strict=True)
        states = [state for _, state in simulate([aggregator.aggregate(*each, Key(step)) for each in both], ledger)]
    return first, later


def _visited(method: LocalMethod, spec: TensorSpec, workers: int) -> Sync:
    """The mean over all visits to an asynchronous server in the first 2 gaps."""
    models = [{"x": torch.zeros(spec.shape)} for _ in range(workers)]
    hub, ledger, visits = Hub(method, models[0], workers), Ledger(), 0
    callers = [Caller(method, model, rank, workers) for rank, model in enumerate(models)]
    for step in range(1, 2 * method.schedule.gap() + 1):
        due = [rank for rank in range(workers) if method.schedule.due(step, rank)]
        for rank in due:
            callers[rank].step = step
            callers[rank].parameters["x"].sub_(gaussian(spec, rank))
        tick(hub, callers, due, [{"x": 1.0}] * workers, ledger)
        visits += len(due)
    books = list(ledger.per_worker.values())
    up, down, link_up, link_down = (
        sum(each) / visits
        for each in zip(
            *((b.payload_up_bytes, b.payload_down_bytes, b.up_bytes, b.down_bytes) for b in books), strict=True
        )
    )
    return Sync(Traffic(up, down), Traffic(link_up, link_down))


def spec_of(size: int) -> TensorSpec:
    """A matrix of so many elements, as square as can be."""
    side = next(side for side in range(int(sqrt(size)), 0, -1) if size % side == 0)
    return TensorSpec((side, size // side))


def gaussian(spec: TensorSpec, rank: int = 0) -> Tensor:
    """A tensor of standard normal numbers, a worker's own, for bytes that depend on the data."""
    return kernels.normal(spec.numel, seed=rank).view(spec.shape)


def _steps(count: int) -> str:
    return f"{count:,} local step{'s' if count > 1 else ''}"
