"""Append-only files of measured rows; a measurement that was cut short is begun again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class ReproductionError(ValueError):
    """A reproduction that cannot be done as asked."""


def record(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append a start, each row as soon as there is one, and an end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])  # without what a kill left of a last line
    with path.open("a") as file:

        def write(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()

        write({"kind": "start", "time": datetime.now(UTC).isoformat(timespec="seconds")})
        for row in rows:
            write({"kind": "row", **row})
        write({"kind": "end"})


def recorded(path: Path) -> list[Row] | None:
    """The rows after the last start if that attempt has ended, else None.

    Raises ``ReproductionError`` for a line that is no record.
    """
    if not path.exists():
        return None
    *lines, _ = path.read_bytes().split(b"\n")
    found: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            kind = row["kind"]
        except (ValueError, LookupError, TypeError) as error:
            raise ReproductionError(
                f"reproduce: {path}, line {number} is no record; delete the file and give the same command again."
            ) from error
        found = [] if kind == "start" else [*found, row]
    return found[:-1] if found and found[-1]["kind"] == "end" else None
