"""Advice from real ranks: the link is measured between them, and all come to the same."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from distributed.ranks import on_ranks
from thriftgrad.lab.advise import advise as adviser
from thriftgrad.lab.advise import probe
from thriftgrad.lab.advise.table import assumptions

pytestmark = pytest.mark.xdist_group("distributed")

KINDS = {"AllReduce float32", "AllReduce bfloat16", "AllGather", "AllToAll", "Gather", "Broadcast"}


def build() -> tuple[nn.Module, Any]:
    model = nn.Linear(30, 30)
    return model, lambda module: module(model.weight.detach()).square().mean()


def advice() -> tuple[Any, list[str]]:
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    probe.LARGEST_BYTES, probe.REPEATS, probe.ROUNDS = 1 << 18, 2, 2
    request = adviser.Request(f"{__name__}:build", methods=("qsgd", "power_sgd"))
    adviser.load = lambda text: adviser.Subject(text, *build())  # type: ignore[assignment]
    found = adviser.advise(request, lambda what: None)
    return found, assumptions(found)


def test_a_disturbed_message_does_not_make_a_link_infinitely_fast() -> None:
    rows = [probe.Timed(64, 2, 0.5, 0.0), probe.Timed(1000, 2, 0.125, 0.0)]
    assert probe.fit(rows).link.up_bits_per_second == 64000


def test_ranks_measure_the_link_and_agree() -> None:
    (first, notes), *others = on_ranks(2, advice)
    assert all(other == first for other, _ in others)
    assert first.ranks == first.workers == 2
    assert set(first.transport.costs) == KINDS
    for cost in first.transport.costs.values():
        assert cost.link.up_bits_per_second > 0
        assert cost.link.latency_seconds > 0
        assert cost.processor_seconds_per_byte > 0
    assert first.transport.link.up_bits_per_second > 0
    assert "measured on this machine by 2 ranks" in notes[0]
    assert notes[1].startswith("Link measured: up ")
    assert {row.candidate.label for row in first.rows} == {"DDP, float32", "bf16", "qsgd", "power_sgd"}
    assert first.setting.lanes == pytest.approx(len(os.sched_getaffinity(0)) / 2)
