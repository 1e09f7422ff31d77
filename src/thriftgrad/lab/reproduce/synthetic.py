"""Quantisers on vectors of known distributions: no task, no training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from thriftgrad import theory
from thriftgrad.compress import NUQSGD, QSGD, Quantizer
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.reproduce.probes import AnyCompressor, Measurement, put_through
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.wire.coders import Elias

Shape = Literal["normal", "Laplace", "Student t3"]


def drawn(shape: Shape, n: int, seed: int) -> Tensor:
    """n independent coordinates, float32[n]."""
    generator = np.random.default_rng(seed)
    if shape == "normal":
        values = generator.standard_normal(n)
    elif shape == "Laplace":
        values = generator.laplace(size=n)
    else:
        values = generator.standard_t(3, n)
    return torch.from_numpy(values.astype(np.float32))


def relative_variance(compressor: AnyCompressor, x: Tensor, key: Key) -> float:
    """|C(x) - x|^2 / |x|^2 of one draw; over thousands of coordinates that is close to its mean."""
    effect = put_through(compressor, x, compressor.init(TensorSpec.of(x)), key)
    return effect.squared_error / float(x.to(torch.float64).square().sum())


@dataclass(frozen=True)
class ZeroLevel(Measurement):
    """Fixed grids with and without a zero level on one bucket of ``n`` coordinates, ``draws`` times.

    A row: shape, bits, method ("NUQSGD", "QSGD", "QSGDinf"), include_zero, draw, relative_variance.
    """

    n: int
    draws: int
    seconds: float = 10.0

    @property
    def label(self) -> str:
        return "grids with and without zero"

    def rows(self) -> Iterator[Row]:
        cases: tuple[tuple[Shape, int], ...] = (
            *(("normal", bits) for bits in (2, 3, 4, 5)),
            *(("Laplace", 3), ("Student t3", 3)),
        )
        for shape, bits in cases:
            for draw in range(self.draws):
                x = drawn(shape, self.n, draw)
                for zero in (True, False):
                    grids = {
                        "NUQSGD": NUQSGD(bits=bits, bucket=self.n, include_zero=zero),
                        "QSGD": QSGD(bits=bits, bucket=self.n, include_zero=zero),
                        "QSGDinf": QSGD(bits=bits, bucket=self.n, include_zero=zero, norm="linf"),
                    }
                    for method, compressor in grids.items():
                        found = relative_variance(compressor, x, Key(draw))
                        yield {
                            "shape": shape,
                            "bits": bits,
                            "method": method,
                            "include_zero": zero,
                            "draw": draw,
                            "relative_variance": found,
                        }


@dataclass(frozen=True)
class WorstCases(Measurement):
    """NUQSGD's variance on Gaussian and on adversarial vectors, beside the exact worst case and the paper's bound.

    A row: s, d, draw, gaussian, adversarial (relative variances), exact, bound.
    """

    cases: tuple[tuple[int, int], ...]  # s and d
    draws: int
    seconds: float = 10.0

    @property
    def label(self) -> str:
        return "worst cases of NUQSGD"

    def rows(self) -> Iterator[Row]:
        for s, d in self.cases:
            bits = (s + 2).bit_length()
            compressor = NUQSGD(bits=bits, bucket=d)
            levels = theory.amq_levels(0.5, bits, include_zero=True)
            worst = torch.from_numpy(np.asarray(theory.worst_case_vector(levels, d), dtype=np.float32))
            for draw in range(self.draws):
                yield {
                    "s": s,
                    "d": d,
                    "draw": draw,
                    "gaussian": relative_variance(compressor, drawn("normal", d, draw), Key(draw)),
                    "adversarial": relative_variance(compressor, worst, Key(draw)),
                    "exact": theory.worst_case_variance(levels, d),
                    "bound": theory.nuqsgd_variance_bound(d, s),
                }


@dataclass(frozen=True)
class CodeLengths(Measurement):
    """NUQSGD's sparse Elias code on Gaussian vectors, beside the paper's bound.

    Levels 0, 2^-s ... 1/2, 1 for the bound's own s. A row: s, d, draw, nonzeros, nonzeros_bound, bits, bits_bound.
    """

    cases: tuple[tuple[int, int], ...]  # s and d
    draws: int
    seconds: float = 20.0

    @property
    def label(self) -> str:
        return "code lengths of NUQSGD"

    def rows(self) -> Iterator[Row]:
        for s, d in self.cases:
            levels = (0.0, *(2.0**-j for j in range(s, -1, -1)))
            compressor = Quantizer(levels=levels, bucket=d) >> Elias(sparse=True)
            for draw in range(self.draws):
                effect = put_through(compressor, drawn("normal", d, draw), (None, None), Key(draw))
                yield {
                    "s": s,
                    "d": d,
                    "draw": draw,
                    "nonzeros": d * (1 - effect.zeros),
                    "nonzeros_bound": theory.nuqsgd_nonzeros_bound(d, s),
                    "bits": d * effect.bits,
                    "bits_bound": theory.nuqsgd_code_length_bits(d, s),
                }
