"""Any command as the ranks of a slow network: what it said, and what really crossed the links."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from thriftgrad.lab.launch import Hear
from thriftgrad.lab.namespaces import Network
from thriftgrad.lab.shape import STREAM_SHARE, LabError, Shape
from thriftgrad.lab.table import MISSING, human_bytes, significant

LEDGER_FOLDER = "THRIFTGRAD_LEDGER"  # as in comm/ledger.py, which comes with torch
TOLERANCE = 0.05
SMALL_BYTES = 100_000
"""What meeting and leaving costs, whatever is exchanged: a difference below it is none."""


class Bytes(NamedTuple):
    """One rank's bytes, each way."""

    up: float
    down: float


@dataclass(frozen=True)
class Crossed:
    """One rank of a command: how long it ran, what its link carried, and what thriftgrad's ledgers say of that."""

    rank: int
    seconds: float
    link: Bytes
    ledger: Bytes | None  # as it would look on the link, with headers

    @property
    def apart(self) -> Bytes | None:
        """The link against the ledger, relative to it."""
        if self.ledger is None or 0 in self.ledger:
            return None
        return Bytes(*(seen / told - 1 for seen, told in zip(self.link, self.ledger, strict=True)))

    @property
    def agrees(self) -> bool:
        """Whether link and ledger tell the same, within 5 % or 0.1 MB."""
        return self.ledger is not None and all(
            abs(seen - told) <= max(TOLERANCE * told, SMALL_BYTES)
            for seen, told in zip(self.link, self.ledger, strict=True)
        )


def run(command: Sequence[str], workers: int, link: Shape, hear: Hear) -> tuple[Crossed, ...]:
    """Run the command on every rank of a network of such links; ``hear`` is told of every line.

    Raises ``LabError`` for a command that is none and where there can be no network, ``RankFailedError`` where a rank
    fails.
    """
    if shutil.which(command[0]) is None:
        raise LabError(
            f"lab: there is no command {command[0]!r} here; give what every rank is to run after --, with its folder "
            "where sudo does not find it, as in -- .venv/bin/python train.py."
        )
    with Network(workers, link) as network, tempfile.TemporaryDirectory(prefix="thriftgrad-") as folder:
        ended = network.run(command, {LEDGER_FOLDER: folder}, hear)
        carried, ledgers = network.bytes(), _ledgers(Path(folder))
    share = STREAM_SHARE if link.model else 1.0
    return tuple(
        Crossed(
            each.rank,
            each.seconds,
            Bytes(*carried[each.rank]),
            Bytes(*(count / share for count in ledgers[each.rank])) if each.rank in ledgers else None,
        )
        for each in ended
    )


def _ledgers(folder: Path) -> dict[int, Bytes]:
    """What the ledgers of each rank's processes have left."""
    found: dict[int, Bytes] = {}
    for path in folder.glob("*.json"):
        books = json.loads(path.read_text())
        rank = int(books["rank"])
        before = found.get(rank, Bytes(0, 0))
        found[rank] = Bytes(before.up + books["up"], before.down + books["down"])
    return found


def table(crossed: Sequence[Crossed], link: Shape) -> Group:
    """A row a rank, and the rules behind the numbers; print it with a rich Console."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    told = any(each.ledger is not None for each in crossed)
    names = ["rank", "seconds", "sent", "received", "Mbit/s", "of link"]
    for name in names + (["ledger sent", "received", "apart"] if told else []):
        drawn.add_column(name, justify="right")
    for each in crossed:
        cells = [str(each.rank), significant(each.seconds), *map(human_bytes, each.link)]
        cells += [" / ".join(significant(8e-6 * count / each.seconds) for count in each.link)]
        cells += [_share(each, link)]
        if told:
            cells += [human_bytes(count) for count in each.ledger] if each.ledger else [MISSING, MISSING]
            cells += [_apart(each)]
        style = "" if each.agrees or each.ledger is None else "bold red"
        drawn.add_row(*cells[:-1], Text(cells[-1], style=style))
    return Group(drawn, *(Text(note, style="dim") for note in notes(crossed, link)))


def notes(crossed: Sequence[Crossed], link: Shape) -> tuple[str, ...]:
    """What was counted, and what the numbers do not say."""
    cores = len(os.sched_getaffinity(0))
    counted = (
        "every frame with its headers"
        if link.model
        else "packets of up to 64 KiB with one header each, as there is no limit"
    )
    said = [
        f"{len(crossed)} ranks, each behind a link of {link.text}. Sent, received: what its interface counted from the "
        f"command's start to its end, {counted}; Mbit/s are means over that time, up / down."
    ]
    if any(each.ledger is not None for each in crossed):
        headers = f", times {1 / STREAM_SHARE:.3f} for the headers of full frames" if link.model else ""
        said += [f"Ledger: the link bytes that thriftgrad counted{headers}. Apart: the interface against it."]
        if not all(each.agrees for each in crossed):
            said += [
                f"(!) More than {TOLERANCE:.0%} apart: messages too short to fill frames, packets sent again, or "
                "something that is in no ledger, such as DDP's first copy of the model, other collectives of the "
                "command, or data."
            ]
    else:
        said += ["No ledger to compare with: thriftgrad exchanged nothing, or the ranks did not end as processes do."]
    if len(crossed) > cores:
        said += [
            f"{len(crossed)} ranks shared {cores} cores, so they computed more slowly than on machines of their own."
        ]
    return tuple(said)


def _share(each: Crossed, link: Shape) -> str:
    if link.up_bits_per_second is None or link.down_bits_per_second is None:
        return MISSING
    limits = (link.up_bits_per_second, link.down_bits_per_second)
    shares = [8 * count / each.seconds / limit for count, limit in zip(each.link, limits, strict=True)]
    return " / ".join(f"{share:.0%}" for share in shares)


def _apart(each: Crossed) -> str:
    if each.apart is None:
        return MISSING
    return " / ".join(f"{share:+.{1 if abs(share) < 0.0995 else 0}%}" for share in each.apart) + (
        "" if each.agrees else " (!)"
    )
