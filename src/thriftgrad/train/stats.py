"""What training with a method has cost so far."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """One rank's bytes since it began; totals unless named ``per_step``.

    ``payload_*_bytes``: what the method handed to collectives and got out of them. ``up_bytes``, ``down_bytes``: what
    the rank's link carried for it. ``elements``: of one step's gradient, or of the model.
    """

    steps: int
    world: int
    elements: int
    payload_up_bytes: int
    payload_down_bytes: int
    up_bytes: int
    down_bytes: int

    @property
    def payload_up_bytes_per_step(self) -> float:
        """Bytes handed to collectives."""
        return self._per_step(self.payload_up_bytes)

    @property
    def payload_down_bytes_per_step(self) -> float:
        """Bytes that came out of collectives."""
        return self._per_step(self.payload_down_bytes)

    @property
    def up_bytes_per_step(self) -> float:
        """Bytes sent on the link."""
        return self._per_step(self.up_bytes)

    @property
    def down_bytes_per_step(self) -> float:
        """Bytes received on the link."""
        return self._per_step(self.down_bytes)

    @property
    def compression_vs_fp32(self) -> float:
        """Link bytes of a ring all-reduce in float32 at every step, up and down, over the method's; NaN without any."""
        return self._compression(element_bytes=4)

    @property
    def compression_vs_bf16(self) -> float:
        """The same against a ring all-reduce in bfloat16."""
        return self._compression(element_bytes=2)

    def _per_step(self, total: float) -> float:
        return total / self.steps if self.steps else math.nan

    def _compression(self, element_bytes: int) -> float:
        ring = 2 * (self.world - 1) / self.world * self.elements * element_bytes  # bytes a step, each way
        sent = self.up_bytes + self.down_bytes
        return 2 * ring * self.steps / sent if sent else math.nan

    def _described(self, steps: str, more: str = "") -> str:
        if not (self.up_bytes or self.down_bytes):
            return f"{steps}; nothing sent"
        return (
            f"{steps}; per step {self.up_bytes_per_step:.0f} bytes up, {self.down_bytes_per_step:.0f} bytes down{more}"
            f"; {self.compression_vs_fp32:.1f} times less than an fp32 all-reduce, "
            f"{self.compression_vs_bf16:.1f} times less than bf16"
        )


@dataclass(frozen=True, kw_only=True)
class Stats(Costs):
    """One rank's costs since ``attach``; byte counts and seconds are totals unless named ``per_step``.

    ``encode_seconds``: computed before the last collective of a DDP bucket, ``decode_seconds``: after its answer.
    ``hidden_seconds``: something was in flight while ``backward`` had DDP buckets still to hand over;
    ``exposed_seconds``: ``backward`` waited after it had handed over the last.
    ``skipped_steps``: those with a non-finite gradient, which left every memory as it was. ``uncompressed``: the
    parameters that travel as they are, where the method says so.

    >>> stats = Stats(steps=10, skipped_steps=0, world=2, elements=1000, payload_up_bytes=5000, payload_down_bytes=5000,
    ...               up_bytes=5000, down_bytes=5000, encode_seconds=0.02, decode_seconds=0.01, hidden_seconds=0.2,
    ...               exposed_seconds=0.05, uncompressed=())
    >>> stats.up_bytes_per_step, stats.compression_vs_fp32, stats.compression_vs_bf16
    (500.0, 8.0, 4.0)
    >>> print(stats)
    10 steps; per step 500 bytes up, 500 bytes down, 2.00 ms to encode, 1.00 ms to decode, \
20.00 ms of communication hidden and 5.00 ms exposed; \
8.0 times less than an fp32 all-reduce, 4.0 times less than bf16
    """

    skipped_steps: int
    encode_seconds: float
    decode_seconds: float
    hidden_seconds: float
    exposed_seconds: float
    uncompressed: tuple[str, ...]

    @property
    def encode_seconds_per_step(self) -> float:
        """Seconds of computing before the last collective of each DDP bucket."""
        return self._per_step(self.encode_seconds)

    @property
    def decode_seconds_per_step(self) -> float:
        """Seconds of computing after the last answer of each DDP bucket."""
        return self._per_step(self.decode_seconds)

    @property
    def hidden_seconds_per_step(self) -> float:
        """Seconds in which something was in flight while ``backward`` went on."""
        return self._per_step(self.hidden_seconds)

    @property
    def exposed_seconds_per_step(self) -> float:
        """Seconds that ``backward`` waited at its end."""
        return self._per_step(self.exposed_seconds)

    def __str__(self) -> str:
        skipped = f" ({self.skipped_steps} skipped)" if self.skipped_steps else ""
        encode, decode = 1e3 * self.encode_seconds_per_step, 1e3 * self.decode_seconds_per_step
        hidden, exposed = 1e3 * self.hidden_seconds_per_step, 1e3 * self.exposed_seconds_per_step
        return self._described(
            f"{self.steps} steps{skipped}",
            f", {encode:.2f} ms to encode, {decode:.2f} ms to decode, {hidden:.2f} ms of communication hidden and "
            f"{exposed:.2f} ms exposed",
        )


@dataclass(frozen=True, kw_only=True)
class LocalStats(Costs):
    """One rank's costs of local updates; byte counts are totals unless named ``per_step``, of the inner optimiser.

    ``skipped_syncs``: those with a drift that was not finite. ``memory_norm``: the l2 norm of what this rank has not
    sent yet.

    >>> stats = LocalStats(steps=16, syncs=2, skipped_syncs=0, memory_norm=0.25, world=2, elements=1000,
    ...                    payload_up_bytes=8000, payload_down_bytes=8000, up_bytes=8000, down_bytes=8000)
    >>> print(stats)
    16 steps, 2 syncs, memory 0.25; per step 500 bytes up, 500 bytes down; \
8.0 times less than an fp32 all-reduce, 4.0 times less than bf16
    """

    syncs: int
    skipped_syncs: int
    memory_norm: float

    def __str__(self) -> str:
        skipped = f" ({self.skipped_syncs} skipped)" if self.skipped_syncs else ""
        return self._described(f"{self.steps} steps, {self.syncs} syncs{skipped}, memory {self.memory_norm:.3g}")
