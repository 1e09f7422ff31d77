"""The CPU kernels, as multiples of the time of a memory copy of their input in the same run; lower is better.

    python benchmarks/kernels.py [--rows NAME ...] [--elements N] [--rounds R] [--reference] [--markdown]

All rows take turns in each round, with one thread and with two, on inputs that rotate so that none lies in a cache;
figures are of the fastest round of each. ``--reference`` adds plain torch, once a row. A row is a line in ``ROWS``.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from time import perf_counter

import sparse_and_coded as sparse
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.quantised import Norm
from thriftgrad.lab.comparison import cpu_name

Vectors = list[Tensor]
Call = Callable[[int], object]


@dataclass(frozen=True)
class Row:
    """A kernel: ``setup`` gets vectors of float32 and makes a function of the turn, which says what to take next."""

    name: str
    target: str
    setup: Callable[[Vectors], Call]
    symbols_a_second: bool = False  # its figure is G symbols a second, not a multiple of a copy


def table(p: float, bits: int) -> Tensor:
    """2**bits - 1 levels, exponential with base p."""
    return torch.from_numpy(theory.amq_levels(p, bits, True)).float()


def uniform(bits: int, bucket: int, norm: Norm, memory: bool = False) -> Callable[[Vectors], Call]:
    """QSGD; with a memory, x is another vector."""
    s = 2 ** (bits - 1) - 1
    return lambda x: (
        lambda i: kernels.quantise_uniform(x[i % len(x)], s, bucket, norm, i, x[(i + 2) % len(x)] if memory else None)
    )


def levels(table: Tensor, memory: bool = False) -> Callable[[Vectors], Call]:
    """Any table, L2, buckets of 1024."""
    return lambda x: (
        lambda i: kernels.quantise_levels(x[i % len(x)], table, 1024, "l2", i, x[(i + 2) % len(x)] if memory else None)
    )


def sign(memory: bool) -> Callable[[Vectors], Call]:
    """Sign and mean magnitude, buckets of 1024."""
    return lambda x: lambda i: kernels.quantise_sign(x[i % len(x)], 1024, x[(i + 2) % len(x)] if memory else None)


def add(table: Tensor) -> Callable[[Vectors], Call]:
    """Unpack, dequantise and accumulate, buckets of 512."""

    def setup(x: Vectors) -> Call:
        made = [kernels.quantise_levels(each, table, 512, "linf", 0) for each in x]
        totals = [torch.zeros_like(x[0]) for _ in range(2)]
        return lambda i: kernels.dequantise_add(
            made[i % len(made)].stream, made[i % len(made)].scale, table, 512, totals[i % 2]
        )

    return setup


def packing(alphabet: int, unpack: bool) -> Callable[[Vectors], Call]:
    """Symbols to bytes, or back."""

    def setup(x: Vectors) -> Call:
        symbols = torch.arange(x[0].numel()).remainder_(alphabet).to(torch.uint8)
        stream = kernels.pack(symbols, alphabet)
        return lambda i: kernels.unpack(stream, len(symbols), alphabet) if unpack else kernels.pack(symbols, alphabet)

    return setup


ROWS = (
    Row("uniform 4 bits, L2, bucket 512", "1.4", uniform(4, 512, "l2")),
    Row("uniform 4 bits, L2, bucket 8192", "1.4", uniform(4, 8192, "l2")),
    Row("uniform 4 bits, Linf, bucket 512", "1.4", uniform(4, 512, "linf")),
    Row("uniform 4 bits, Linf, bucket 8192", "1.4", uniform(4, 8192, "linf")),
    Row("uniform 4 bits, L2, one bucket", "", uniform(4, 1 << 40, "l2")),
    Row("uniform 4 bits, L2, bucket 100", "", uniform(4, 100, "l2")),
    Row("uniform 3 bits, L2, bucket 512", "", uniform(3, 512, "l2")),
    Row("uniform ternary, L2, bucket 512", "", uniform(2, 512, "l2")),
    Row("uniform 8 bits, L2, bucket 512", "", uniform(8, 512, "l2")),
    Row("uniform 4 bits, L2, bucket 512, memory", "2.9", uniform(4, 512, "l2", memory=True)),
    Row("table of 15 levels", "2.5", levels(table(0.6, 4))),
    Row("table of 7 levels", "2.5", levels(table(0.6, 3))),
    Row("table of 15 levels, memory", "4.0", levels(table(0.6, 4), memory=True)),
    Row("table of 31 levels", "", levels(table(0.6, 5))),
    Row("table of 127 levels", "", levels(table(0.6, 7))),
    Row("powers, 15 levels", "1.7", levels(table(0.5, 4))),
    Row("powers, 7 levels", "1.7", levels(table(0.5, 3))),
    Row("powers, 15 levels, memory", "3.2", levels(table(0.5, 4), memory=True)),
    Row("sign", "", sign(memory=False)),
    Row("sign, memory", "2.0", sign(memory=True)),
    Row("dequantise and add, uniform 4 bits", "1.0", add(kernels.uniform_levels(7))),
    Row("dequantise and add, powers 4 bits", "1.0", add(table(0.5, 4))),
    Row("dequantise and add, 15 levels", "1.0", add(table(0.6, 4))),
    Row("dequantise and add, 7 levels", "", add(table(0.6, 3))),
    Row("dequantise and add, 127 levels", "", add(table(0.6, 7))),
    Row("dequantise and add, ternary", "", add(kernels.uniform_levels(1))),
    Row("dequantise and add, sign", "", add(torch.tensor([-1.0, 1.0]))),
    Row("pack 4 bits", "", packing(15, unpack=False)),
    Row("unpack 4 bits", "", packing(15, unpack=True)),
    Row("top-k of 1 %", "1.5", sparse.top_k(0.01)),
    Row("top-k of 0.1 %", "1.0", sparse.top_k(0.001)),
    Row("top-k of 1 %, memory", "3.0", sparse.top_k(0.01, memory=True)),
    Row("top-k of 0.1 %, memory", "2.5", sparse.top_k(0.001, memory=True)),
    Row("memory alone", "", sparse.owed),
    Row("add 1 % at their indices", "", sparse.add_at(0.01)),
    Row("pack indices of 1 %", "", sparse.indices(0.01, unpack=False)),
    Row("unpack indices of 1 %", "", sparse.indices(0.01, unpack=True)),
    Row("random support of 1 %", "", sparse.support(0.01)),
    Row("Huffman: count pairs, 4 bits Linf", "", sparse.codes(sparse.FOUR_BITS, 2, "count"), symbols_a_second=True),
    Row("Huffman: write pairs, 4 bits Linf", ">= 3", sparse.codes(sparse.FOUR_BITS, 2, "write"), symbols_a_second=True),
    Row("Huffman: read pairs, 4 bits Linf", ">= 2", sparse.codes(sparse.FOUR_BITS, 2, "read"), symbols_a_second=True),
    Row("Huffman: write fives, ternary", ">= 3", sparse.codes(sparse.TERNARY, 5, "write"), symbols_a_second=True),
    Row("Huffman: read fives, ternary", ">= 2", sparse.codes(sparse.TERNARY, 5, "read"), symbols_a_second=True),
    Row("Huffman: all of encode, 4 bits Linf", "", sparse.coder(sparse.FOUR_BITS, False), symbols_a_second=True),
    Row("Huffman: all of decode, 4 bits Linf", "", sparse.coder(sparse.FOUR_BITS, True), symbols_a_second=True),
)


def copying(x: Vectors) -> Call:
    """Copies to a buffer that stays."""
    target = torch.zeros_like(x[0])
    libc = ctypes.CDLL(None)

    def copy(i: int) -> None:
        to, source = target.data_ptr(), x[i % len(x)].data_ptr()
        over_slices(
            lambda low, high: libc.memcpy(
                ctypes.c_void_p(to + 4 * low), ctypes.c_void_p(source + 4 * low), ctypes.c_size_t(4 * (high - low))
            ),
            target.numel(),
        )

    return copy


COPY = Row("memory copy", "", copying)
"""What all others are compared with: libc's memcpy, a slice to a thread."""


def seconds(call: Call, turn: int) -> float:
    """Of one call."""
    start = perf_counter()
    call(turn)
    return perf_counter() - start


@dataclass(frozen=True)
class Figures:
    """Of a row: with one thread, with two, and what threads gain; the reference, if it was asked for."""

    row: Row
    alone: float
    together: float
    gain: float
    reference: float | None


def measure(rows: list[Row], elements: int, rounds: int, reference: bool) -> tuple[float, list[Figures]]:
    """Seconds of a copy with one thread, and a figure for each row."""
    vectors = [torch.randn(elements, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    calls = [row.setup(vectors) for row in (COPY, *rows)]
    took: dict[tuple[int, int], list[float]] = {(i, count): [] for i in range(len(calls)) for count in (1, 2)}
    for turn in range(rounds + 1):  # the first round compiles and gets memory
        for count in (1, 2):
            kernels.set_threads(count)
            for i, call in enumerate(calls):
                took[i, count].append(seconds(call, turn + i))
    fastest = {key: min(values[1:]) for key, values in took.items()}
    plain: list[float | None] = [None] * len(calls)
    if reference:
        kernels.use("reference")
        torch.set_num_threads(1)
        plain = [seconds(call, i) for i, call in enumerate(calls)]
        kernels.use(None)

    def figure(row: Row, taken: float, copy: float) -> float:
        return elements / taken / 1e9 if row.symbols_a_second else taken / copy

    figures = []
    for i, row in enumerate(rows, 1):
        alone, together, slow = fastest[i, 1], fastest[i, 2], plain[i]
        copy = fastest[0, 1]
        figures.append(
            Figures(
                row,
                figure(row, alone, copy),
                figure(row, together, fastest[0, 2]),
                alone / together,
                None if slow is None else figure(row, slow, copy),
            )
        )
    return fastest[0, 1], figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", help="parts of the names of rows; all of them, if not given")
    parser.add_argument("--elements", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reference", action="store_true", help="plain torch too: seconds a row")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table, to be kept under benchmarks/results")
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    copy, figures = measure(rows, options.elements, options.rounds, options.reference)
    about = (
        f"{date.today()}, {cpu_name()}, torch {torch.__version__}, {options.elements:,} float32, fastest of "
        f"{options.rounds} rounds; 1.0 is a memory copy of the input with as many threads "
        f"({4 * options.elements / copy / 1e9:.1f} GB/s with one)"
    )
    columns = ("kernel", "one thread", "two threads", "gain by the second", "target", "plain torch")
    lines = [
        (
            each.row.name + (", G symbols/s" if each.row.symbols_a_second else ""),
            f"{each.alone:.2f}",
            f"{each.together:.2f}",
            f"{each.gain:.2f}",
            each.row.target,
            "" if each.reference is None else f"{each.reference:.1f}",
        )
        for each in figures
    ]
    if options.markdown:
        print(f"{about}\n\n| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
        for line in lines:
            print(f"| {' | '.join(line)} |")
        return
    shown = Table(*columns, title=about, title_justify="left")
    for line in lines:
        shown.add_row(*line)
    Console().print(shown)


if __name__ == "__main__":
    main()
