"""Seconds that a collective would take on a stated link."""

from __future__ import annotations

import re
from dataclasses import dataclass

from thriftgrad.comm.rounds import Round, Traffic
from thriftgrad.core.compressor import Expression

_BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, repr=False)
class LinkModel(Expression):
    """The alpha-beta model: a message of S bytes takes latency + 8 S / bandwidth seconds.

    Every worker has one full-duplex link to a switch that never blocks: up and down run at once, a collective is over
    when its slowest worker is. ``down_bits_per_second=None``: as fast as up. Worker r pays
    ``extra_latency_seconds[r]`` more per hop, and computes and sends ``slowdown[r]`` times slower (a straggler); ranks
    beyond the end of these tuples pay nothing.

    Raises ``ValueError`` for a bandwidth or slowdown that is not positive or a negative latency.

    >>> LinkModel.of("100mbit,1ms")
    LinkModel(up_bits_per_second=100000000.0, latency_seconds=0.001)
    """

    up_bits_per_second: float
    down_bits_per_second: float | None = None
    latency_seconds: float = 0.0
    extra_latency_seconds: tuple[float, ...] = ()
    slowdown: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("up", self.up_bits_per_second), ("down", self.down_bits_per_second)):
            if value is not None and not value > 0:
                raise ValueError(f"LinkModel: {name}_bits_per_second must be positive, got {value}.")
        if not all(seconds >= 0 for seconds in (self.latency_seconds, *self.extra_latency_seconds)):
            raise ValueError(f"LinkModel: a latency cannot be negative, got {self!r}.")
        if not all(factor > 0 for factor in self.slowdown):
            raise ValueError(f"LinkModel: slowdown factors must be positive, got {self.slowdown}.")

    @classmethod
    def of(cls, text: str) -> LinkModel:
        """From "100mbit,1ms" (bandwidth, latency) or "20mbit/100mbit,30ms" (up / down); the latency may be left out.

        Raises ``ValueError`` for any other text.
        """
        number = r"(\d+(?:\.\d+)?)"
        match = re.fullmatch(
            rf"{number}([kmg]?bit)(?:/{number}([kmg]?bit))?(?:,{number}(us|ms|s))?", text.replace(" ", "")
        )
        if match is None:
            raise ValueError(f'link: expected "100mbit,1ms" or "20mbit/100mbit,30ms" (up/down,latency), got {text!r}.')
        up, up_unit, down, down_unit, latency, latency_unit = match.groups()
        return cls(
            float(up) * _BITS[up_unit],
            float(down) * _BITS[down_unit] if down else None,
            float(latency) * _SECONDS[latency_unit] if latency else 0.0,
        )

    def seconds(self, finished: Round) -> float:
        """How long the collective lasts: the time of its slowest worker."""
        return max((self.worker_seconds(rank, traffic) for rank, traffic in finished.traffic.items()), default=0.0)

    def worker_seconds(self, rank: int, traffic: Traffic) -> float:
        """How long it keeps one worker's link busy."""
        extra = self.extra_latency_seconds[rank] if rank < len(self.extra_latency_seconds) else 0.0
        down = self.down_bits_per_second or self.up_bits_per_second
        flight = 8 * max(traffic.up_bytes / self.up_bits_per_second, traffic.down_bytes / down)
        return traffic.hops * (self.latency_seconds + extra) + flight * self.slowdown_of(rank)

    def slowdown_of(self, rank: int) -> float:
        """How many times slower than the others this worker is."""
        return self.slowdown[rank] if rank < len(self.slowdown) else 1.0
