"""PowerSGD: what the paper claims, and how each claim is measured here.

Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
NeurIPS 2019, arXiv:1905.13727. "Recalled, unverified" marks figures of its tables known from memory alone, "recomputed"
what follows from shapes, "reviews" its published reviews, "code" the authors'.

The paper: ResNet-18 on CIFAR-10 and a three-layer LSTM on WikiText-2, 16 GPUs. Here: that ResNet an eighth as wide on
digits, a two-layer LSTM and a transformer on bytes of text, 8 and 16 simulated workers, runs of 40 to 96 steps,
five seeds, learning rates tuned alike for all. An eighth of the width leaves an eighth of a rank's saving: rank 1
sends 31 times less than fp32 on ``digits18`` and 43 times on ``lstm``, rank 4 sends 9 and 16 times less, and these two
are the "high" and "medium" at which rivals of equal bytes are compared. Random K is trained on ``lstm`` at "high"
alone: drawing its coordinates takes twenty times PowerSGD's seconds. ImageNet is here by its shapes.

That W workers are one with the mean gradient, that memories stay bounded and the golden trace are tests, in
tests/aggregate, and not measured again here.
"""

from __future__ import annotations

from thriftgrad.lab.reproduce import powersgd_limits, powersgd_quality, powersgd_time
from thriftgrad.lab.reproduce import powersgd_work as work
from thriftgrad.lab.reproduce.reproduction import Reproduction

PAPER = "PowerSGD (Vogels et al., NeurIPS 2019, arXiv:1905.13727)"


def reproduction(quick: bool) -> Reproduction:
    """All of it, or a quick look: three seeds, short runs, smaller networks."""
    return Reproduction(
        name="powersgd",
        paper=PAPER,
        quick=quick,
        claims=(*powersgd_quality.claims(quick), *powersgd_limits.claims(quick), *powersgd_time.claims(quick)),
        measurements=(*work.measurements(quick), *powersgd_time.measurements(quick)),
        studies=work.studies(quick),
    )
