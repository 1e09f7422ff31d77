"""Checks of arms against arms of one study, each with a table of these arms alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, Verdict, below, named, together, within
from thriftgrad.lab.reproduce.comparing import percent
from thriftgrad.lab.reproduce.evidence import Evidence, StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval

Pairs = Sequence[tuple[str, str]]
Judge = Callable[[Interval], Verdict]


def better(study: str, pairs: Pairs, reasons: Reasons, by: float = 0.0, beside: Sequence[str] = ()) -> Check:
    """Of each pair, the first has the better final quality, by more than ``by``, which is 0 or less.

    ``beside``: further lines to show.
    """
    return _check(study, pairs, reasons, beside, lambda gain: below(_negated(gain), -by), _bound(by))


def matches(study: str, pairs: Pairs, reasons: Reasons, margin: float, beside: Sequence[str] = ()) -> Check:
    """Of each pair, the final qualities differ by less than ``margin``."""
    told = f"; a match is a difference below {margin:g}"
    return _check(study, pairs, reasons, beside, lambda gain: within(gain, -margin, margin), told)


def everywhere(found: Mapping[str, tuple[Pairs, float]], reasons: Reasons) -> Check:
    """``better`` in several studies at once: by study, its pairs and by how much."""

    def check(evidence: Evidence) -> Finding:
        each = [better(study, pairs, reasons, by)(evidence) for study, (pairs, by) in found.items()]
        verdict = together([finding.verdict for finding in each])
        ours = " ".join(f"{study}: {finding.ours}" for study, finding in zip(found, each, strict=True))
        judged = tuple(dict.fromkeys(label for finding in each for label in finding.judged))
        tables = tuple(table for finding in each for table in finding.tables)
        return Finding(ours, verdict, reasons.of(verdict), judged, tables)

    return check


def _check(study: str, pairs: Pairs, reasons: Reasons, beside: Sequence[str], judge: Judge, told: str) -> Check:
    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        gains = {pair: runs.gain(*pair) for pair in pairs}
        verdict = together([judge(gain) for gain in gains.values()])
        listed = "; ".join(f"{a} against {b} {_text(runs, gain)}" for (a, b), gain in gains.items())
        judged = named(pairs)
        tables = (table(runs, dict.fromkeys((*judged, *beside))),)
        return Finding(f"{listed}{told}.", verdict, reasons.of(verdict), judged, tables)

    return check


def table(runs: StudyRuns, labels: Iterable[str]) -> Table:
    """These arms: final quality, what a worker hands to collectives in a step, error of the estimate, learning rate."""
    c = runs.configuration
    lines = []
    for label in labels:
        last = [run.evaluations[-1] for run in runs.of(label)]
        sent = interval([at.payload_up_bytes / max(at.step, 1) for at in last]).mean
        errors = runs.mean(label, lambda at: at.relative_error)
        lines.append(
            (
                label,
                interval(runs.finals(label)).text(4),
                f"{sent / 1000:.1f}",
                f"{4 * c.parameters / sent:.1f}" if sent else "-",
                f"{interval(errors).mean:.2f}" if errors else "-",
                runs.rate(label),
                str(runs.diverged(label) or "-"),
            )
        )
    caption = f"{c.task.name}, {c.workers} workers, {c.steps} steps of batch {c.batch_size}, {len(c.seeds)} seeds"
    columns = ("kB up a step", "times fewer than fp32", "|D' - g| / |g|", "learning rate", "diverged")
    return Table(caption, ("method", f"final {c.task.quality}", *columns), tuple(lines))


def _text(runs: StudyRuns, gain: Interval) -> str:
    quality = runs.configuration.task.quality
    return percent(gain) if "accuracy" in quality else f"{gain.text(2)} {quality} better"


def _bound(by: float) -> str:
    return f"; {-by:g} worse is still as good" if by else ""


def _negated(gain: Interval) -> Interval:
    return Interval(-gain.mean, -gain.high, -gain.low, gain.count)
