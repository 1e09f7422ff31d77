"""Checks of time: codec seconds as measured here, the link as modelled."""

from __future__ import annotations

from collections.abc import Sequence

from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, below, named, together, within
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.lab.reproduce.timing import gathered_seconds, reduced_seconds

WORKERS = 8
BANDWIDTHS = {"100 Mbit/s": 1e8, "1 Gbit/s": 1e9, "10 Gbit/s": 1e10}

Timed = tuple[str, int]
"""A label and a bucket."""


def faster(
    measurement: str,
    elements: int,
    pairs: Sequence[tuple[Timed, Timed]],
    as_fast: Sequence[tuple[Timed, Timed]],
    reasons: Reasons,
    margin: float = 1.25,
) -> Check:
    """Exchanges at 1 Gbit/s: the first of each pair takes less time, those ``as_fast`` agree to within ``margin``."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(measurement)
        less, same = ({(a, b): _ratio(rows, a, b) for a, b in each} for each in (pairs, as_fast))
        verdicts = [below(each, 1.0) for each in less.values()]
        verdicts += [within(each, 1 / margin, margin) for each in same.values()]
        verdict = together(verdicts)
        listed = "; ".join(f"{_name(a)} / {_name(b)} {each.text()}" for (a, b), each in (less | same).items())
        ours = f"Time of an exchange between {WORKERS} workers at 1 Gbit/s: {listed}."
        judged = named((a[0], b[0]) for a, b in (*pairs, *as_fast))
        return Finding(ours, verdict, reasons.of(verdict), judged, (time_table(rows, elements),))

    return check


def overhead(
    measurement: str, timed: Timed, study: str, label: str, updates_a_step: float, most: float, reasons: Reasons
) -> Check:
    """Updating levels ``updates_a_step`` times a step takes less than a share ``most`` of a training step's seconds."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        step_seconds = runs.mean(label, lambda at: at.compute_seconds / at.step if at.step else None)
        updates = [row["update_seconds"] for row in _rows(evidence.rows(measurement), timed)]
        share = interval([updates_a_step * update / interval(step_seconds).mean for update in updates])
        verdict = below(share, most)
        ours = (
            f"An update takes {1000 * interval(updates).mean:.1f} ms, forward and backward of one worker "
            f"{1000 * interval(step_seconds).mean:.0f} ms: {100 * share.mean:.2g} % at the paper's schedule, "
            f"{100 * share.mean / updates_a_step:.0f} % of the step in which it happens."
        )
        return Finding(ours, verdict, reasons.of(verdict), (label,))

    return check


def time_table(rows: Sequence[Row], elements: int) -> Table:
    """Bits, codec milliseconds and exchange milliseconds of everything that was timed."""
    lines = []
    for label, bucket in dict.fromkeys((row["label"], row["bucket"]) for row in rows):
        here = _rows(rows, (label, bucket))
        codec = [interval([row[f"{each}_seconds"] for row in here]).mean for each in ("encode", "decode", "update")]
        exchanges = [interval(_seconds(here, bandwidth)).mean for bandwidth in BANDWIDTHS.values()]
        bits = f"{8 * here[0]['nbytes'] / elements:.2f}"
        lines.append((label, f"{bucket}", bits, *(f"{1000 * each:.1f}" for each in (*codec, *exchanges))))
    plain = [f"{1000 * reduced_seconds(elements, WORKERS, bandwidth):.1f}" for bandwidth in BANDWIDTHS.values()]
    lines.append(("fp32, ring all-reduce", "-", "32.00", "-", "-", "-", *plain))
    caption = (
        f"Milliseconds for {elements:,} coordinates: codec on one thread, modelled all-gather, {WORKERS} workers; "
        "update: agreeing on levels, or on a scale, which happens at every step and is in the exchange"
    )
    return Table(caption, ("method", "bucket", "bits", "encode", "decode one", "update", *BANDWIDTHS), tuple(lines))


def _ratio(rows: Sequence[Row], a: Timed, b: Timed) -> Interval:
    return ratio(*(_seconds(_rows(rows, each), BANDWIDTHS["1 Gbit/s"]) for each in (a, b)))


def _seconds(rows: Sequence[Row], bandwidth: float) -> list[float]:
    return [gathered_seconds(row, WORKERS, bandwidth) for row in rows]


def _rows(rows: Sequence[Row], timed: Timed) -> list[Row]:
    return sorted((row for row in rows if (row["label"], row["bucket"]) == timed), key=lambda row: row["draw"])


def _name(timed: Timed) -> str:
    return f"{timed[0]} (bucket {timed[1]})"
