"""The derived numbers, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from thriftgrad.train import LocalStats, Stats

STATS = Stats(
    steps=10,
    skipped_steps=1,
    world=4,
    elements=1000,
    payload_up_bytes=1200,
    payload_down_bytes=3600,
    up_bytes=3000,
    down_bytes=9000,
    encode_seconds=0.5,
    decode_seconds=0.25,
    hidden_seconds=1.5,
    exposed_seconds=0.125,
    uncompressed=("bias",),
)


def test_means_of_a_step() -> None:
    assert (STATS.payload_up_bytes_per_step, STATS.payload_down_bytes_per_step) == (120, 360)
    assert (STATS.up_bytes_per_step, STATS.down_bytes_per_step) == (300, 900)
    assert (STATS.encode_seconds_per_step, STATS.decode_seconds_per_step) == (0.05, 0.025)
    assert (STATS.hidden_seconds_per_step, STATS.exposed_seconds_per_step) == (0.15, 0.0125)


def test_compression_against_ring_all_reduces() -> None:
    # A ring of four sends 2 * 3 / 4 of 4000 bytes and receives as much, each step: 12000; the method 300 + 900.
    assert STATS.compression_vs_fp32 == pytest.approx(10)
    assert STATS.compression_vs_bf16 == pytest.approx(5)


def test_nothing_sent_has_no_ratio() -> None:
    alone = replace(STATS, world=1, up_bytes=0, down_bytes=0)
    assert math.isnan(alone.compression_vs_fp32)
    assert math.isnan(replace(STATS, steps=0).up_bytes_per_step)


def test_what_it_prints() -> None:
    assert str(STATS) == (
        "10 steps (1 skipped); per step 300 bytes up, 900 bytes down, 50.00 ms to encode, 25.00 ms to decode, "
        "150.00 ms of communication hidden and 12.50 ms exposed; "
        "10.0 times less than an fp32 all-reduce, 5.0 times less than bf16"
    )


LOCAL = LocalStats(
    steps=20,
    syncs=4,
    skipped_syncs=0,
    memory_norm=0.125,
    world=4,
    elements=1000,
    payload_up_bytes=800,
    payload_down_bytes=2400,
    up_bytes=2400,
    down_bytes=3600,
)


def test_local_updates_are_counted_by_the_step_of_the_inner_optimiser() -> None:
    assert (LOCAL.payload_up_bytes_per_step, LOCAL.payload_down_bytes_per_step) == (40, 120)
    assert (LOCAL.up_bytes_per_step, LOCAL.down_bytes_per_step) == (120, 180)
    # A ring of four moves 12000 bytes at every step, up and down; local updates 6000 in 20 steps.
    assert LOCAL.compression_vs_fp32 == pytest.approx(12000 * 20 / 6000)
    assert LOCAL.compression_vs_bf16 == pytest.approx(20)
    assert math.isnan(replace(LOCAL, steps=0).up_bytes_per_step)
    assert math.isnan(replace(LOCAL, up_bytes=0, down_bytes=0).compression_vs_fp32)


def test_what_local_updates_print() -> None:
    costs = (
        "; per step 120 bytes up, 180 bytes down; 40.0 times less than an fp32 all-reduce, 20.0 times less than bf16"
    )
    assert str(LOCAL) == f"20 steps, 4 syncs, memory 0.125{costs}"
    assert str(replace(LOCAL, skipped_syncs=2, memory_norm=0.0)) == f"20 steps, 4 syncs (2 skipped), memory 0{costs}"
