"""Checks of the published levels against the optimum of the paper's own objective; theory alone."""

from __future__ import annotations

from thriftgrad import theory
from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, Verdict, together
from thriftgrad.lab.reproduce.evidence import Evidence

PUBLISHED_LEVELS = (0.0048, 0.0180, 0.1252)
PUBLISHED_MULTIPLIER = 0.2317
DEVIATION = 1 / 128  # of normalised coordinates in a bucket of 16384
BITS = 3


def converged(reasons: Reasons) -> Check:
    """The published levels and multiplier are the optimum of the modelled variance, to 1 %."""

    def check(evidence: Evidence) -> Finding:
        model = theory.TruncatedNormal(0.0, DEVIATION)
        best = theory.alq_levels(model, BITS, include_zero=False)
        stopped = theory.alq_levels(model, BITS, include_zero=False, reference_mode="ltq")
        p = theory.amq_multiplier(model, BITS, include_zero=False)
        p_stopped = theory.amq_multiplier(model, BITS, include_zero=False, reference_mode="ltq")
        published = (*(-level for level in (1.0, *PUBLISHED_LEVELS[::-1])), *PUBLISHED_LEVELS, 1.0)
        grids = {
            "ALQ, published figure": published,
            "ALQ, the published solver again": tuple(stopped.tolist()),
            "ALQ, 30 safe gradient steps (ALQG)": _by_gradient(model, 30),
            "ALQ, 300 safe gradient steps (ALQG)": _by_gradient(model, 300),
            "ALQ, converged": tuple(best.tolist()),
            "AMQ, the published solver again": tuple(theory.amq_levels(p_stopped, BITS, include_zero=False).tolist()),
            "AMQ, converged": tuple(theory.amq_levels(p, BITS, include_zero=False).tolist()),
        }
        variances = {name: theory.expected_variance(grid, model) for name, grid in grids.items()}
        lines = tuple(
            (name, " ".join(f"{level:.4f}" for level in grid if level > 0), f"{variances[name]:.3g}")
            for name, grid in grids.items()
        )
        alq = variances["ALQ, published figure"] / variances["ALQ, converged"]
        amq = variances["AMQ, the published solver again"] / variances["AMQ, converged"]
        verdict = together([Verdict.HOLDS if each < 1.01 else Verdict.CONTRADICTED for each in (alq, amq)])
        ours = (
            f"The published ALQ levels have {alq:.2f} times the modelled variance of the converged ones, AMQ's p = "
            f"{p_stopped:.4f} has {amq:.2f} times that of p = {p:.3f}."
        )
        table = Table(
            "Positive levels and modelled variance, normal of deviation 1/128", ("grid", "levels", "Psi"), lines
        )
        return Finding(ours, verdict, reasons.of(verdict), ("ALQ", "AMQ"), (table,))

    return check


def _by_gradient(model: theory.Distribution, steps: int) -> tuple[float, ...]:
    levels = theory.alq_levels_by_gradient(model, BITS, include_zero=False, steps=steps, learning_rate=0.1)
    return tuple(levels.tolist())
