"""Read the records that a comparison leaves behind: ``comparison.json`` and ``runs/*.jsonl``.

The dataclasses are the schema. Fields that are not listed here are let through unread.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

SCHEMA = 1
T = TypeVar("T")
Status = Literal["finished", "diverged", "unfinished"]
Protocol = Literal["trained", "on-sgd"]
"""Whether each method trains a model of its own, or all look on while plain SGD trains one."""
Mode = Literal["simulated", "processes", "lab"]
"""Where workers live: in one process, in one each, or in one each behind a link that is shaped."""


class RecordsError(ValueError):
    """The records of a comparison are missing, corrupt or too young to say anything."""


@dataclass(frozen=True)
class Task:
    """Model, data and target, as recorded."""

    name: str
    description: str
    quality: str
    higher_is_better: bool
    target: float
    provenance: Mapping[str, Any]

    def meets(self, quality: float | None) -> bool:
        """Whether a measured quality is at the target or beyond it."""
        if quality is None:
            return False
        return quality >= self.target if self.higher_is_better else quality <= self.target


@dataclass(frozen=True)
class Link:
    """A modelled link: bandwidth each way and latency."""

    label: str
    up_bits_per_second: float
    down_bits_per_second: float
    latency_seconds: float


class Clock(NamedTuple):
    """An account of the seconds of a run: with those modelled for a link, or (None) with those waited in the lab.

    ``name``: within the comparison; ``label``: anywhere.
    """

    name: str
    label: str
    link: str | None


@dataclass(frozen=True)
class Traffic:
    """Bytes of one worker, each way."""

    up: float
    down: float

    @property
    def both(self) -> float:
        """Up and down together."""
        return self.up + self.down


@dataclass(frozen=True)
class Baseline:
    """Link bytes of one worker and step when the gradients are ring all-reduced uncompressed."""

    fp32: Traffic
    bf16: Traffic


@dataclass(frozen=True)
class Tuning:
    """The learning rates tried, the training loss each gave (None: diverged), and whether the best is at an edge."""

    grid: tuple[float, ...]
    loss: tuple[float | None, ...]
    steps: int
    seed: int
    edge: bool


@dataclass(frozen=True)
class Method:
    """One row of the comparison, as configured."""

    label: str
    slug: str
    expression: str
    paper: str | None
    momentum: str
    learning_rate: float
    tuning: Tuning | None

    @property
    def local(self) -> bool:
        """Whether workers train on their own between syncs."""
        return self.expression.startswith("LocalMethod(")

    @property
    def asynchronous(self) -> bool:
        """Whether they synchronise with a server that is none of them."""
        return self.local and "AsyncServer(" in self.expression


@dataclass(frozen=True)
class Configuration:
    """The resolved configuration, ``comparison.json``."""

    schema: int
    thriftgrad: str
    task: Task
    parameters: int
    mode: Mode
    workers: int
    seeds: tuple[int, ...]
    steps: int
    batch_size: int
    evaluate_every: int
    links: tuple[Link, ...]
    baseline_bytes: Baseline
    methods: tuple[Method, ...]
    versions: Mapping[str, Any]
    threads: int
    started: str
    command: str
    protocol: Protocol = "trained"

    @property
    def clocks(self) -> tuple[Clock, ...]:
        """Every account of seconds: by each link's model, and in the lab as measured, which comes first."""
        if self.mode != "lab":
            return tuple(Clock(link.label, link.label, link.label) for link in self.links)
        (link,) = self.links
        return (
            Clock("measured", f"{link.label}, measured", None),
            Clock("modelled", f"{link.label}, modelled", link.label),
        )


@dataclass(frozen=True)
class Levels:
    """The levels that a tensor is quantised to at an evaluation, and the version that the workers agree on."""

    tensor: str
    version: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """One ``eval`` record; bytes and seconds are cumulative, of one worker.

    ``distortion.py`` defines what stands after ``link_seconds``, and ``bits_per_coordinate`` is what a worker handed to
    collectives since the evaluation before, per step and coordinate. ``waited_seconds``: how long it waited for real
    collectives, ``skew_seconds``: the part of it in which it waited for the last worker to come. What was not measured
    is None, or left out in records of earlier versions.
    """

    step: int
    samples: int
    loss: float | None
    quality: float | None
    payload_up_bytes: float
    payload_down_bytes: float
    up_bytes: float
    down_bytes: float
    compute_seconds: float
    encode_seconds: float
    decode_seconds: float
    link_seconds: Mapping[str, float]
    relative_error: float | None
    variance: float | None
    coordinate_variance: float | None = None
    bias: float | None = None
    bias_floor: float | None = None
    cosine: float | None = None
    symbol_width_bits: float | None = None
    symbol_entropy_bits: float | None = None
    bits_per_coordinate: float | None = None
    levels: Levels | None = None
    waited_seconds: float = 0.0
    skew_seconds: float = 0.0

    @property
    def bytes_both(self) -> float:
        """Link bytes so far, up and down together."""
        return self.up_bytes + self.down_bytes

    def seconds(self, link: str | None) -> float:
        """Compute + encode + decode as measured, plus the modelled link, one after the other (no overlap).

        Of real processes, plus what they waited for the last of them. ``link=None``: plus all that they waited.
        """
        communication = self.waited_seconds if link is None else self.skew_seconds + self.link_seconds[link]
        return self.compute_seconds + self.encode_seconds + self.decode_seconds + communication


@dataclass(frozen=True)
class Run:
    """The last attempt at one method and seed."""

    method: str
    seed: int
    evaluations: tuple[Evaluation, ...]
    status: Status


_CONFIGURATION = TypeAdapter(Configuration)
_EVALUATION = TypeAdapter(Evaluation)
_REDO = "delete the file and run the same comparison again to redo it"


def load(directory: Path) -> tuple[Configuration, tuple[Run, ...]]:
    """Read a comparison directory; a run that was never begun is an unfinished run without evaluations.

    Raises RecordsError as ``read_configuration`` does, if a run file is corrupt, or if no run has ended yet. The
    cut-off last line of a killed run is dropped. Files of other methods are not read.
    """
    configuration = read_configuration(directory)
    runs = tuple(
        _load_run(directory / "runs" / f"{method.slug}-seed{seed}.jsonl", method.slug, seed, configuration.links)
        for method in configuration.methods
        for seed in configuration.seeds
    )
    if all(run.status == "unfinished" for run in runs):
        raise RecordsError(
            f"None of the {len(runs)} runs in {directory} has finished; "
            "run the same `thriftgrad compare` command again to resume them."
        )
    return configuration, runs


def read_configuration(directory: Path) -> Configuration:
    """Read ``comparison.json`` alone. Raises RecordsError if it is missing, corrupt or of another schema."""
    path = directory / "comparison.json"
    try:
        data = _parse(path.read_bytes())
    except OSError as error:
        raise RecordsError(
            f"There is no comparison to read in {directory} ({error.strerror}: comparison.json); "
            "give the directory that `thriftgrad compare` wrote to with --out."
        ) from error
    except ValueError as error:
        raise RecordsError(f"{path} is not valid JSON ({error}); run the comparison again.") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise RecordsError(
            f"{path} has schema {found!r} but this version of thriftgrad reads schema {SCHEMA}; "
            "use the version that wrote it, or run the comparison again."
        )
    return _checked(_CONFIGURATION, data, f"{path}", "run the comparison again")


def _load_run(path: Path, method: str, seed: int, links: Sequence[Link]) -> Run:
    records = _last_attempt(path, method, seed)
    evaluations: list[Evaluation] = []
    for number, record in records:
        if record["kind"] == "eval":
            at = _checked(_EVALUATION, record, f"{path}, line {number}", _REDO)
            if evaluations and at.step <= evaluations[-1].step:
                raise _corrupt(path, number, f"step {at.step} does not come after step {evaluations[-1].step}")
            if absent := [link.label for link in links if link.label not in at.link_seconds]:
                raise _corrupt(path, number, f"it has no seconds for link {absent[0]!r}")
            evaluations.append(at)
    if not records or records[-1][1]["kind"] != "end":
        return Run(method, seed, tuple(evaluations), "unfinished")
    number, end = records[-1]
    if not evaluations:
        raise _corrupt(path, number, "the run ends without an evaluation")
    # A last quality that is no number has diverged, whatever the training loss did.
    diverged = end.get("diverged", False) or evaluations[-1].quality is None
    return Run(method, seed, tuple(evaluations), "diverged" if diverged else "finished")


def _last_attempt(path: Path, method: str, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """The eval and end records that follow the last start, each with its line number."""
    try:
        *lines, unended = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    parsed = [(number, _parse_or_none(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    # A last line without its newline was cut off when the run was killed, unless it is whole all the same.
    if (record := _parse_or_none(unended)) is not None:
        parsed.append((len(lines) + 1, record))

    starts = [at for at, (_, record) in enumerate(parsed) if record is not None and record["kind"] == "start"]
    if parsed and not starts:
        raise _corrupt(path, parsed[0][0], "it is not the start of a run")
    attempt = parsed[starts[-1] :] if starts else []
    records: list[tuple[int, dict[str, Any]]] = []
    for number, record in attempt:
        if record is None:
            raise _corrupt(path, number, "it is not a JSON record of kind start, eval or end")
        if record["kind"] == "start" and (record.get("method"), record.get("seed")) != (method, seed):
            raise _corrupt(path, number, f"it starts method {record.get('method')!r}, seed {record.get('seed')!r}")
        if records and records[-1][1]["kind"] == "end":
            raise _corrupt(path, number, "it follows the end of the run")
        if record["kind"] != "start":
            records.append((number, record))
    return records


def _parse_or_none(line: bytes) -> dict[str, Any] | None:
    try:
        record = _parse(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("kind") in ("start", "eval", "end") else None


def _corrupt(path: Path, number: int, what: str) -> RecordsError:
    return RecordsError(f"{path}, line {number}: {what}; {_REDO}.")


def _parse(text: bytes) -> Any:
    # NaN and Infinity, which Python's json accepts, become null: neither is a quality or a cost.
    return json.loads(text, parse_constant=lambda _: None)


def _checked(adapter: TypeAdapter[T], data: Any, where: str, cure: str) -> T:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RecordsError(f"{where}: field {field!r} is wrong ({first['msg'].lower()}); {cure}.") from error
