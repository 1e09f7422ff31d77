"""A summary as a table: its columns, and the rules behind the numbers.

``columns`` fixes every cell once; the terminal, the README and the HTML report lay out the same ones.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import floor, log10
from textwrap import wrap

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from thriftgrad.lab import agreement
from thriftgrad.lab.agreement import Agreement
from thriftgrad.lab.shape import STREAM_SHARE
from thriftgrad.lab.summary import Crossing, Means, MethodSummary, Summary

MISSING = "-"


@dataclass(frozen=True)
class Column:
    """One column: cells, the values to sort them by (None sorts last), and the rows that hold the best value.

    ``apart``: the rows whose value was modelled and is not what was measured.
    """

    group: str
    name: str
    cells: tuple[str, ...]
    values: tuple[float | None, ...]
    best: frozenset[int]
    apart: frozenset[int] = frozenset()


def human_bytes(count: float) -> str:
    """Bytes with a decimal unit and three significant digits.

    >>> human_bytes(12), human_bytes(153128), human_bytes(2.5e9)
    ('12 B', '153 kB', '2.50 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} B" if unit == "B" else f"{significant(count)} {unit}"
        count /= 1000
    return f"{significant(count)} TB"


def significant(value: float) -> str:
    """A number that is not negative, with three significant digits and an exponent only where it needs one.

    >>> significant(0.1234), significant(1.5), significant(99.99), significant(12345.6), significant(2e-7)
    ('0.123', '1.50', '100', '12,346', '2.00e-07')
    """
    if value == 0 or value >= 99.95:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")
    return f"{value:.2e}" if rounded < 0.0001 else f"{value:.{2 - floor(log10(rounded))}f}"


def quality_text(value: float) -> str:
    """A quality with four decimals, or with an exponent where four decimals would hide it.

    >>> quality_text(0.95), quality_text(3.1e-6), quality_text(0)
    ('0.9500', '3.10e-06', '0.0000')
    """
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.2e}"


def target_text(summary: Summary) -> str:
    """The target as a condition, such as 'test accuracy ≥ 0.95'."""
    task = summary.configuration.task
    return f"{task.quality} {'≥' if task.higher_is_better else '≤'} {task.target:g}"


def status_text(method: MethodSummary) -> str:
    """How many runs the final quality leaves out, and why; empty if none."""
    left_out = {status: len(method.seeds(status)) for status in ("diverged", "unfinished")}
    return ", ".join(f"{count} of {len(method.runs)} {status}" for status, count in left_out.items() if count)


def columns(summary: Summary) -> tuple[Column, ...]:
    """Every column after the method's name, in the order they are shown."""
    milliseconds = (
        _numbers("ms per step", name, [_milliseconds(each) for each in seconds], significant)
        for name, seconds in (
            ("encode", [method.encode_seconds for method in summary.methods]),
            ("decode", [method.decode_seconds for method in summary.methods]),
        )
    )
    if summary.on_sgd:
        return (*_distortions(summary), *_bytes(summary), *milliseconds)
    if summary.in_lab:  # which is about time
        return (*_qualities(summary), *_costs(summary), *_steps(summary), *milliseconds, *_bytes(summary))
    return (*_qualities(summary), *_bytes(summary), *_costs(summary), *milliseconds)


def _qualities(summary: Summary) -> tuple[Column, ...]:
    task, spreads = summary.configuration.task, [method.quality for method in summary.methods]
    quality = f"final {task.quality}"
    return (
        _numbers(
            quality,
            "mean",
            [s.mean if s else None for s in spreads],
            quality_text,
            max if task.higher_is_better else min,
        ),
        _numbers(quality, "std", [s.std if s else None for s in spreads], significant),
        Column(
            quality,
            "min..max",
            tuple(f"{quality_text(s.low)}..{quality_text(s.high)}" if s else MISSING for s in spreads),
            tuple(s.low if s else None for s in spreads),
            frozenset(),
        ),
    )


def _bytes(summary: Summary) -> tuple[Column, ...]:
    methods = summary.methods
    links = [method.link for method in methods]
    bytes_, less = "link bytes per step", "times less than ring"
    return (
        _numbers(bytes_, "up", [link.up if link else None for link in links], human_bytes),
        _numbers(bytes_, "down", [link.down if link else None for link in links], human_bytes),
        _numbers(bytes_, "sum", [link.both if link else None for link in links], human_bytes),
        _numbers(less, "fp32", [method.times_less_than_fp32 for method in methods], times_text),
        _numbers(less, "bf16", [method.times_less_than_bf16 for method in methods], times_text),
    )


def _costs(summary: Summary) -> tuple[Column, ...]:
    methods, target, seconds = summary.methods, "to target", "seconds to target"
    off = _apart(agreement.to_target(summary)) if summary.in_lab else frozenset()
    return (
        _crossings(target, "steps", [method.steps_to_target for method in methods], "{:,.0f}".format),
        _crossings(target, "bytes", [method.bytes_to_target for method in methods], human_bytes),
        *(
            _marked(
                _crossings(seconds, name, [method.seconds_to_target[name] for method in methods], significant),
                off if summary.in_lab and link is not None else frozenset(),
            )
            for name, _, link in summary.configuration.clocks
        ),
    )


def _steps(summary: Summary) -> tuple[Column, ...]:
    """What a step took in the lab, and what the model says of it."""
    found, group = agreement.of_steps(summary), "ms per step"
    off = _apart(found)
    return (
        _numbers(group, "measured", [_milliseconds(each.measured) for each in found], significant, min),
        _marked(_numbers(group, "modelled", [_milliseconds(each.modelled) for each in found], significant), off),
        _marked(_numbers(group, "off by", [each.off for each in found], "{:+.0%}".format), off),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _apart(found: Sequence[Agreement]) -> frozenset[int]:
    return frozenset(row for row, each in enumerate(found) if not each.holds)


def _marked(column: Column, apart: frozenset[int]) -> Column:
    """The column with a mark at the cells that a model got wrong: colour alone would not be seen by all."""
    cells = tuple(f"{cell} (!)" if row in apart else cell for row, cell in enumerate(column.cells))
    return replace(column, cells=cells, apart=apart)


def _distortions(summary: Summary) -> tuple[Column, ...]:
    found = [method.means for method in summary.methods]
    error, bits = "error", "bits a coordinate and symbol"
    return (
        _numbers("variance", "normalised", [each.variance for each in found], significant),
        _numbers("variance", "a coordinate", [each.coordinate_variance for each in found], significant),
        _numbers(error, "relative", [each.relative_error for each in found], significant),
        Column(
            error,
            "bias",
            tuple(_bias_text(each) for each in found),
            tuple(each.bias for each in found),
            frozenset(),
        ),
        _numbers(error, "cosine", [each.cosine for each in found], "{:.4f}".format),
        _numbers(bits, "sent", [each.bits_per_coordinate for each in found], significant),
        _numbers(bits, "fixed width", [each.symbol_width_bits for each in found], significant),
        _numbers(bits, "entropy", [each.symbol_entropy_bits for each in found], significant),
    )


def _bias_text(found: Means) -> str:
    if found.bias is None or found.bias_floor is None:
        return MISSING
    return significant(found.bias) if found.biased else f"<{significant(max(1e-6, found.bias_floor / 2))}"


def column_groups(summary: Summary) -> list[list[Column]]:
    """The same columns, those under one heading together."""
    return [list(group) for _, group in groupby(columns(summary), lambda column: column.group)]


def _numbers(
    group: str,
    name: str,
    values: Iterable[float | None],
    text: Callable[[float], str],
    best: Callable[[list[float]], float] | None = None,
) -> Column:
    values = tuple(values)
    present = [value for value in values if value is not None]
    winner = best(present) if best and present else None
    return Column(
        group,
        name,
        tuple(MISSING if value is None else text(value) for value in values),
        values,
        frozenset(row for row, value in enumerate(values) if winner is not None and value == winner),
    )


def _crossings(group: str, name: str, crossings: Sequence[Crossing], text: Callable[[float], str]) -> Column:
    numbers = _numbers(group, name, [crossing.mean for crossing in crossings], text, min)
    cells = (
        cell if crossing.mean is not None else _not_reached(crossing)
        for cell, crossing in zip(numbers.cells, crossings, strict=True)
    )
    return Column(group, name, tuple(cells), numbers.values, numbers.best)


def _not_reached(crossing: Crossing) -> str:
    return f"{crossing.reached}/{len(crossing.values)} reached" if crossing.reached else "not reached"


def times_text(ratio: float) -> str:
    """A ratio, such as '7.91x'."""
    return f"{significant(ratio)}x"


def notes(summary: Summary) -> tuple[str, ...]:
    """The rules behind the numbers, one sentence or two each; every rendering of the table carries them."""
    c = summary.configuration
    runs = [run for method in summary.methods for run in method.runs if run.evaluations]
    whole = [run for run in runs if run.status == "finished"] or runs
    samples = sorted({run.evaluations[-1].samples for run in whole})
    sampled = f"{samples[0]:,}" if len(samples) == 1 else f"{samples[0]:,} to {samples[-1]:,}"
    seeds = f"{len(c.seeds)} seed{'s' if len(c.seeds) > 1 else ''} ({', '.join(map(str, sorted(c.seeds)))})"
    if c.mode == "simulated":
        mode = "the workers are simulated in one process"
    elif summary.in_lab:
        mode = f"every worker is a real process behind a link of {c.links[0].label}, shaped both ways"
    else:
        mode = "every worker is a real process on this machine"
    fp32, bf16 = human_bytes(c.baseline_bytes.fp32.both), human_bytes(c.baseline_bytes.bf16.both)
    less = (
        f"Times less than ring: against a ring all-reduce of the gradients, both directions, in fp32 ({fp32} a step) "
        f"and in bf16 ({bf16})."
    )
    task = (
        f"Task {c.task.name}: {c.parameters:,} parameters, {c.workers} worker{'s' if c.workers > 1 else ''}, {seeds}, "
        f"{c.steps} steps of batch {c.batch_size} per worker, {sampled} samples a run; {mode}."
    )
    if summary.on_sgd:
        return (
            task,
            "Protocol: plain SGD trained one model for each seed, and every method was measured on those same "
            f"gradients, one step in {c.evaluate_every}; its estimates were not applied, but its state went along.",
            "Variance: of the aggregated estimate about its own mean, at fixed gradients; normalised by |mean|^2, or "
            "the mean over coordinates. Relative error: |estimate - mean| / |mean|.",
            "Bias: |E estimate - mean| / |mean|, free of the draws' noise, or <x where it does not stand out from it; "
            "with error feedback it counts what the memory adds, and so does the relative error.",
            "Bits: sent, all that a worker hands in, per step and coordinate; fixed width and entropy are of one "
            "symbol, where symbols travel. All are means over evaluations and seeds.",
            "Bytes: link bytes of one worker, mean over workers; 1 kB = 1000 bytes.",
            less,
        )
    return (
        task,
        f"Target: {target_text(summary)}, at the first evaluation that meets it (one every {c.evaluate_every} steps); "
        "mean over seeds, given only where every seed meets it.",
        "Final quality: last evaluation of the finished runs; std is the sample standard deviation over seeds.",
        "Bytes: link bytes of one worker, mean over workers; bytes to target are up and down together; "
        "1 kB = 1000 bytes.",
        less,
        *(_lab_notes(summary) if summary.in_lab else [_SECONDS]),
        *_local_notes(summary),
    )


_SECONDS = (
    "Seconds: compute, encode and decode of one worker, measured on this machine, plus the modelled link, one "
    "after the other: no overlap."
)


def _lab_notes(summary: Summary) -> list[str]:
    """What was measured, what was modelled, and what a mark says."""
    (link,) = summary.configuration.links
    return [
        "Seconds, measured: compute, encode and decode of one worker and all that it waited for collectives, mean over "
        "workers; modelled: the same, but for what it waited after the last worker had come, which is the link's and "
        "modelled. One after the other: no overlap.",
        f"Modelled link: {STREAM_SHARE:.1%} of the bandwidth, which is what headers leave of full frames, and "
        f"{significant(link.latency_seconds * 1000)} ms a hop, measured before the first run. (!) marks where the "
        f"model is more than {agreement.TOLERANCE:.0%} off what was measured.",
    ]


def _local_notes(summary: Summary) -> list[str]:
    """What else holds where workers train on their own between syncs."""
    methods = [each.method for each in summary.methods]
    told = []
    if any(method.local for method in methods):
        told.append(
            "Local updates: the model that the workers share, as of the last sync, is evaluated; a step is one of the "
            "inner optimiser, and what a sync costs is spread over the steps since the one before."
        )
    if any(method.asynchronous for method in methods):
        told.append("Asynchronous server: its own link, which carries what all workers send and get, is not counted.")
    return told


def table(summary: Summary) -> Group:
    """The table and its notes for a terminal of 100 columns or more; print it with a rich Console."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, leading=1)
    drawn.add_column(Text("method"), overflow="fold")
    groups = column_groups(summary)
    for group in groups:
        header = [*wrap(group[0].group, 10), *(column.name for column in group)]
        drawn.add_column(Text("\n".join(header)), justify="right", overflow="fold")
    for row, method in enumerate(summary.methods):
        drawn.add_row(_name_cell(method), *(_stack(group, row) for group in groups))
    return Group(drawn, *(Text(note, style="dim") for note in notes(summary)))


def _name_cell(method: MethodSummary) -> Text:
    status = status_text(method)
    return Text.assemble(method.method.label, (f"\n{status}", "bold red") if status else "")


def _stack(group: Sequence[Column], row: int) -> Text:
    cells = [
        (column.cells[row], "bold red" if row in column.apart else "bold green" if row in column.best else "")
        for column in group
    ]
    return Text("\n").join(Text(cell, style) for cell, style in cells)


def markdown(summary: Summary) -> str:
    """The same table and notes in GitHub's Markdown: a column for each group, the best cells bold."""
    groups = column_groups(summary)
    rows = [
        ["method", *(f"{group[0].group}: {' / '.join(column.name for column in group)}" for group in groups)],
        ["---", *("---:" for _ in groups)],
        *(
            [_markdown_name(method), *(_markdown_cell(group, row) for group in groups)]
            for row, method in enumerate(summary.methods)
        ),
    ]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(summary))]) + "\n"


def _markdown_name(method: MethodSummary) -> str:
    label = " ".join(method.method.label.split())
    status = status_text(method)
    code = f"`` {label} ``" if "`" in label else f"`{label}`"
    return f"{code} ({status})" if status else code


def _markdown_cell(group: Sequence[Column], row: int) -> str:
    cells = [f"**{column.cells[row]}**" if row in column.best else column.cells[row] for column in group]
    return cells[0] if "reached" in cells[0] and len(set(cells)) == 1 else " / ".join(cells)
