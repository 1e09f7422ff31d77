"""The pages of the table that counts, from its records: what was measured, what is owed, and where the time goes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from math import isfinite, nan
from pathlib import Path
from textwrap import fill

import torch
from ddp_records import Cells, Measured
from ddp_rows import ROWS

from thriftgrad.lab.comparison import cpu_name
from thriftgrad.lab.shape import Shape

BEGIN, END = "<!-- ddp table, by benchmarks/ddp.py -->", "<!-- end of ddp table -->"
README_ROWS = (
    "DDP float32",
    "bf16_compress_hook",
    "powerSGD_hook rank 1",
    "bf16",
    "4 bits",
    "4 bits, Huffman",
    "1 bit, memory",
    "top 1 %, memory",
    "PowerSGD rank 1",
    "PowerSGD rank 4",
    "Qsparse-local, H = 8",
    "DiLoCo, H = 50",
)
SETTING = """\
gloo, one torch thread a worker. A GPT of 10.9 M parameters (width 384, 6 blocks), 4 sequences of 128 bytes a worker,
SGD with momentum. Links shaped both ways by `thriftgrad lab`, without a latency of their own. Bold: ours."""
FIGURES = """\
A figure is the median step, of the slowest worker, as a multiple of the median of the steps without communication
(DDP's noop_hook) right before and after it in the same processes. Those took"""
NOTES = """\
Whether a compressor's payloads go round by all-gather, in two phases or as a ring's all-reduce is the link model's
choice, with 12 and 8 ms to encode and decode a payload, 25 and 4 ms for a sparse one; it stands below each table.

PyTorch's powerSGD_hook has one DDP bucket because with more of them it aborts on gloo; its bf16 hook is wrapped because
DDP refuses it by name on gloo. DDP's other hooks keep its default of 25 MB. Qsparse and DiLoCo are the mean over a
whole period, sync included, with their own inner optimisers (SGD with Nesterov's momentum, AdamW, which takes longer
than the SGD of the step it is compared with).

Other libraries' codecs. GRACE has no row: the package registry has no `grace-dl`; its source is installed from a
repository. hivemind 1.1.12 ran beside numpy 2.3: with numpy 2.4 its decoders of 8 bits end in "TypeError: only
0-dimensional arrays can be converted to Python scalars". Its uniform codec is applied to the whole gradient, and
messages go round by one all-gather. Its blockwise codec has no row: bitsandbytes 0.45.5, which
it calls, ends in a segmentation fault where 4096 coordinates in a row are zero, as embeddings are that a batch does not
touch."""


@dataclass(frozen=True)
class Owed:
    """What the table was promised to show: a ratio at the most."""

    workers: int
    link: str
    label: str
    at_most: float


OWED = (
    Owed(2, "1gbit", "4 bits", 1.10),
    Owed(2, "1gbit", "top 1 %, memory", 1.05),
    Owed(2, "100mbit", "top 1 %, memory", 1.15),
    Owed(2, "100mbit", "PowerSGD rank 1", 1.12),
    Owed(2, "100mbit", "4 bits", 2.2),
    Owed(2, "100mbit", "4 bits, Huffman", 1.8),
    Owed(4, "100mbit", "4 bits", 1.7),
)
ONE_WITHIN = 1.10  # some method of ours, on every finite link


def results(cells: Cells, command: str) -> str:
    """The whole page."""
    return "\n".join(
        [
            f"# A DDP step over slow links\n\n    {command}\n",
            *_setting(cells),
            "",
            *summary(cells, [row.label for row in ROWS]),
            f"\n{NOTES}\n\n## What was owed\n",
            *owed(cells),
            "",
            *(line for place, cell in cells.items() for line in detail(place, cell)),
        ]
    )


def _setting(cells: Cells) -> Iterable[str]:
    cores = len(os.sched_getaffinity(0))
    machine = f"{date.today()}, {cores} cores of a virtual machine ({cpu_name()}), torch {torch.__version__}, "
    done = [each for cell in cells.values() for each in cell.values() if isinstance(each, Measured)]
    took = []
    for workers in sorted({each.workers for each in done}):
        floors = [1e3 * each.noop_seconds for each in done if each.workers == workers]
        took.append(f"{min(floors):.0f} to {max(floors):.0f} ms with {workers} workers")
    loads = [each.load for each in done]
    yield fill(machine + SETTING, 120)
    yield ""
    yield fill(
        f"{FIGURES} {', '.join(took)} on these {cores} cores; on their own, four would compute as fast as two. "
        f"Load averages, which count the workers: {min(loads):.1f} to {max(loads):.1f}.",
        120,
    )


def summary(cells: Cells, labels: Sequence[str]) -> Iterable[str]:
    """Ratios of the named rows in all cells."""
    by_label = {row.label: row for row in ROWS}
    yield _line("", *(f"{link}, n = {workers}" for workers, link in cells))
    yield "|---|" + "---:|" * len(cells)
    for label in labels:
        name = f"**{label}**" if by_label[label].ours else label
        yield _line(name, *(_ratio(cell.get(label)) for cell in cells.values()))


def _ratio(found: Measured | str | None) -> str:
    match found:
        case Measured():
            return f"{found.ratio:.2f}"
        case str():
            return "failed"
    return ""


def owed(cells: Cells) -> Iterable[str]:
    """Each promise: reached or missed, and why."""
    yield _line("workers", "link", "method", "owed", "measured", "", "where the time goes")
    yield "|---|---|---|---:|---:|---|---|"
    for promise in OWED:
        found = cells.get((promise.workers, promise.link), {}).get(promise.label)
        if isinstance(found, Measured):
            yield _line(
                promise.workers, promise.link, promise.label, f"{promise.at_most:.2f}", f"{found.ratio:.2f}",
                _verdict(found.ratio <= promise.at_most), found.why,
            )  # fmt: skip
    for (workers, link), cell in cells.items():
        done = [each for each in cell.values() if isinstance(each, Measured)]
        ours = [each for each in done if each.row.ours]
        if ours and Shape.of(link).model:
            best = min(ours, key=lambda each: each.ratio)
            fits = _verdict(best.ratio <= ONE_WITHIN)
            yield _line(
                workers,
                link,
                f"one of ours: {best.row.label}",
                f"{ONE_WITHIN:.2f}",
                f"{best.ratio:.2f}",
                fits,
                best.why,
            )
        for mine in ours:
            rivals = [each for each in done if each.row.kind == mine.row.kind and not each.row.ours]
            if rivals:
                rival = min(rivals, key=lambda each: each.ratio)
                name, most = f"{mine.row.label} against {rival.row.label}", rival.ratio
                yield _line(
                    workers, link, name, f"{most:.2f}", f"{mine.ratio:.2f}", _verdict(mine.ratio <= most), mine.why
                )


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def detail(place: tuple[int, str], cell: dict[str, Measured | str]) -> Iterable[str]:
    """One cell: all columns, and how each of ours travelled."""
    workers, link = place
    yield from (f"## {workers} workers, {link}", "")
    titles = ["ms a step", "ratio", "MB sent", "MB by the ledger", "CPU ms more"]
    titles += ["encode ms", "decode ms", "exposed ms", "DDP bucket, MB"]
    yield _line("", *titles)
    yield "|---|" + "---:|" * len(titles)
    done = [each for row in ROWS if isinstance(each := cell.get(row.label), Measured)]
    for each in done:
        codec = [1e3 * each.books.get(f"{name}_seconds", nan) for name in ("encode", "decode", "exposed")]
        numbers = [1e3 * each.seconds, each.ratio, each.sent_bytes / 1e6, each.ledger_bytes / 1e6]
        numbers += [1e3 * each.extra_cpu_seconds, *codec]
        digits = (0, 2, 2, 2, 0, 0, 0, 0)
        cells = [f"{x:.{places}f}" if isfinite(x) else "" for x, places in zip(numbers, digits, strict=True)]
        yield _line(each.row.label, *cells, each.bucket_mb or "")
    yield ""
    failed = [(label, why) for label, why in cell.items() if isinstance(why, str)]
    yield from (f"{label} failed: {why}" for label, why in failed)
    yield from ("", *(f"* {each.row.label}: `{each.method}`" for each in done if each.row.ours), "")


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def into_readme(readme: Path, cells: Cells, page: Path, figure: Path) -> None:
    """Replace what stands between the two marks by a shorter table, and say where the rest is."""
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    known = [label for label in README_ROWS if any(label in cell for cell in cells.values())]
    lines = [before + BEGIN, "", *summary(cells, known), ""]
    lines += ["(All rows, bytes, where the time goes, what was promised and what was missed:"]
    lines += [f"[benchmarks/results]({page.resolve().relative_to(readme.resolve().parent)}).)", ""]
    if figure.exists():
        where = figure.resolve().relative_to(readme.resolve().parent)
        lines += [f"![Bits per byte against measured seconds, for the quickest methods]({where})", ""]
    readme.write_text("\n".join([*lines, END + after]))
