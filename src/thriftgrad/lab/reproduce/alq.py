"""ALQ and AMQ: what the paper claims, and how each claim is measured here.

Faghri, Tabrizian, Markov, Alistarh, Roy and Ramezani-Kebrya, "Adaptive Gradient Quantization for Data-Parallel SGD",
NeurIPS 2020, arXiv:2010.12460. "Unverified" marks what is known of the paper from secondary sources alone; "figure"
numbers were read off the paths of the authors' published vector figures; "code" and "notebook" are the authors'.

The paper: ResNet-32, ResNet-110 and, in ablations, ResNet-8 on CIFAR-10, ResNet-18 on ImageNet; 3 bits, buckets of 8192
and 16384, four simulated workers, one seed, one learning rate for all. Here: the ResNet-8 on digits and a small
transformer on text, five or ten seeds, learning rates tuned; buckets run over the whole gradient, as in the authors'
code.
"""

from __future__ import annotations

from thriftgrad.lab.reproduce import alq_training, alq_variance
from thriftgrad.lab.reproduce.alq_work import measurements, studies
from thriftgrad.lab.reproduce.reproduction import Reproduction

PAPER = "ALQ and AMQ (Faghri et al., NeurIPS 2020, arXiv:2010.12460)"


def reproduction(quick: bool) -> Reproduction:
    """All of it, or a quick look: three seeds, short runs, a smaller network and fewer studies."""
    vision = "digits" if quick else "digits32"
    tasks = (vision,) if quick else (vision, "text")
    return Reproduction(
        name="alq",
        paper=PAPER,
        quick=quick,
        claims=(
            *(claim for task in tasks for claim in alq_variance.on_path(task)),
            *alq_variance.sweeps(vision),
            *alq_variance.levels(vision),
            *alq_training.wire(vision),
            *alq_training.accuracy(vision),
            *([] if quick else alq_training.settings()),
        ),
        measurements=measurements(tasks, quick),
        studies=studies(vision, quick),
    )
