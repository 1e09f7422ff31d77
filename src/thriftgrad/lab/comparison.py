"""A comparison, resolved: what was asked for, what follows from it, and the folder that remembers both."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thriftgrad
from thriftgrad import tasks
from thriftgrad.aggregate import Aggregator
from thriftgrad.comm import Ledger, LinkModel, simulate
from thriftgrad.compress import Cast, Identity
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab import load as records
from thriftgrad.tasks.task import Task
from thriftgrad.train.method import Method
from thriftgrad.vocabulary import parse

RESOLVED = "comparison.json"


class ComparisonError(ValueError):
    """A comparison that cannot be run as asked."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; a folder holds the runs of exactly one request."""

    methods: tuple[str, ...]
    task: str
    workers: int
    seeds: int
    steps: int | None
    links: tuple[str, ...]
    target: float | None
    tune: bool
    processes: bool
    data_dir: str | None

    def __post_init__(self) -> None:
        for name, unit in (("workers", "worker"), ("seeds", "seed")):
            if getattr(self, name) < 1:
                raise ComparisonError(f"compare: it takes at least one {unit}, got {name}={getattr(self, name)}.")
        if self.steps is not None and self.steps < 1:
            raise ComparisonError(f"compare: it takes at least one step, got steps={self.steps}.")
        if not self.methods:
            raise ComparisonError("compare: name at least one method, such as sgd, qsgd or power_sgd(rank=4).")

    @property
    def digest(self) -> str:
        """Eight characters that differ between requests."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def default_folder(self) -> Path:
        """Where its runs go if nobody says: the same request finds them again."""
        return Path("runs") / f"{self.task}-{self.digest}"


@dataclass(frozen=True)
class Comparison:
    """A request with everything that follows from it, ready to run."""

    request: Request
    configuration: records.Configuration
    task: Task
    methods: dict[str, Method]  # by slug
    links: dict[str, LinkModel]  # by label

    def with_tuning(self, tuned: dict[str, records.Tuning], rates: dict[str, float]) -> Comparison:
        """The comparison with the learning rates that tuning chose."""
        rows = tuple(
            replace(row, learning_rate=rates[row.slug], tuning=tuned[row.slug]) for row in self.configuration.methods
        )
        return replace(self, configuration=replace(self.configuration, methods=rows))

    def save(self, folder: Path) -> None:
        """Write the resolved configuration, whole or not at all."""
        text = json.dumps(asdict(self.configuration) | {"request": asdict(self.request)}, indent=1)
        beside = folder / f".{RESOLVED}.{os.getpid()}"
        beside.write_text(text)
        beside.replace(folder / RESOLVED)


def resolve(request: Request, command: str = "") -> Comparison:
    """Load the task, read the methods and links, and write down what was chosen for the user.

    Raises ``ComparisonError``, or the error of the part that does not read.
    """
    methods = {text: as_method(text) for text in request.methods}
    links = {text: LinkModel.of(text) for text in request.links}
    task = tasks.load(request.task, request.data_dir)
    if request.target is not None:
        task = replace(task, target=request.target)
    slugs = _slugs(list(methods))
    parameters = [p for p in task.build(0).parameters() if p.requires_grad]
    specs = [TensorSpec.of(p, str(i)) for i, p in enumerate(parameters)]
    rows = tuple(
        records.Method(
            label=text,
            slug=slugs[text],
            expression=repr(method),
            paper=method.paper or None,
            momentum=f"{method.momentum} {method.momentum_place}" if method.momentum else method.momentum_place,
            learning_rate=task.learning_rate * method.learning_rate_scale,
            tuning=None,
        )
        for text, method in methods.items()
    )
    configuration = records.Configuration(
        schema=records.SCHEMA,
        thriftgrad=thriftgrad.__version__,
        task=records.Task(
            task.name, task.description, task.quality, task.higher_is_better, task.target, dict(task.provenance)
        ),
        parameters=sum(p.numel() for p in parameters),
        mode="processes" if request.processes else "simulated",
        workers=request.workers,
        seeds=tuple(range(request.seeds)),
        steps=request.steps or task.steps,
        batch_size=task.batch_size,
        evaluate_every=task.evaluate_every,
        links=tuple(
            records.Link(
                text,
                link.up_bits_per_second,
                link.down_bits_per_second or link.up_bits_per_second,
                link.latency_seconds,
            )
            for text, link in links.items()
        ),
        baseline_bytes=records.Baseline(
            fp32=ring_traffic(Identity(), specs, request.workers),
            bf16=ring_traffic(Cast("bf16"), specs, request.workers),
        ),
        methods=rows,
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "platform": platform.platform(),
            "cpu": cpu_name(),
        },
        threads=1,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
    )
    return Comparison(request, configuration, task, {slugs[text]: method for text, method in methods.items()}, links)


def prepare(comparison: Comparison, folder: Path) -> Comparison:
    """Make the folder and write the configuration there, or take up the comparison that was begun in it.

    Raises ``ComparisonError`` if the folder cannot be written or holds another comparison.
    """
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        path = folder / RESOLVED
        if not path.exists():
            comparison.save(folder)
            return comparison
        found = json.loads(path.read_text())
    except OSError as error:
        raise ComparisonError(
            f"compare: cannot write to {folder} ({error.strerror}); choose another folder with --out."
        ) from error
    except ValueError as error:
        raise ComparisonError(f"compare: {path} is corrupt ({error}); choose another folder with --out.") from error
    asked, there = json.loads(json.dumps(asdict(comparison.request))), found.get("request", {})
    different = [
        f"{name} is {there.get(name)!r} there and {asked[name]!r} here"
        for name in asked
        if asked[name] != there.get(name)
    ]
    if different:
        raise ComparisonError(
            f"compare: {folder} holds another comparison ({'; '.join(different)}); choose another folder with --out."
        )
    configuration, version = records.read_configuration(folder), found["thriftgrad"]
    if version != thriftgrad.__version__:
        raise ComparisonError(
            f"compare: {folder} was begun by thriftgrad {version} and this is {thriftgrad.__version__}; "
            "choose another folder with --out."
        )
    return replace(comparison, configuration=configuration)


def as_method(text: str) -> Method:
    """A method from its text: a recipe, a Method, or an aggregator (then with momentum 0.9 after aggregation).

    Raises ``ComparisonError`` for an expression that is neither.
    """
    value: Any = parse(text)
    if isinstance(value, Aggregator):
        return Method(value)
    if isinstance(value, Method):
        return value
    raise ComparisonError(
        f"compare: {text!r} is no method but a {type(value).__name__}; wrap a compressor in an aggregator, as in "
        f"AllGather({value!r})."
    )


def ring_traffic(compressor: Any, specs: Sequence[TensorSpec], workers: int) -> records.Traffic:
    """Link bytes of one worker in a ring all-reduce of these tensors."""
    from thriftgrad.aggregate import AllReduce

    ledger, aggregator = Ledger(), AllReduce(compressor)
    comms = [aggregator.aggregate([s.zeros() for s in specs], aggregator.init(specs), Key(0)) for _ in range(workers)]
    simulate(comms, ledger)
    return records.Traffic(ledger.up_bytes, ledger.down_bytes)


def _slugs(labels: list[str]) -> dict[str, str]:
    """File names: the label's letters and digits, numbered where two would be equal."""
    slugs: dict[str, str] = {}
    for label in labels:
        plain = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:60] or "method"
        taken = sum(slug == plain or slug.startswith(f"{plain}--") for slug in slugs.values())
        slugs[label] = f"{plain}--{taken + 1}" if taken else plain
    return slugs


def cpu_name() -> str:
    """The processor, as the machine calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
