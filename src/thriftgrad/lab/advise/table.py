"""The advice on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from thriftgrad.lab.advise.advise import Advice
from thriftgrad.lab.advise.pieces import MANY
from thriftgrad.lab.advise.ranking import CLOSE, Row
from thriftgrad.lab.advise.words import bandwidth_text, bits_text, milliseconds, workers_text
from thriftgrad.lab.table import MISSING, human_bytes, significant

COLUMNS = ("method", "step", "exposed", "distortion", "sent", "pays below", "pays with workers")


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table, under ``COLUMNS``."""
    return (
        row.candidate.label,
        milliseconds(row.seconds),
        milliseconds(row.exposed_seconds),
        MISSING if row.distortion is None else significant(row.distortion),
        human_bytes(row.up_bytes),
        bandwidth_text(row),
        workers_text(row),
    )


def table(advice: Advice) -> Group:
    """The ranked table, what it rests on, and the sentence."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in COLUMNS:
        drawn.add_column(
            name.replace("pays with", "pays\nwith"), justify="left" if name == "method" else "right", overflow="fold"
        )
    for row in advice.rows:
        drawn.add_row(*(Text(cell) for cell in cells(row)))
    notes = Text("\n".join(assumptions(advice)), style="dim")
    return Group(drawn, notes, Text(""), Text(advice.sentence, style="bold"))


def assumptions(advice: Advice) -> list[str]:
    """What the numbers rest on, a sentence or two each."""
    compute, link = advice.setting.compute, advice.transport.link
    down = link.down_bits_per_second or link.up_bits_per_second
    where = f"{advice.ranks} ranks" if advice.ranks > 1 else "one process"
    seen = min(advice.workers, MANY)
    return [
        f"{advice.subject}: {advice.elements:,} parameters, {advice.workers} workers; forward "
        f"{milliseconds(compute.forward_seconds)}, backward {milliseconds(compute.backward_seconds)}, measured on this "
        f"machine by {where}.",
        f"Link {advice.transport.text}: up {bits_text(link.up_bits_per_second)}, down {bits_text(down)}, latency "
        f"{significant(1e6 * link.latency_seconds)} us a hop.",
        f"A step is forward, backward and exchange, the DDP buckets one after another behind the backward pass; "
        f"a worker's processors can run {significant(advice.setting.lanes)} of these side by side at full speed. "
        "Exposed: what the exchange adds, and DDP's broadcast of buffers such as BatchNorm's averages. Sent: bytes of "
        "one worker in a step.",
        "Pays: is faster than bf16, overlapped; below a bandwidth with these workers, or with so many on this link.",
        f"Distortion: |estimate - mean|^2 / |mean|^2 of one step among {seen} workers, without what memories make good "
        "later; what it does to the loss, thriftgrad compare tells. Methods that train apart in between have none.",
        f"Advised: of the methods within {100 * (CLOSE - 1):.0f} % of the shortest step, the one of least distortion.",
    ]
