"""Qsparse-local-SGD: what the paper claims, and how each claim is measured here.

Basu, Data, Karakus and Diggavi, "Qsparse-local-SGD: Distributed SGD with Quantization, Sparsification and Local
Computations", NeurIPS 2019, arXiv:1906.02367. "Unverified" marks what is known of the paper from secondary sources
alone, "reviews" its published reviews, "code" the authors'.

The paper: ResNet-50 on ImageNet with 8 workers, k = 1000 of each tensor, local Nesterov momentum, and softmax
regression on MNIST with 15 workers. Here: a ResNet-8 on digits, a small transformer on text, softmax and logistic
regression, five seeds, learning rates tuned alike for all. The paper counts bits from the workers to the master only.

The bound of the memory at every step, the slope -1 and the invariants of Algorithms 1 and 2 are tests, in tests/local
and tests/theory, and not measured again here.
"""

from __future__ import annotations

from thriftgrad.lab.reproduce import check_tuning, qsparse_grid, qsparse_savings
from thriftgrad.lab.reproduce import qsparse_work as work
from thriftgrad.lab.reproduce.claims import Claim
from thriftgrad.lab.reproduce.reproduction import Reproduction

PAPER = "Qsparse-local-SGD (Basu et al., NeurIPS 2019, arXiv:1906.02367)"


def reproduction(quick: bool) -> Reproduction:
    """All of it, or a quick look: three seeds, short runs, smaller grids and networks."""
    nets = ("digits",) if quick else ("digits32", "text")
    return Reproduction(
        name="qsparse",
        paper=PAPER,
        quick=quick,
        claims=(
            *(claim for task in nets for claim in qsparse_savings.headlines(task)),
            *qsparse_savings.convex(),
            *qsparse_savings.both_ways(),
            *qsparse_savings.components(nets),
            *qsparse_grid.grid(quick),
            *qsparse_grid.values_and_support(quick),
            *qsparse_grid.in_step_or_not(quick),
            Claim(
                "All methods were tuned alike: one grid, one budget, winners inside it.",
                "Not stated; reviewers ask whether all were tuned.",
                check_tuning.alike(work.studies(quick)),
            ),
        ),
        measurements=work.measurements(quick),
        studies=work.studies(quick),
    )
