"""What encoding and decoding cost on this machine, and an exchange over a modelled link."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import thread_time
from typing import TypeVar

from torch import Tensor

from thriftgrad.aggregate.agreement import agreed
from thriftgrad.comm import simulate
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.reproduce.probes import AnyCompressor, Measurement
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.lab.reproduce.synthetic import drawn

T = TypeVar("T")


@dataclass(frozen=True)
class Timing(Measurement):
    """CPU seconds of one worker, on one thread, for ``n`` Laplacian coordinates; the best of five, ``draws`` times.

    A row: label, bucket, draw, encode_seconds, decode_seconds (of one payload), update_seconds (of agreeing on levels
    or scales, 0 where nothing is), every_step_seconds (the same where every step needs it, as a shared scale does, else
    0), nbytes.
    """

    compressors: tuple[tuple[str, int, AnyCompressor], ...]  # label, bucket, compressor
    n: int
    draws: int
    seconds: float = 30.0

    @property
    def label(self) -> str:
        return "seconds of encoding and decoding"

    def rows(self) -> Iterator[Row]:
        for draw in range(self.draws):
            x = drawn("Laplace", self.n, draw)
            for label, bucket, compressor in self.compressors:
                yield {"label": label, "bucket": bucket, "draw": draw} | timed(compressor, x, Key(draw))


def timed(compressor: AnyCompressor, x: Tensor, key: Key) -> Row:
    """The seconds and bytes of one compressor on one vector."""
    first = compressor.init(TensorSpec.of(x))
    state, update = _timed(lambda: simulate([agreed(compressor, [x], [first], [key])])[0][0])  # once: fits are kept
    encoded = [_timed(lambda: compressor.compress(x, state, key)) for _ in range(5)]
    (payload, after), _ = encoded[0]
    decoded = [_timed(lambda: compressor.decompress(payload)) for _ in range(5)]
    return {
        "encode_seconds": min(seconds for _, seconds in encoded),
        "decode_seconds": min(seconds for _, seconds in decoded),
        "update_seconds": update if compressor.due(first) else 0.0,
        "every_step_seconds": update if compressor.due(after) else 0.0,
        "nbytes": payload.nbytes,
    }


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    """What an action returns, and its seconds on this thread."""
    start = thread_time()
    result = action()
    return result, thread_time() - start


def gathered_seconds(row: Row, workers: int, bits_per_second: float) -> float:
    """One exchange by all-gather: encode once, receive everybody else's, decode all; no latency, no overlap.

    A shared scale costs what the codec spends on agreeing; its few bytes are not counted.
    """
    received = 8 * row["nbytes"] * (workers - 1) / bits_per_second
    return float(row["every_step_seconds"] + row["encode_seconds"] + received + workers * row["decode_seconds"])


def reduced_seconds(n: int, workers: int, bits_per_second: float) -> float:
    """One exchange of n float32 numbers by a ring all-reduce.

    >>> reduced_seconds(1_000_000, workers=2, bits_per_second=32e6)
    1.0
    """
    return 2 * (workers - 1) / workers * 32 * n / bits_per_second
