"""Checks that need no training: PowerSGD's bytes from the shapes of the papers' networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from thriftgrad.aggregate import PowerSGD
from thriftgrad.core import TensorSpec
from thriftgrad.lab.reproduce.check_layouts import resnet50
from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, Verdict, together, within
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval
from thriftgrad.tasks.models import LSTM, cifar_resnet, resnet18

WORDS, WIDTH, LAYERS = 28_869, 650, 3
"""Of the paper's language model."""
PARAMETERS = {"ResNet-18": 11_173_962, "ResNet-20": 269_722, "LSTM": 28_949_319, "ResNet-50": 25_557_032}
"""As published, or counted from what is: the ResNet-20 of He et al. for CIFAR-10, which the paper's is not."""


def shapes() -> dict[str, list[TensorSpec]]:
    """The tensors of the networks, by name; nothing is allocated."""
    makes: dict[str, Callable[[], nn.Module]] = {
        "ResNet-18": resnet18,
        "ResNet-20": partial(cifar_resnet, 20),
        "LSTM": partial(LSTM, WORDS, WIDTH, LAYERS),
    }
    with torch.device("meta"):
        models = {name: make() for name, make in makes.items()}
    found = {
        name: [TensorSpec(tuple(p.shape), name=each) for each, p in model.named_parameters()]
        for name, model in models.items()
    }
    return found | {"ResNet-50": list(resnet50())}


def floats(specs: Sequence[TensorSpec], rank: int, min_compression_rate: float = 0.0) -> float:
    """Floats of a worker and step at this rank; as in the paper, every matrix is compressed unless told otherwise."""
    form = PowerSGD(rank=rank, min_compression_rate=min_compression_rate)
    return sum(form.floats(spec) if form.compresses(spec) else spec.numel for spec in specs)


def ratios(published: Mapping[str, Mapping[int, float]], ranks: Sequence[int], reasons: Reasons) -> Check:
    """The published ratios, by network and rank, to 1 %; bytes of a step at these and other ranks in a table."""

    def check(evidence: Evidence) -> Finding:
        networks = shapes()
        verdicts, told, lines = [], [], []
        for name, specs in networks.items():
            whole = sum(spec.numel for spec in specs)
            for rank in ranks:
                sent, ours = floats(specs, rank), floats(specs, rank, 2.0)
                lines.append(
                    (
                        name,
                        f"{rank}",
                        f"{4 * sent:,.0f}",
                        f"{whole / sent:.1f}",
                        f"{4 * ours:,.0f}",
                        f"{whole / ours:.1f}",
                    )
                )
            for rank, times in published.get(name, {}).items():
                found = whole / floats(specs, rank)
                verdicts.append(within(Interval(found, found, found, 1), 0.99 * times, 1.01 * times))
                told.append(f"{name} at rank {rank} {found:.1f} times")
        verdict = together(verdicts)
        table = Table(
            "Bytes of a worker and step, all in fp32, from the shapes; ours leaves matrices as they are that factors "
            "would not halve",
            ("network", "rank", "bytes", "times fewer", "bytes, ours", "times fewer, ours"),
            tuple(lines),
        )
        return Finding(f"{'; '.join(told)}.", verdict, reasons.of(verdict), ("PowerSGD",), (table,))

    return check


def sizes(reasons: Reasons) -> Check:
    """Every network has the parameters that are stated."""

    def check(evidence: Evidence) -> Finding:
        found = {name: sum(spec.numel for spec in specs) for name, specs in shapes().items()}
        verdict = Verdict.HOLDS if found == PARAMETERS else Verdict.CONTRADICTED
        listed = ", ".join(f"{name} {count:,}" for name, count in found.items())
        return Finding(f"Parameters: {listed}.", verdict, reasons.of(verdict), tuple(found))

    return check
