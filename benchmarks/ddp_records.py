"""The records of the table that counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import median

from ddp_rows import ROWS, Row

from thriftgrad.lab.shape import STREAM_SHARE, Shape


@dataclass(frozen=True)
class Measured:
    """One row in one cell."""

    row: Row
    workers: int
    link: str
    seconds: float
    noop_seconds: float
    extra_cpu_seconds: float  # of the slowest rank, against the step without communication
    sent_bytes: float
    books: dict[str, float]
    method: str
    load: float  # average of the machine, just after
    bucket_mb: int | None

    @property
    def ratio(self) -> float:
        """To the step without communication next to it."""
        return self.seconds / self.noop_seconds

    @property
    def ledger_bytes(self) -> float:
        """What our books say was sent, as it looks on the link; NaN for others' rows."""
        headers = 1.0 if Shape.of(self.link).model is None else STREAM_SHARE
        return self.books.get("up_bytes", nan) / headers

    @property
    def flight_seconds(self) -> float:
        """What the link takes for the bytes at the least."""
        rate = Shape.of(self.link).up_bits_per_second
        return 8 * self.sent_bytes / rate if rate else 0.0

    @property
    def why(self) -> str:
        """Where the time above the step without communication goes."""
        codec = [
            f"{name} {1e3 * self.books[f'{name}_seconds']:.0f}"
            for name in ("encode", "decode", "exposed")
            if f"{name}_seconds" in self.books
        ]
        parts = f" ({', '.join(codec)})" if codec else ""
        more, cpu, flight = (
            1e3 * seconds for seconds in (self.seconds - self.noop_seconds, self.extra_cpu_seconds, self.flight_seconds)
        )
        return f"{more:+.0f} ms a step; CPU {cpu:+.0f}{parts}; its bytes take {flight:.0f} of the link"


Cells = dict[tuple[int, str], dict[str, Measured | str]]
"""By workers and link, then by the row's label; a text is why it failed."""


def read(folder: Path) -> Cells:
    """All records."""
    rows = {row.label: row for row in ROWS}
    cells: Cells = {}
    for path in sorted(folder.glob("*-*/*.json")):
        found = json.loads(path.read_text())
        label, place = found["label"], (found["workers"], found["link"])
        if label in rows:
            cells.setdefault(place, {})[label] = found.get("error") or _measured(rows[label], found)
    order = ["100mbit", "1gbit", "unlimited"]
    return dict(sorted(cells.items(), key=lambda each: (each[0][0], (*order, each[0][1]).index(each[0][1]))))


def _measured(row: Row, found: dict) -> Measured:  # type: ignore[type-arg]
    extra = median(found["cpu_seconds"]) - median(found["noop_cpu"])
    seconds, noop = median(found["seconds"]), median(found["noop_seconds"])
    where = (row, found["workers"], found["link"])
    return Measured(
        *where,
        seconds,
        noop,
        extra,
        found["sent_bytes"],
        found["books"],
        found["method"],
        found["load"],
        found["bucket_mb"],
    )


def best(cell: dict[str, Measured | str], count: int) -> list[str]:
    """The labels of our quickest rows, one of each kind."""
    kinds: dict[str, Measured] = {}
    for each in cell.values():
        if isinstance(each, Measured) and each.row.ours:
            rival = kinds.get(each.row.family)
            kinds[each.row.family] = each if rival is None or each.ratio < rival.ratio else rival
    return [each.row.label for each in sorted(kinds.values(), key=lambda each: each.ratio)[:count]]
