"""A paper's reproduction: its claims, the work behind them, and the folder that remembers it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import thriftgrad
from thriftgrad.lab.comparison import cpu_name
from thriftgrad.lab.load import read_configuration
from thriftgrad.lab.reproduce.claims import Claim, Finding
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.pool import Job, Sign, work
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.records import ReproductionError
from thriftgrad.lab.reproduce.studies import Study

SCHEMA = 1


@dataclass(frozen=True)
class Reproduction:
    """What is reproduced and how: ``name`` is the command's, ``quick`` says that it is the short form.

    ``claims`` look at what ``measurements`` and ``studies`` leave behind.
    """

    name: str
    paper: str
    quick: bool
    claims: tuple[Claim, ...]
    measurements: tuple[Measurement, ...]
    studies: tuple[Study, ...]


@dataclass(frozen=True)
class Answer:
    """A claim with what became of it."""

    claim: Claim
    finding: Finding


@dataclass(frozen=True)
class Result:
    """A finished reproduction, ready to be shown."""

    name: str
    paper: str
    quick: bool
    answers: tuple[Answer, ...]
    command: str
    setting: dict[str, str]
    methods: tuple[tuple[str, str, str], ...]  # study and arm, expression, learning rate


def reproduce(
    reproduction: Reproduction,
    folder: Path,
    show: Callable[[str, Sign], None],
    *,
    command: str = "",
    processes: int | None = None,
) -> Result:
    """Do what is not done yet, then judge; the same call goes on where it was interrupted.

    First what needs no learning rate (measurements and tuning), then the training runs with the rates that tuning
    found. Raises ``ReproductionError`` if the folder cannot be written or holds another reproduction.
    """
    _claim_folder(reproduction, folder)
    first: list[Job] = [*reproduction.measurements]
    for study in reproduction.studies:
        first += study.tuning_jobs(folder)
    work(first, folder, lambda sign: show("measuring and tuning", sign), processes)
    runs: list[Job] = []
    for study in reproduction.studies:
        runs += study.jobs(folder)
    work(runs, folder, lambda sign: show("training", sign), processes)
    return judge(reproduction, folder, command)


def judge(reproduction: Reproduction, folder: Path, command: str = "") -> Result:
    """The verdicts on what the folder holds."""
    evidence = Evidence(folder)
    answers = tuple(Answer(claim, claim.measure(evidence)) for claim in reproduction.claims)
    return Result(
        reproduction.name,
        reproduction.paper,
        reproduction.quick,
        answers,
        command,
        {
            "thriftgrad": thriftgrad.__version__,
            "torch": torch.__version__,
            "processor": cpu_name(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        tuple(_methods(reproduction.studies, folder)),
    )


def _methods(studies: Sequence[Study], folder: Path) -> list[tuple[str, str, str]]:
    configurations = {study.name: read_configuration(folder / study.folder) for study in studies}
    return [
        (f"{name}: {row.label}", row.expression, f"{row.learning_rate:g}")
        for name, configuration in configurations.items()
        for row in configuration.methods
    ]


def _claim_folder(reproduction: Reproduction, folder: Path) -> None:
    """Write down whose folder it is, or make sure that it is this one's."""
    mine = {
        "schema": SCHEMA,
        "thriftgrad": thriftgrad.__version__,
        "reproduction": reproduction.name,
        "quick": reproduction.quick,
        "measurements": [repr(each) for each in reproduction.measurements],
        "studies": [repr(each) for each in reproduction.studies],
    }
    path = folder / "reproduction.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(path.read_text()) if path.exists() else None
        if found is None:
            path.write_text(json.dumps(mine, indent=1))
    except OSError as error:
        raise ReproductionError(
            f"reproduce: cannot write to {folder} ({error.strerror}); choose another folder with --out."
        ) from error
    except ValueError as error:
        raise ReproductionError(f"reproduce: {path} is corrupt ({error}); choose another folder with --out.") from error
    if found is not None and found != mine:
        raise ReproductionError(
            f"reproduce: {folder} holds another reproduction (of another paper, length or version); choose another "
            "folder with --out."
        )


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain values: what ``results.json`` holds."""
    return {
        "schema": SCHEMA,
        "reproduction": result.name,
        "paper": result.paper,
        "quick": result.quick,
        "command": result.command,
        "setting": result.setting,
        "claims": [
            {"claim": each.claim.statement, "paper": each.claim.paper} | asdict(each.finding) for each in result.answers
        ],
        "methods": [list(row) for row in result.methods],
    }
