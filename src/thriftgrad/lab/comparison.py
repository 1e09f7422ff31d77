"""A comparison, resolved: what was asked for, what follows from it, and the folder that remembers both."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thriftgrad
from thriftgrad import tasks
from thriftgrad.aggregate import Aggregator
from thriftgrad.comm import LinkModel
from thriftgrad.comm.requests import AllReduceRequest
from thriftgrad.core import Compressor, TensorSpec
from thriftgrad.lab import load as records
from thriftgrad.lab.shape import Shape
from thriftgrad.lab.training import PLAIN
from thriftgrad.lab.whole_file import written_whole
from thriftgrad.local import Hub, LocalMethod, Schedule
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
    on_sgd: bool = False
    lab: str | None = None

    def __post_init__(self) -> None:
        for name, unit in (("workers", "worker"), ("seeds", "seed")):
            if getattr(self, name) < 1:
                raise ComparisonError(f"compare: it takes at least one {unit}, got {name}={getattr(self, name)}.")
        if self.steps is not None and self.steps < 1:
            raise ComparisonError(f"compare: it takes at least one step, got steps={self.steps}.")
        if self.target is not None and not isfinite(self.target):
            raise ComparisonError(f"compare: the target is a quality to reach, got {self.target}.")
        if not self.methods:
            raise ComparisonError("compare: name at least one method, such as sgd, qsgd or power_sgd(rank=4).")
        if self.on_sgd and self.tune:
            raise ComparisonError(
                "compare: --on-sgd trains by plain SGD at the task's learning rate, got --tune too; leave one out."
            )
        if self.on_sgd and self.lab:
            raise ComparisonError(
                f"compare: --lab measures how long methods take to train, and with --on-sgd none does, got --lab "
                f"{self.lab} too; leave one out."
            )

    @property
    def digest(self) -> str:
        """Eight characters that differ between requests."""
        stated = asdict(self)
        for name in ("on_sgd", "lab"):  # which earlier versions had not
            if not stated[name]:
                del stated[name]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:8]

    def default_folder(self) -> Path:
        """Where its runs go if nobody says: the same request finds them again."""
        return Path("runs") / f"{self.task}-{self.digest}"


@dataclass(frozen=True)
class Comparison:
    """A request with everything that follows from it, ready to run."""

    request: Request
    configuration: records.Configuration
    task: Task
    methods: dict[str, Method | LocalMethod]  # by slug
    links: dict[str, LinkModel]  # by label

    def with_tuning(self, tuned: dict[str, records.Tuning], rates: dict[str, float]) -> Comparison:
        """The comparison with the learning rates that tuning chose."""
        rows = tuple(
            replace(row, learning_rate=rates[row.slug], tuning=tuned[row.slug]) for row in self.configuration.methods
        )
        return replace(self, configuration=replace(self.configuration, methods=rows))

    def with_latency(self, seconds: float) -> Comparison:
        """The comparison whose links are modelled with the latency that was measured."""
        rows = tuple(replace(link, latency_seconds=seconds) for link in self.configuration.links)
        links = {label: replace(link, latency_seconds=seconds) for label, link in self.links.items()}
        return replace(self, configuration=replace(self.configuration, links=rows), links=links)

    def save(self, folder: Path) -> None:
        """Write the resolved configuration, whole or not at all."""
        text = json.dumps(asdict(self.configuration) | {"request": asdict(self.request)}, indent=1)
        with written_whole(folder / RESOLVED) as file:
            file.write_text(text)


def resolve(request: Request, command: str = "") -> Comparison:
    """Load the task, read the methods and links, and write down what was chosen for the user.

    Raises ``ComparisonError``, or the error of the part that does not read or does not fit the task.
    """
    methods = {text: as_method(text) for text in request.methods}
    if request.lab is None:
        links = {text: as_link(text) for text in request.links}
    else:
        links = {request.lab: Shape.of(request.lab).modelled(latency_seconds=0.0)}  # which is measured later
    task = tasks.load(request.task, request.data_dir)
    if request.target is not None:
        task = replace(task, target=request.target)
    task.batches(0, 0, request.workers)  # more workers than samples are refused before anything is written
    model = task.build(0)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for text, method in methods.items():
        steps = request.steps or task.steps
        if isinstance(method, LocalMethod):
            _check_local(text, method, request, steps)
            if method.asynchronous:
                Hub(method, parameters, request.workers, buffers=dict(model.named_buffers()))
        try:
            method.check([TensorSpec.of(p, name) for name, p in parameters.items()], request.workers, steps)
        except ValueError as error:
            raise ComparisonError(f"compare: {text}: {error}") from error
    elements = sum(p.numel() for p in parameters.values())
    slugs = _slugs(request.methods)
    rows = tuple(
        records.Method(
            label=text,
            slug=slugs[text],
            expression=repr(method),
            paper=method.paper or None,
            momentum=method.momentum_described,
            learning_rate=task.learning_rate * (PLAIN if request.on_sgd else method).learning_rate_scale,
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
        parameters=elements,
        mode="lab" if request.lab else "processes" if request.processes else "simulated",
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
            fp32=ring_traffic(elements, torch.float32, request.workers),
            bf16=ring_traffic(elements, torch.bfloat16, request.workers),
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
        protocol="on-sgd" if request.on_sgd else "trained",
    )
    return Comparison(request, configuration, task, {slugs[text]: method for text, method in methods.items()}, links)


def prepare(comparison: Comparison, folder: Path) -> Comparison:
    """Make the folder and write the configuration there, or take up the comparison that was begun in it.

    Raises ``ComparisonError`` if the folder cannot be written, or holds something else than this very comparison.
    """
    path, elsewhere = folder / RESOLVED, "choose another folder with --out"
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        if not path.exists():
            comparison.save(folder)
            return comparison
        found, configuration = json.loads(path.read_text()), records.read_configuration(folder)
    except OSError as error:
        raise ComparisonError(f"compare: cannot write to {folder} ({error.strerror}); {elsewhere}.") from error
    except ValueError as error:
        raise ComparisonError(f"compare: {path} is corrupt ({str(error).rstrip('.')}); {elsewhere}.") from error
    # What was asked for comes first: most other differences follow from it.
    asked = found.get("request")
    # Earlier versions had no such fields.
    asked = {"on_sgd": False, "lab": None} | asked if isinstance(asked, dict) else asked
    different = list(_differences(asked, _plain(comparison.request))) or list(
        _differences(_lasting(configuration), _lasting(comparison.configuration))
    )
    if different:
        raise ComparisonError(f"compare: {folder} holds another comparison ({'; '.join(different)}); {elsewhere}.")
    comparison = replace(comparison, configuration=configuration)
    return comparison.with_latency(configuration.links[0].latency_seconds) if comparison.request.lab else comparison


def _lasting(configuration: records.Configuration) -> dict[str, Any]:
    """What must not change between two sittings: all but the clock, the command's wording, and what was found out.

    That is what tuning chose, and in the lab the latency of the link that was asked for.
    """
    plain: dict[str, Any] = _plain(configuration)
    methods = {row.slug: row.expression for row in configuration.methods}
    passing = ("started", "command", *(["links"] if configuration.mode == "lab" else []))
    return {name: plain[name] for name in plain if name not in passing} | {"methods": methods}


def _plain(value: Any) -> Any:
    """A dataclass as JSON would give it back."""
    return json.loads(json.dumps(asdict(value)))


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """In words, where two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in here | there:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield f"{name} is {there!r} there and {here!r} here"


def read(text: str) -> Any:
    """What an expression stands for; parts that do not fit each other raise ``ComparisonError``."""
    try:
        return parse(text)
    except TypeError as error:
        raise ComparisonError(str(error)) from error


def _check_local(text: str, method: LocalMethod, request: Request, steps: int) -> None:
    """``ComparisonError`` where a method whose workers train on their own does not fit what was asked for."""
    if request.on_sgd:
        raise ComparisonError(
            f"compare: --on-sgd shows methods the gradients of plain SGD, and {text!r} exchanges what its own steps "
            "have come to; leave one of them out."
        )
    if request.processes and method.asynchronous:
        raise ComparisonError(
            f"compare: --processes runs all workers in lockstep, and those of {text!r} come when they like; "
            "leave --processes out, or see examples/async_server.py."
        )
    if request.tune and not any(method.schedule.due(step) for step in range(1, steps // 2 + 1)):
        raise ComparisonError(
            f"compare: --tune tries learning rates on {steps // 2} steps, half of a run, and {text!r} would not "
            "synchronise once in them; train longer or synchronise more often."
        )


def as_method(text: str) -> Method | LocalMethod:
    """A method from its text: a recipe, a Method, or an aggregator (then with momentum 0.9 after aggregation).

    Raises ``ComparisonError`` for an expression that is neither.
    """
    value = read(text)
    if isinstance(value, Aggregator):
        return Method(value)
    if isinstance(value, Method | LocalMethod):
        return value
    advice = "try qsgd"
    if isinstance(value, Compressor):
        advice = f"wrap it in an aggregator, as in AllGather({value!r})"
    if isinstance(value, Schedule):
        advice = f"say what it schedules, as in LocalMethod(AllReduce(Identity()), {value!r})"
    raise ComparisonError(f"compare: {text!r} is no method; {advice}.")


def as_link(text: str) -> LinkModel:
    """A link from "100mbit,1ms" or from an expression such as LinkModel(1e8, latency_seconds=0.001, slowdown=(1, 2)).

    Raises ``ComparisonError`` for an expression of something else, ``ValueError`` for any other text.
    """
    if "(" not in text:
        return LinkModel.of(text)
    value = read(text)
    if not isinstance(value, LinkModel):
        raise ComparisonError(f"compare: --link takes 100mbit,1ms or a LinkModel(...), got {text!r}.")
    return value


def ring_traffic(elements: int, dtype: torch.dtype, workers: int) -> records.Traffic:
    """Link bytes of one worker when so many numbers are ring all-reduced.

    >>> ring_traffic(1000, torch.float32, workers=4)
    Traffic(up=6000, down=6000)
    """
    # A meta tensor has a size and no memory.
    traffic = AllReduceRequest(torch.empty(elements, dtype=dtype, device="meta")).traffic(0, workers)
    return records.Traffic(traffic.up_bytes, traffic.down_bytes)


def _slugs(labels: Sequence[str]) -> dict[str, str]:
    """File names: the label's letters and digits, numbered where two would be equal."""
    slugs: dict[str, str] = {}
    for label in labels:
        plain = re.sub(r"[^a-z0-9.]+", "-", label.lower())[:60].strip("-.") or "method"
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
