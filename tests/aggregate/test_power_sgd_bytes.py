"""Floats that PowerSGD sends for the models of the papers, counted on the ledger; the table in the docs is this one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from aggregate.power_sgd_oracle import EVERYTHING
from docs.pages import ROOT, text
from samples import step
from shapes import PARAMETERS, specs
from thriftgrad import Key, Ledger, PowerSGD, TensorSpec

RANKS = (1, 2, 4, 8, 16, 32)
PER_EPOCH = {"ResNet-18": 24, "LSTM": 70}
"""Steps per epoch of the paper's runs: 16 workers, 128 images or 64 x 30 words each."""


def floats(method: PowerSGD, tensors: Sequence[TensorSpec]) -> int:
    """By the formula: factors of what is compressed, all of the rest."""
    return int(sum(method.floats(each) if method.compresses(each) else each.numel for each in tensors))


@pytest.mark.parametrize(("name", "vectors"), [("ResNet-18", 9_610), ("ResNet-50", 54_120), ("LSTM", 44_469)])
def test_the_models_are_those_of_the_papers(name: str, vectors: int) -> None:
    assert sum(each.numel for each in specs(name)) == PARAMETERS[name]
    assert sum(each.numel for each in specs(name) if len(each.shape) == 1) == vectors


@pytest.mark.parametrize(("rank", "expected"), [(1, 45_935), (2, 82_260)])
def test_floats_a_step_of_resnet_18(rank: int, expected: int) -> None:
    """The published counts."""
    assert floats(PowerSGD(rank=rank, min_compression_rate=EVERYTHING), specs("ResNet-18")) == expected


@pytest.mark.parametrize(
    ("name", "ratios", "mebibytes"),
    [
        ("ResNet-18", {1: 243, 2: 136, 4: 72}, {0: 1023, 1: 4, 2: 8, 4: 14}),
        ("LSTM", {1: 310, 2: 203, 4: 120}, {0: 7730, 1: 25, 2: 38, 4: 64}),
    ],
)
def test_data_per_epoch_as_published(name: str, ratios: dict[int, int], mebibytes: dict[int, int]) -> None:
    """The paper's MB are MiB; rank 0 stands for no compression."""
    sent = {0: PARAMETERS[name]} | {
        rank: floats(PowerSGD(rank=rank, min_compression_rate=EVERYTHING), specs(name)) for rank in ratios
    }
    assert {rank: round(PARAMETERS[name] / sent[rank]) for rank in ratios} == ratios
    assert {rank: round(4 * sent[rank] * PER_EPOCH[name] / 2**20) for rank in sent} == mebibytes


@pytest.mark.parametrize("form", [{}, {"alternating": True}, {"rank": 1, "residual_iterations": 2}], ids=str)
@pytest.mark.parametrize("rate", [EVERYTHING, 2.0])
def test_the_ledger_counts_what_the_formula_says(form: dict[str, Any], rate: float) -> None:
    """On all shapes of ResNet-18 but its twelve largest, over two steps, in which sides alternate."""
    tensors = [each for each in specs("ResNet-18") if each.numel < 10**5]
    method, ledger = PowerSGD(**form, min_compression_rate=rate, check_every=None), Ledger()
    states: list[Any] = [method.init(tensors)]
    for i in range(2):
        _, states = step(method, [[torch.ones(each.shape) for each in tensors]], states, Key(i), ledger)
    assert ledger.payload_up_bytes == 2 * 4 * floats(method, tensors)


def test_matrices_that_save_too_little_are_sent_as_they_are() -> None:
    """Of ResNet-18 at rank 8 the last layer's ten rows: 2 x 8 x (10 + 512) is more than 10 x 512."""
    small = PowerSGD(rank=8)
    kept = [each for each in specs("ResNet-18") if len(each.shape) > 1 and not small.compresses(each)]
    assert [each.shape for each in kept] == [(10, 512)]
    assert PowerSGD(rank=8, min_compression_rate=EVERYTHING).compresses(kept[0])


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_table_of_the_docs(name: str) -> None:
    """Rows ``| ResNet-18, 11,173,962 | 45,935 (243x) | ...`` by rank."""
    (row,) = re.findall(rf"^\| {name}, ([\d,]+) \|(.*)\|$", text(ROOT / "docs/when-low-rank-fails.md"), re.MULTILINE)
    assert row[0] == f"{PARAMETERS[name]:,}"
    expected = []
    for rank in RANKS:
        sent = floats(PowerSGD(rank=rank, min_compression_rate=EVERYTHING), specs(name))
        expected.append(f"{sent:,} ({PARAMETERS[name] / sent:.0f}x)")
    assert [cell.strip() for cell in row[1].split("|")] == expected
