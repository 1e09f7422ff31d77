"""Every coder on quantised Gaussian gradients: nanoseconds and bits a symbol, beside the entropy.

    python benchmarks/coders.py [--symbols N] [--rounds R]

One thread, whose own time is counted. Encode is symbols to stream, decode the way back; the medians of the rounds are
printed as a Markdown table. ``known`` means that both ends know the probabilities, so that no table need travel.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median
from time import process_time

import torch
from torch import Tensor

from thriftgrad import QSGD, Key, TensorSpec
from thriftgrad.core import Compressor
from thriftgrad.lab.comparison import cpu_name
from thriftgrad.wire.coders import ANS, Coder, Elias, GolombRice, Huffman, Zstd

SOURCES: dict[str, Compressor] = {
    "ternary": QSGD(levels=1, bucket=64),
    "3 bits, L2": QSGD(bits=3, bucket=512),
    "3 bits, Linf": QSGD(bits=3, bucket=512, norm="linf"),
    "4 bits, L2": QSGD(bits=4, bucket=512),
    "4 bits, Linf": QSGD(bits=4, bucket=512, norm="linf"),
    "4 bits, Linf, bucket 1024": QSGD(bits=4, bucket=1024, norm="linf"),
    "31 levels, L2, bucket 1024": QSGD(levels=15, bucket=1024),
}
CODERS: tuple[tuple[Coder, bool], ...] = (
    *((Elias(code), False) for code in ("gamma", "delta", "omega")),
    (Elias(sparse=True), False),
    (Huffman(), False),
    (Huffman(), True),
    (GolombRice(), False),
    (ANS(), False),
    (ANS(), True),
    (Zstd(), False),
)


def source(quantiser: Compressor, symbols: int) -> tuple[Tensor, TensorSpec, tuple[float, ...], float]:
    """Symbols, their spec, their shares, and their entropy in bits."""
    x = torch.randn(symbols, generator=torch.Generator().manual_seed(0))
    payload, _ = quantiser.compress(x, quantiser.init(TensorSpec.of(x)), Key(0))
    spec = payload.layout.carrier
    shares = torch.bincount(payload.carrier, minlength=spec.alphabet or 0).double() / symbols
    entropy = -float(torch.special.xlogy(shares, shares).sum()) / torch.tensor(2.0).log().item()
    return payload.carrier, spec, tuple(shares.tolist()), entropy


def measure(coder: Coder, symbols: Tensor, spec: TensorSpec, rounds: int) -> tuple[float, float, float]:
    """(encode ns, decode ns, bits) a symbol; the first round warms up."""
    encodes, decodes = [], []
    for _ in range(rounds + 1):
        start = process_time()
        stream = coder.encode(symbols, spec)
        encoded = process_time()
        back = coder.decode(stream, spec)
        decodes.append(process_time() - encoded)
        encodes.append(encoded - start)
    assert torch.equal(back, symbols)
    ns = 1e9 / len(symbols)
    return ns * median(encodes[1:]), ns * median(decodes[1:]), 8 * len(stream) / len(symbols)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.symbols} symbols, one thread, {cpu_name()}\n")
    print("| source | coder | bits/symbol | over entropy | encode ns | decode ns |\n|---|---|---|---|---|---|")
    for name, quantiser in SOURCES.items():
        symbols, spec, shares, entropy = source(quantiser, options.symbols)
        print(f"| {name} | entropy | {entropy:.4f} | | | |")
        packed = 8 * spec.nbytes / len(symbols)
        print(f"| {name} | packed | {packed:.4f} | {packed / entropy - 1:+.1%} | | |")
        for coder, known in CODERS:
            given = replace(spec, probabilities=shares) if known else spec
            encode, decode, bits = measure(coder, symbols, given, options.rounds)
            label = f"`{coder!r}`{' known' if known else ''}"
            print(f"| {name} | {label} | {bits:.4f} | {bits / entropy - 1:+.1%} | {encode:.1f} | {decode:.1f} |")


if __name__ == "__main__":
    main()
