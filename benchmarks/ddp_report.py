"""The pages of the table that counts, from its records: what was measured, what is owed, and where the time goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from math import isfinite, nan
from pathlib import Path
from statistics import median

import torch
from ddp_rows import ROWS, Row

from thriftgrad.lab.comparison import cpu_name
from thriftgrad.lab.shape import STREAM_SHARE, Shape

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
EXPLAINED = """\
gloo, one torch thread a worker. A GPT of 10.9 M parameters (width 384, 6 blocks), 4 sequences of 128 bytes a worker,
SGD with momentum. Links shaped both ways by `thriftgrad lab`, without a latency of their own. Bold: ours.

A figure is the median step, of the slowest worker, as a multiple of the median of the steps without communication
(DDP's noop_hook) right before and after it in the same processes. Those took"""
NOTES = """\
Whether a compressor's payloads go round by all-gather, in two phases or as a ring's all-reduce is the link model's
choice, except that two phases, which compress twice, have to save 50 ms; it stands below each table.

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
    return Measured(*where, seconds, noop, extra, found["sent_bytes"], found["books"], found["method"])


def best(cell: dict[str, Measured | str], count: int) -> list[str]:
    """The labels of our quickest rows, one of each kind."""
    kinds: dict[str, Measured] = {}
    for each in cell.values():
        if isinstance(each, Measured) and each.row.ours:
            rival = kinds.get(each.row.family)
            kinds[each.row.family] = each if rival is None or each.ratio < rival.ratio else rival
    return [each.row.label for each in sorted(kinds.values(), key=lambda each: each.ratio)[:count]]


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
    machine = f"{date.today()}, {cores} cores of a virtual machine ({cpu_name()}), torch {torch.__version__}."
    yield f"{machine}\n{EXPLAINED}"
    done = [each for cell in cells.values() for each in cell.values() if isinstance(each, Measured)]
    for workers in sorted({each.workers for each in done}):
        floors = [each.noop_seconds for each in done if each.workers == workers]
        yield f"{1e3 * min(floors):.0f} to {1e3 * max(floors):.0f} ms with {workers} workers on these {cores} cores;"
    yield "four on machines of their own would compute as fast as two."


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
                workers, link, f"one of ours: {best.row.label}", ONE_WITHIN, f"{best.ratio:.2f}", fits, best.why
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
        yield _line(each.row.label, *cells, each.row.bucket_mb or "")
    yield ""
    failed = [(label, why) for label, why in cell.items() if isinstance(why, str)]
    yield from (f"{label} failed: {why}" for label, why in failed)
    yield from ("", *(f"* {each.row.label}: `{each.method}`" for each in done if each.row.ours), "")


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def into_readme(readme: Path, cells: Cells) -> None:
    """Replace what stands between the two marks."""
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    known = [label for label in README_ROWS if any(label in cell for cell in cells.values())]
    readme.write_text("\n".join([before + BEGIN, "", *summary(cells, known), "", END + after]))
