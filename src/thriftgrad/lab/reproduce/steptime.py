"""What a training step takes: forward, backward, encode, exchange, decode, with the exchange on a modelled link."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf

import torch

from thriftgrad.comm import LinkModel
from thriftgrad.comm.requests import AllGatherRequest, AllReduceRequest
from thriftgrad.comm.rounds import Traffic

MIB = 1024 * 1024
FIRST_BUCKET_BYTES, BUCKET_BYTES = MIB, 25 * MIB
"""DDP's own: a first bucket of 1 MiB, 25 MiB each after it."""


@dataclass(frozen=True)
class Compute:
    """Seconds of one worker's forward and backward pass."""

    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class Exchange:
    """One step's exchange by one method.

    Decoding takes ``decode_seconds + workers * decode_each_seconds``: where everybody's messages are gathered, each is
    decoded. ``collectives``: kind ("AllReduce" or "AllGather") and payload bytes, one after another. ``overlapped``:
    they run while the backward pass does, as DDP's buckets do; encoding and decoding never hide, they want the same
    processor.
    """

    label: str
    encode_seconds: float
    decode_seconds: float
    decode_each_seconds: float
    collectives: tuple[tuple[str, float], ...]
    overlapped: bool

    def decoding(self, workers: int) -> float:
        """Seconds of decoding; one worker alone exchanges nothing."""
        return self.decode_seconds + workers * self.decode_each_seconds if workers > 1 else 0.0

    def encoding(self, workers: int) -> float:
        """Seconds of encoding; one worker alone exchanges nothing."""
        return self.encode_seconds if workers > 1 else 0.0

    @property
    def payload_bytes(self) -> float:
        """What a worker hands to the collectives."""
        return sum(nbytes for _, nbytes in self.collectives)

    def traffic(self, workers: int) -> tuple[int, float]:
        """Hops one after another, and bytes each way on one worker's link."""
        found = [_traffic(kind, round(nbytes), workers) for kind, nbytes in self.collectives]
        return sum(each.hops for each in found), sum(each.up_bytes for each in found)

    def seconds_on(self, link: LinkModel, workers: int) -> float:
        """How long the collectives keep the link busy: latency times hops, plus bytes over bandwidth."""
        found = [_traffic(kind, round(nbytes), workers) for kind, nbytes in self.collectives]
        return sum(link.worker_seconds(0, each) for each in found)


@cache
def _traffic(kind: str, nbytes: int, workers: int) -> Traffic:
    """One worker's traffic in one collective, by the closed forms of ``comm.requests``."""
    x = torch.empty(nbytes, dtype=torch.uint8, device="meta")
    request = AllReduceRequest(x) if kind == "AllReduce" else AllGatherRequest(x)
    return request.traffic(0, workers)


@dataclass(frozen=True)
class Step:
    """The parts of one step, in seconds; ``hidden``: of the exchange, what runs behind the backward pass."""

    forward: float
    backward: float
    encode: float
    exposed: float
    hidden: float
    decode: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.forward + self.backward + self.encode + self.exposed + self.decode


def step(compute: Compute, exchange: Exchange, workers: int, link: LinkModel) -> Step:
    """The step of a method; exposed = max(0, exchange - backward) where it overlaps, the best that overlap can do.

    >>> plain = Exchange("fp32", 0.0, 0.0, 0.0, (("AllReduce", 4e6),), overlapped=True)
    >>> step(Compute(0.010, 0.020), plain, 2, LinkModel(1e9)).exposed  # 32 ms, of which 20 are hidden
    0.012
    """
    busy = exchange.seconds_on(link, workers)
    hidden = min(busy, compute.backward_seconds) if exchange.overlapped else 0.0
    return Step(
        compute.forward_seconds,
        compute.backward_seconds,
        exchange.encoding(workers),
        busy - hidden,
        hidden,
        exchange.decoding(workers),
    )


def uncompressed(elements: int, nbytes_each: int, overlapped: bool, cast: tuple[float, float] = (0.0, 0.0)) -> Exchange:
    """SGD by DDP: in its buckets and behind the backward pass, or in one piece after it.

    DDP reduces float32 gradients where they lie, so only a ``cast`` costs seconds (to, and back).
    """
    total, name = elements * 4, {4: "fp32", 2: "bf16"}[nbytes_each]
    pieces = [min(total, FIRST_BUCKET_BYTES)] if overlapped else [total]
    while sum(pieces) < total:
        pieces.append(min(BUCKET_BYTES, total - sum(pieces)))
    collectives = tuple(("AllReduce", float(piece * nbytes_each / 4)) for piece in pieces)
    return Exchange(f"SGD {name}", cast[0], cast[1], 0.0, collectives, overlapped)


def break_even(method: Exchange, baseline: Exchange, workers: int, compute: Compute, latency_seconds: float) -> float:
    """B*: the bits per second below which a method's step is shorter than the baseline's.

    With h hops of latency a, b bytes and codec c, and a window w of the backward pass where the exchange overlaps, a
    step takes c + max(0, h a + 8 b x - w) at x = 1 / B seconds a bit. Both are piecewise linear in x, so that B* is the
    reciprocal of a root on one of four pieces; with neither overlap nor latency, B* = 8 (b0 - b) / (c - c0). 0: at no
    bandwidth, however low; inf: at any.
    """
    (codec, start, slope), (codec_0, start_0, slope_0) = (
        _line(each, workers, compute, latency_seconds) for each in (method, baseline)
    )
    if slope >= slope_0:
        return 0.0
    roots = []
    for exposed, exposed_0 in ((True, True), (False, True), (True, False)):
        rise = exposed_0 * slope_0 - exposed * slope
        x = (codec - codec_0 + exposed * start - exposed_0 * start_0) / rise
        there = exposed == (start + slope * x > 0), exposed_0 == (start_0 + slope_0 * x > 0)
        if x > 0 and all(there):
            roots.append(x)
    return 1 / max(roots) if roots else inf


def _line(exchange: Exchange, workers: int, compute: Compute, latency_seconds: float) -> tuple[float, float, float]:
    """Codec seconds; exposed seconds at infinite bandwidth, negative where some window is left; bits."""
    hops, nbytes = exchange.traffic(workers)
    window = compute.backward_seconds if exchange.overlapped else 0.0
    codec = exchange.encoding(workers) + exchange.decoding(workers)
    return codec, hops * latency_seconds - window, 8 * nbytes
