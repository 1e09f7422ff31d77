"""Checks of bits to a target: how many times fewer, which way they go, and whether savings multiply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log

from thriftgrad.lab.reproduce.bits import (
    Target,
    as_published,
    bits_text,
    downlink,
    from_server,
    saving,
    spent,
    steps_spent,
    to_server,
    uplink,
)
from thriftgrad.lab.reproduce.claims import (
    Chart,
    Check,
    Curve,
    Finding,
    Reasons,
    Table,
    Verdict,
    below,
    together,
    within,
)
from thriftgrad.lab.reproduce.evidence import Evidence, StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval


def fewer(
    study: str,
    costly: str,
    thrifty: str,
    targets: Sequence[Target],
    times: tuple[float, float],
    reasons: Reasons,
    shown: bool = True,
) -> Check:
    """To each target, ``thrifty`` sends between ``times`` fewer bits than ``costly``, counted as the paper does.

    ``shown``: with the study's tables and chart, which several claims share.
    """

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        found = {target.name: _saving(runs, costly, thrifty, target) for target in targets}
        verdict = together([_verdict(each, times) for each in found.values()])
        listed = "; ".join(
            f"to {name} {'not reached by every seed' if each is None else f'{each.text()} times fewer'}"
            for name, each in found.items()
        )
        tables = tuple(target_table(runs, target) for target in targets if shown)
        charts = (progress_chart(runs),) if shown else ()
        ours = f"{thrifty} against {costly}, uplink: {listed}."
        return Finding(ours, verdict, reasons.of(verdict), (costly, thrifty), tables, charts)

    return check


def _saving(runs: StudyRuns, costly: str, thrifty: str, target: Target) -> Interval | None:
    a, b = (spent(runs, label, target, as_published(label)) for label in (costly, thrifty))
    return saving(a, b)


def _verdict(measured: Interval | None, times: tuple[float, float]) -> Verdict:
    return Verdict.NOT_MEASURABLE if measured is None else within(measured, *times)


def target_table(runs: StudyRuns, target: Target) -> Table:
    """Every arm: steps and kilobits of a worker to a target, as sent and as the paper counts."""
    lines = []
    first = runs.labels[0]
    for label in runs.labels:
        published = spent(runs, label, target, as_published(label))
        fewer_by = saving(spent(runs, first, target, as_published(first)), published)
        steps = [value for value in spent(runs, label, target, steps_spent) if value is not None]
        lines.append(
            (
                label,
                f"{interval(steps).mean:.0f}" if steps else "-",
                bits_text(published),
                "-" if fewer_by is None or label == first else fewer_by.text(),
                bits_text(spent(runs, label, target, uplink)),
                bits_text(spent(runs, label, target, downlink)),
                interval(runs.finals(label)).text(4),
                runs.rate(label),
            )
        )
    c = runs.configuration
    caption = (
        f"{c.task.name}, {c.workers} workers, {c.steps} steps of batch {c.batch_size}, {len(c.seeds)} seeds: kilobits "
        f"of a worker until {target.name}; up and down as sent, headers included, a gather's way down being everybody's"
    )
    columns = ("method", "steps", "up, as the paper counts", f"times fewer than {first}", "up", "down")
    return Table(caption, (*columns, f"final {c.task.quality}", "learning rate"), tuple(lines))


def progress_chart(runs: StudyRuns) -> Chart:
    """Quality against uplink bits, mean over seeds."""
    curves = []
    for label in runs.labels:
        steps = zip(*(run.evaluations for run in runs.of(label) if run.status == "finished"), strict=False)
        points = [
            (8 * each[0].payload_up_bytes / 1000, interval([at.quality for at in each if at.quality is not None]).mean)
            for each in steps
            if each[0].payload_up_bytes
        ]
        curves.append(Curve(label, tuple(x for x, _ in points), tuple(y for _, y in points)))
    c = runs.configuration
    return Chart(
        f"{c.task.name}, {c.workers} workers: quality against what a worker has sent, headers included",
        "uplink kilobits of a worker",
        c.task.quality,
        tuple(curve for curve in curves if curve.x),
        log_x=True,
        log_y=not c.task.higher_is_better and "f*" in c.task.quality,
    )


def loses_little(pairs: Mapping[str, tuple[str, str]], margins: Mapping[str, float], reasons: Reasons) -> Check:
    """In each study, the first of a pair ends no worse than the second by more than a margin."""

    def check(evidence: Evidence) -> Finding:
        gains = {study: evidence.study(study).gain(*pair) for study, pair in pairs.items()}
        verdict = together(
            [below(Interval(-g.mean, -g.high, -g.low, g.count), margins[study]) for study, g in gains.items()]
        )
        listed = "; ".join(f"{study} {gain.text(2)} (margin {margins[study]:g})" for study, gain in gains.items())
        judged = tuple(dict.fromkeys(label for pair in pairs.values() for label in pair))
        ours = f"Final quality, better by: {listed}."
        return Finding(ours, verdict, reasons.of(verdict), judged)

    return check


def downlinks(
    study: str, base: str, channels: Mapping[str, str], targets: Sequence[Target], share: float, reasons: Reasons
) -> Check:
    """Counting both ways, a saving is still at least ``share`` of the uplink's; ``channels``: the arm of each."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        verdicts, told, lines = [], [], []
        for target in targets:
            dense = {way: _both(runs, base, target, "dense")[way] for way in ("up", "down", "sum")}
            lines.append(
                ("dense fp32 (" + base + ")", target.name, *(bits_text(each) for each in dense.values()), "-", "-")
            )
            for channel, label in channels.items():
                mine = _both(runs, label, target, channel)
                up, whole = (saving(dense[way], mine[way]) for way in ("up", "sum"))
                cells = ["not reached" if each is None else f"{each.text()}" for each in (up, whole)]
                lines.append(
                    (f"{channel} ({label})", target.name, *(bits_text(each) for each in mine.values()), *cells)
                )
                left = _ratio_of_savings(dense, mine)
                if up is None or whole is None or left is None:
                    verdicts.append(Verdict.NOT_MEASURABLE)
                    told.append(f"{channel}, {target.name}: not reached by every seed")
                else:
                    verdicts.append(within(left, share, float("inf")))
                    told.append(
                        f"{channel}, to {target.name}: {up.mean:.3g} times up, {whole.mean:.3g} both ways, "
                        f"{left.mean:.2g} of it left"
                    )
        verdict = together(verdicts)
        c = runs.configuration
        table = Table(
            f"{c.task.name}, {c.workers} workers: kilobits of a worker to a target by downlink, headers included",
            ("downlink", "target", "up", "down", "sum", "times fewer up", "times fewer in sum"),
            tuple(lines),
        )
        return Finding(f"{'; '.join(told)}.", verdict, reasons.of(verdict), (base, *channels.values()), (table,))

    return check


def _ratio_of_savings(
    dense: Mapping[str, list[float | None]], mine: Mapping[str, list[float | None]]
) -> Interval | None:
    """The saving both ways over the saving up, seed by seed: 2 U / (U + D) where dense goes both ways alike."""
    logs = [_logs(dense[way], mine[way]) for way in ("sum", "up")]
    known = [each for each in logs if each is not None]
    return _exp(interval([a - b for a, b in zip(*known, strict=True)])) if len(known) == 2 else None


def _both(runs: StudyRuns, label: str, target: Target, channel: str) -> dict[str, list[float | None]]:
    counts = (uplink, downlink) if channel == "forwarded" else (to_server, from_server)
    up, down = (spent(runs, label, target, count) for count in counts)
    whole = [None if a is None or b is None else a + b for a, b in zip(up, down, strict=True)]
    return {"up": up, "down": down, "sum": whole}


def multiply(study: str, arms: Mapping[frozenset[str], str], target: Target, reasons: Reasons) -> Check:
    """Savings of components multiply: all together save what each alone saves, multiplied, to a quarter.

    ``arms``: by the set of components that an arm has, the empty set and all subsets included.
    """
    parts = sorted(frozenset().union(*arms))

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        used = {have: spent(runs, label, target, as_published(label)) for have, label in arms.items()}
        logs = {have: _logs(used[frozenset()], each) for have, each in used.items()}
        lines = []
        for have, label in sorted(arms.items(), key=lambda each: (len(each[0]), sorted(each[0]))):
            alone = [logs[frozenset([part])] for part in sorted(have)]
            lines.append((" + ".join(sorted(have)) or "none", label, *_cells(logs[have], alone)))
        interaction = _interaction(logs, [frozenset([part]) for part in parts], frozenset(parts))
        verdict = Verdict.NOT_MEASURABLE if interaction is None else within(interaction, 0.8, 1.25)
        ours = (
            "Not every seed of every arm met the target."
            if interaction is None
            else f"All together save {interaction.text()} times the product of what each saves alone."
        )
        table = Table(
            f"Uplink bits to {target.name}, as the paper counts them: saving over none, and over the product of the "
            "components' own savings (the interaction; 1: they multiply)",
            ("components", "method", "times fewer bits", "product of each alone", "interaction"),
            tuple(lines),
        )
        return Finding(ours, verdict, reasons.of(verdict), tuple(arms.values()), (table,))

    return check


def _logs(costly: Sequence[float | None], thrifty: Sequence[float | None]) -> list[float] | None:
    pairs = list(zip(costly, thrifty, strict=True))
    return None if any(None in pair for pair in pairs) else [log(a / b) for a, b in pairs]  # type: ignore[operator]


def _interaction(
    logs: Mapping[frozenset[str], list[float] | None], alone: Sequence[frozenset[str]], together_: frozenset[str]
) -> Interval | None:
    columns = [logs[together_], *(logs[each] for each in alone)]
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    return _exp(interval([whole - sum(rest) for whole, *rest in zip(*known, strict=True)]))


def _cells(whole: list[float] | None, alone: Sequence[list[float] | None]) -> tuple[str, str, str]:
    known = [each for each in alone if each is not None]
    if whole is None or len(known) < len(alone):
        return ("not reached" if whole is None else _exp(interval(whole)).text(), "-", "-")
    product = [sum(each) for each in zip(*known, strict=True)] if known else [0.0] * len(whole)
    excess = _exp(interval([a - b for a, b in zip(whole, product, strict=True)]))
    mine, theirs = _exp(interval(whole)), _exp(interval(product))
    return mine.text(), theirs.text(), excess.text() if len(known) > 1 else "-"


def _exp(measured: Interval) -> Interval:
    return Interval(exp(measured.mean), exp(measured.low), exp(min(measured.high, 700.0)), measured.count)
