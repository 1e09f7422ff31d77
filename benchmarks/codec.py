"""Encode and decode of every compressor, as multiples of a memory copy of the input in the same run.

    python benchmarks/codec.py [--elements N] [--rounds R] [--threads T] [--markdown]

Encode is compress and pack, decode is unpack and decompress, without memory or network. All compressors take turns in
each round, on inputs that rotate so that none lies in the cache; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from thriftgrad import (
    ALQ,
    AMQ,
    EDEN,
    NUQSGD,
    QSGD,
    Cast,
    Elias,
    ErrorFeedback,
    GolombRice,
    Huffman,
    Identity,
    Key,
    Lloyd,
    NaturalCompression,
    OneBit,
    RandomK,
    Sign,
    TensorSpec,
    TernGrad,
    TopK,
    wire,
)
from thriftgrad.core import Compressor
from thriftgrad.lab.comparison import cpu_name

COMPRESSORS: tuple[Compressor, ...] = (
    Identity(),
    Cast("bf16"),
    QSGD(bits=8),
    QSGD(bits=4),
    QSGD(bits=4, norm="linf"),
    QSGD(bits=3),
    QSGD(levels=1),
    QSGD(bits=4, include_zero=False),
    NUQSGD(bits=4),
    ALQ(bits=3),
    AMQ(bits=3),
    Lloyd(bits=3),
    TernGrad(),
    NaturalCompression(),
    OneBit(),
    EDEN(bits=2),
    QSGD(bits=3) >> Huffman(),
    ALQ(bits=3) >> Huffman(),
    NUQSGD(bits=3) >> Elias(sparse=True),
    TopK(fraction=0.01),
    TopK(fraction=0.01, index_coder=GolombRice()),
    RandomK(fraction=0.01),
    Sign(),
    Sign(bucket=512),
    TopK(fraction=0.01) >> QSGD(bits=4),
    ErrorFeedback(TopK(fraction=0.01)),
    ErrorFeedback(Sign()),
)


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what the function returned."""
    start = perf_counter()
    result = function()
    return perf_counter() - start, result


def measure(elements: int, rounds: int) -> list[tuple[Compressor, float, float, float]]:
    """(compressor, encode / copy, decode / copy, bits an element) for each compressor."""
    inputs = [torch.randn(elements, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    spec, target = TensorSpec((elements,)), torch.empty(elements)
    copies: list[float] = []
    encodes: dict[int, list[float]] = {i: [] for i in range(len(COMPRESSORS))}
    decodes: dict[int, list[float]] = {i: [] for i in range(len(COMPRESSORS))}
    bits = [0.0] * len(COMPRESSORS)
    states = [compressor.init(spec) for compressor in COMPRESSORS]
    for turn in range(rounds + 1):  # the first round warms up
        for i, compressor in enumerate(COMPRESSORS):
            x, key, state = inputs[(turn + i) % 4], Key(turn), states[i]

            def encode(compressor: Compressor = compressor, x=x, state=state, key=key):
                payload, after = compressor.compress(x, state, key)
                return wire.pack(payload), after

            copy_seconds, _ = timed(lambda x=x: target.copy_(x))
            encode_seconds, (message, states[i]) = timed(encode)
            decode_seconds, _ = timed(
                lambda compressor=compressor, message=message: compressor.decompress(
                    wire.unpack(message, compressor, spec)
                )
            )
            bits[i] = 8 * len(message) / elements
            if turn:
                copies.append(copy_seconds)
                encodes[i].append(encode_seconds)
                decodes[i].append(decode_seconds)
    copy = median(copies)
    return [
        (compressor, median(encodes[i]) / copy, median(decodes[i]) / copy, bits[i])
        for i, compressor in enumerate(COMPRESSORS)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="a Markdown table, to be kept under benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options.elements, options.rounds)
    about = (
        f"{date.today()}, {cpu_name()}, torch {torch.__version__}, {options.threads} thread, "
        f"{options.elements:,} float32, median of {options.rounds} rounds; 1.0 is a memory copy of the input"
    )
    if options.markdown:
        print(f"{about}\n\n| compressor | encode | decode | bits an element |\n|---|---:|---:|---:|")
        for compressor, encode, decode, bits in rows:
            print(f"| `{compressor!r}` | {encode:.2f} | {decode:.2f} | {bits:.3f} |")
        return
    table = Table(
        "compressor", *(("encode / copy", "decode / copy", "bits an element")), title=about, title_justify="left"
    )
    for compressor, encode, decode, bits in rows:
        table.add_row(repr(compressor), f"{encode:.2f}", f"{decode:.2f}", f"{bits:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
