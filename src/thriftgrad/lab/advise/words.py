"""The advice in words: one sentence, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from thriftgrad.lab.advise.candidates import BF16
from thriftgrad.lab.advise.ranking import CLOSE, MOST_WORKERS, Row, advised
from thriftgrad.lab.table import significant

NEVER, ANY = "never", "any"


def sentence(table: Sequence[Row]) -> str:
    """What to do, in one sentence."""
    chosen, shortest = advised(table), min((row for row in table if row.candidate.gap is None), key=_seconds)
    (baseline,) = (row for row in table if row.candidate.label == BF16)
    apart = min((row for row in table if row.candidate.gap), key=_seconds, default=None)
    tail = "."
    if apart is not None and apart.seconds * CLOSE < chosen.seconds:
        name = apart.candidate.label
        tail = f"; where workers may train on their own between syncs, {name} takes {milliseconds(apart.seconds)}."
    if chosen.candidate.compresses:
        return (
            f"Use {chosen.candidate.expression}: {milliseconds(chosen.seconds)} a step, "
            f"{milliseconds(chosen.exposed_seconds)} of it waiting for the exchange, against "
            f"{milliseconds(baseline.seconds)} with bf16{tail}"
        )
    label = chosen.candidate.label
    if shortest is chosen:
        why = "and nothing here is faster"
    else:
        gain = f"{100 * (1 - shortest.seconds / chosen.seconds):.1f}"
        why = f"and the fastest method here, {shortest.candidate.label}, would save {gain} % of it"
    return f"Don't compress: {label} takes {milliseconds(chosen.seconds)} a step, {why}{tail}"


def _seconds(row: Row) -> float:
    return row.seconds


def milliseconds(seconds: float) -> str:
    """Three digits.

    >>> milliseconds(0.0123456)
    '12.3 ms'
    """
    return f"{significant(1000 * max(0.0, seconds))} ms"


def bits_text(bits_per_second: float) -> str:
    """A bandwidth.

    >>> bits_text(95.9e6), bits_text(2.5e9)
    ('95.9 Mbit/s', '2.50 Gbit/s')
    """
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits_per_second < 999.5:
            return f"{significant(bits_per_second)} {unit}"
        bits_per_second /= 1000
    return f"{significant(bits_per_second)} Tbit/s"


def bandwidth_text(row: Row) -> str:
    """Below which bandwidth it beats bf16."""
    if row.bandwidth is None:
        return "" if row.candidate.label == BF16 else NEVER
    low, high = row.bandwidth
    if high == inf:
        return ANY if low == 0 else f"over {bits_text(low)}"
    return bits_text(high) if low == 0 else f"{bits_text(low)} to {bits_text(high)}"


def workers_text(row: Row) -> str:
    """With how many workers it beats bf16."""
    if row.workers is None:
        return "" if row.candidate.label == BF16 else NEVER
    low, high = row.workers
    if high == MOST_WORKERS:
        return ANY if low == 2 else f"from {low}"
    return f"up to {high}" if low == 2 else f"{low} to {high}"
