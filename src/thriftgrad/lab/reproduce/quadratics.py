"""PowerSGD where everything is known: isotropic quadratics of a matrix, with and without a dominant noise direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from thriftgrad.aggregate import Aggregator
from thriftgrad.comm import simulate
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.records import Row

SIDE = 20
GONE = 1e3
"""An error as large, the start's being 1, is a divergence: nothing beyond it is computed or told apart."""

Form = tuple[str, Aggregator[Any]]


@dataclass(frozen=True)
class Quadratics(Measurement):
    """f(X) = |X - S|^2 / 2 of a 20 x 20 matrix, from zero, by steps of ``rates`` on one worker's exact gradient.

    S: orthogonal (``noise`` None; a flat spectrum, all 20 singular values 1), or of rank 3 with singular values 1. Then
    to every gradient comes noise z u v^T, z normal of deviation ``noise``, with u and v fixed and orthogonal to S.
    A row: label, ``rate``, ``noise``, ``error`` = |X - S| / |S| at the end, over the rows and columns of S alone, which
    is what of the signal is not learnt; ``GONE`` at most.
    """

    forms: tuple[Form, ...]
    rates: tuple[float, ...]
    noises: tuple[float | None, ...]
    steps: int
    seed: int
    seconds: float

    @property
    def label(self) -> str:
        return f"{self.name.replace('-', ' ')}"

    def rows(self) -> Iterator[Row]:
        for label, form in self.forms:
            for noise in self.noises:
                for rate in self.rates:
                    error = descend(form, rate, noise, self.steps, self.seed)
                    yield {"label": label, "rate": rate, "noise": noise, "error": error, "seed": self.seed}


def descend(form: Aggregator[Any], rate: float, noise: float | None, steps: int, seed: int) -> float:
    """The error that is left of such a quadratic."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))[0] for _ in range(2))
    rank = SIDE if noise is None else 3
    signal = left[:, :rank] @ right[:, :rank].mT
    direction = torch.outer(left[:, -1], right[:, -1])

    def error(x: Tensor) -> float:
        return float((left[:, :rank].mT @ (x - signal) @ right[:, :rank]).norm() / signal.norm())

    x = torch.zeros(SIDE, SIDE)
    state = form.init([TensorSpec.of(x, "x")])
    for step in range(steps):
        gradient = x - signal
        if noise:
            gradient = gradient + noise * torch.randn((), generator=generator) * direction
        (((estimate,), state),) = simulate([form.aggregate([gradient], state, Key(seed).fold(step))])
        x = x - rate * estimate
        if not float(x.norm()) < GONE * max(1.0, noise or 0.0) * SIDE:
            return GONE
    found = error(x)
    return min(found, GONE) if isfinite(found) else GONE
