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

from dataclasses import replace
from math import inf

from thriftgrad.lab.reproduce import (
    check_accuracy,
    check_async,
    check_bits,
    check_factorial,
    check_layouts,
    check_tuning,
)
from thriftgrad.lab.reproduce import qsparse_work as work
from thriftgrad.lab.reproduce.bits import Target
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.qsparse_methods import DOWNLINKS
from thriftgrad.lab.reproduce.reproduction import Reproduction

PAPER = "Qsparse-local-SGD (Basu et al., NeurIPS 2019, arXiv:1906.02367)"
TOLERANCES = {"softmax": 0.01, "logreg": 0.002, "digits": 0.02, "digits32": 0.02, "text": 0.1}
"""How much worse than uncompressed SGD is still its quality, in each task's own."""
FIXED = {"softmax": 0.9, "logreg": 0.02, "digits": 0.5, "digits32": 0.7, "text": 4.7}
"""The other target."""
SGD, LOCAL = work.sgd().label, work.sgd(work.GAP).label


def targets(task: str) -> tuple[Target, Target]:
    """A fixed quality, and that of SGD less the tolerance."""
    return (
        Target(f"{FIXED[task]:g}", fixed=FIXED[task]),
        Target(f"SGD's final within {TOLERANCES[task]:g}", baseline=SGD, tolerance=TOLERANCES[task]),
    )


def reproduction(quick: bool) -> Reproduction:
    """All of it, or a quick look: three seeds, short runs, smaller grids and networks."""
    nets = ("digits",) if quick else ("digits32", "text")
    return Reproduction(
        name="qsparse",
        paper=PAPER,
        quick=quick,
        claims=(
            *(claim for task in nets for claim in headlines(task)),
            *convex(),
            *both_ways(quick),
            *components(nets),
            *grid(quick),
            *values_and_support(quick),
            *in_step_or_not(quick),
            Claim(
                "All methods were tuned alike: one grid, one budget, winners inside it.",
                "Not stated; reviewers ask whether all were tuned.",
                check_tuning.alike(work.studies(quick)),
            ),
        ),
        measurements=work.measurements(quick),
        studies=work.studies(quick),
    )


def headlines(task: str) -> list[Claim]:
    """The two headline claims, on a network."""
    k = work.KEPT
    sign, top = Setting("SignTopK", k, h=work.GAP).label, Setting("TopK", k).label
    where = f"{task}, H = {work.GAP}"
    return [
        Claim(
            f"SignTopK with local steps needs about a sixteenth of TopK-SGD's uplink bits ({where}).",
            "About 1/16 of TopK-SGD's bits at the target accuracy, 15 to 20 times fewer than the best before "
            "(secondary source).",
            check_bits.fewer(
                task,
                top,
                sign,
                targets(task),
                (12.0, inf),
                Reasons(
                    holds="A sign instead of a float and a sync every eight steps; the steps stay about the same.",
                    contradicted="It needs more steps to the target, which takes back part of what each sync saves.",
                    in_part="To one of the targets it does; to the other it needs more steps, or more than there are.",
                    unsettled="Not every seed reaches the target, or the seeds do not settle it.",
                ),
            ),
        ),
        Claim(
            f"SignTopK with local steps needs over 1000 times fewer uplink bits than SGD ({where}).",
            "More than 1000 times fewer at about 1 % lower final accuracy (secondary source).",
            check_bits.fewer(
                task,
                SGD,
                sign,
                targets(task),
                (1000.0, inf),
                Reasons(
                    holds="Sparsifying, signs and local steps save together.",
                    contradicted="The factor is one of size: k = 1000 of each tensor is 0.4 % of ResNet-50, and the k "
                    "of this network a larger share; see the table of layouts.",
                    unsettled="Not every seed reaches the target, or the seeds do not settle it.",
                ),
                shown=False,
            ),
        ),
        Claim(
            f"SignTopK with local steps ends within the tolerance of SGD ({where}).",
            "About 1 % lower final accuracy (secondary source).",
            check_accuracy.better(
                task,
                [(sign, SGD)],
                Reasons(
                    holds="The memory sends later what was left out.",
                    contradicted="So few syncs are too few for the memory to send what it holds: it lags behind.",
                    unsettled="The seeds scatter by more than the tolerance.",
                ),
                by=-TOLERANCES[task],
            ),
        ),
    ]


def convex() -> list[Claim]:
    """The convex headline: softmax regression, 15 workers, 1.2 % of the coordinates."""
    k, gap = work.FEW, work.GAP
    sign, top = Setting("SignTopK", k), Setting("TopK", k).label
    return [
        Claim(
            f"SignTopK with H = {h} needs {low:g} to {high:g} times fewer uplink bits than {name} (softmax).",
            paper,
            check_bits.fewer(
                "convex",
                costly,
                replace(sign, h=h).label,
                targets("softmax"),
                (low, high),
                Reasons(
                    holds="Fewer bits a sync and fewer syncs, for about as many steps.",
                    contradicted="Part of what a sync saves goes into more steps, or the shapes allow another factor.",
                    in_part="To one target it does, to the other not, or not decidedly.",
                    unsettled="Not every seed reaches the target, or the seeds do not settle it.",
                ),
                shown=h == 4,
            ),
        )
        for h, costly, name, low, high, paper in (
            (4, top, "TopK-SGD", 10.0, 15.0, "10 to 15 times fewer on MNIST, test error about 0.1 (secondary source)."),
            (gap, top, "TopK-SGD", 10.0, 30.0, "The gap of that figure is not known: here with the longer one."),
            (gap, SGD, "SGD", 500.0, 2000.0, "About 1000 times fewer on MNIST (secondary source)."),
        )
    ]


def both_ways(quick: bool) -> list[Claim]:
    """What becomes of the savings when the way down counts."""
    setting = Setting("SignTopK", work.FEW, h=work.GAP)
    return [
        Claim(
            "ResNet-50's savings are 4408 times up alone, 16 with a dense downlink, 980 with all messages forwarded.",
            "Uplink only; reviewers call 100 times of half the traffic a saving of 50 %.",
            check_layouts.honest(
                8,
                8,
                Reasons(
                    holds="The layouts say so: a dense downlink leaves 2 H of any uplink saving.",
                    contradicted="The layouts say otherwise.",
                ),
            ),
        ),
        Claim(
            "Counting both ways, SignTopK keeps at least half of its uplink saving (softmax).",
            "Bits from workers to master only (reviews).",
            check_bits.downlinks(
                "downlink",
                work.channel(work.sgd(), "dense"),
                {each: work.channel(setting, each) for each in DOWNLINKS},
                (targets("softmax")[0], replace(targets("softmax")[1], baseline=work.channel(work.sgd(), "dense"))),
                0.5,
                Reasons(
                    holds="Every downlink is sparse.",
                    contradicted="The way down costs more than the way up, whatever the channel.",
                    in_part="Compressed again, the way down costs about twice the way up; a dense one takes nearly all "
                    "of the saving, and forwarding or the union grow with the workers.",
                    unsettled="Not every seed reaches the targets.",
                ),
            ),
        ),
    ]


def components(nets: tuple[str, ...]) -> list[Claim]:
    """Ablation: do the savings multiply, and what does each part cost?"""
    arms = {have: setting.label for have, setting in work.components(work.FEW, work.GAP).items()}
    pairs = {"convex": (LOCAL, SGD), "logreg": (LOCAL, SGD)} | dict.fromkeys(nets, (LOCAL, SGD))
    margins = {"convex": TOLERANCES["softmax"], **TOLERANCES}
    return [
        Claim(
            f"The savings of sparsifying, quantising and local steps multiply ({name}).",
            "Presented as one combination; reviewers ask for the merit of each part.",
            check_bits.multiply(
                "convex",
                arms,
                target,
                Reasons(
                    holds="Each part saves what it saves alone.",
                    contradicted="They do not: indices cost what signs cannot shorten, a sparse memory takes more "
                    "steps when it is emptied less often, and both show in the interaction.",
                    unsettled="The seeds do not settle it, or not every arm reaches the target.",
                ),
            ),
        )
        for name, target in zip(("softmax, to 0.9", "softmax, to SGD's quality"), targets("softmax"), strict=True)
    ] + [
        Claim(
            f"Local SGD with H = {work.GAP} costs no quality.",
            "Local steps alone keep the leading term of the rate (theory).",
            check_bits.loses_little(
                pairs,
                margins,
                Reasons(
                    holds="On data dealt out at random the workers drift apart little in eight steps.",
                    contradicted="Within these few steps averaging every eight is a loss.",
                    in_part="On some tasks it costs none, on others some, or the seeds do not settle it.",
                    unsettled="The seeds scatter by more than the tolerance.",
                ),
            ),
        ),
    ]


def grid(quick: bool) -> list[Claim]:
    """The factorial: every cell accounted for, the front, and each factor."""
    study = work.grid(quick)
    _, forbidden, nominal = work.cells(quick)
    gain = "The factor shows over the whole grid."
    return [
        Claim(
            "Every cell of the factorial is trained, cut, forbidden by theory or does not exist.",
            "Some combinations (reviews ask for all).",
            check_factorial.grid(study, forbidden, nominal),
        ),
        Claim(
            "The cheapest cell that keeps SGD's accuracy sparsifies, quantises and takes local steps (softmax).",
            "All three together are best.",
            check_factorial.front(
                study,
                SGD,
                0.05 if quick else 0.02,
                Reasons(
                    holds="No two of the three reach so few bits at that quality.",
                    contradicted="One of them alone is enough, or none.",
                    in_part="Two of the three are enough.",
                ),
            ),
        ),
        Claim(
            "A memory lowers the loss over the grid.",
            "Memory compensates what is left out (theory).",
            check_factorial.factor(
                study,
                check_factorial.without_memory,
                "a memory",
                Reasons(holds=gain, contradicted="Without one the grid does better."),
                lambda setting: setting.memory,
            ),
        ),
        Claim(
            "With a memory, scaling by 1 / (1 + beta) lowers the loss over the grid.",
            "Scaled always contracts more (Lemma 2 against Lemma 1).",
            check_factorial.factor(
                study,
                check_factorial.unscaled,
                "the factor 1 / (1 + beta)",
                Reasons(
                    holds=gain,
                    contradicted="Where unscaled is allowed at all, beta is small, and a tuned rate does better "
                    "without the factor.",
                    unsettled="Where unscaled is allowed at all, beta is small: the pairs scatter by more than the "
                    "factor does.",
                ),
                lambda setting: setting.memory,
            ),
        ),
        Claim(
            "Without a memory, scaling by 1 / (1 + beta) lowers the loss over the grid.",
            "Not compared.",
            check_factorial.factor(
                study,
                check_factorial.unscaled,
                "the factor 1 / (1 + beta)",
                Reasons(
                    holds=gain,
                    contradicted="Without a memory the factor only shortens the step of the shared model.",
                    unsettled="Without memory the factor rescales the steps, which a tuned rate makes up for.",
                ),
                lambda setting: not setting.memory,
            ),
        ),
        Claim(
            "The largest coordinates are better than random ones over the grid.",
            "The same gamma = k / d for both (theory).",
            check_factorial.factor(
                study,
                check_factorial.random_support,
                "the largest",
                Reasons(holds="Real updates are uneven, which the bound does not see.", contradicted="They are not."),
                lambda setting: setting.support == "TopK",
            ),
        ),
    ]


def values_and_support(quick: bool) -> list[Claim]:
    """k and s, and what five seeds say of memory and scaling."""
    top, sign = Setting("TopK", work.FEW), Setting("SignTopK", work.FEW)
    pairs = [(each.label, replace(each, memory=False).label) for each in (top, sign, replace(sign, h=work.GAP))]
    rounded = Setting("QTopK", work.FEW, 15)
    updates = {"updates-softmax": "softmax, H = 4"}
    if not quick:
        updates |= {"updates-digits": "digits, largest tensor, H = 4", "updates-text": "text, largest tensor, H = 4"}
    return [
        Claim(
            "A memory makes TopK and SignTopK more accurate (softmax, all tuned).",
            "Error compensation is needed (theory).",
            check_accuracy.better(
                "convex",
                pairs,
                Reasons(
                    holds="What is never sent is never learnt.",
                    contradicted="Without memory the same coordinates suffice here.",
                    in_part="It does in some, and in others a tuned learning rate makes up for it within these steps.",
                    unsettled="The seeds do not settle it.",
                ),
            ),
        ),
        Claim(
            "QTopK scaled is no less accurate than unscaled (softmax, s = 15, beta < 1).",
            "Scaled always contracts more (Lemma 2 against Lemma 1).",
            check_accuracy.better(
                "convex",
                [(rounded.label, replace(rounded, scaled=False).label)],
                Reasons(
                    holds="With a memory the factor costs nothing.",
                    contradicted="The factor costs accuracy.",
                    unsettled="The seeds scatter by more than a point.",
                ),
                by=-check_accuracy.MARGIN,
            ),
        ),
        Claim(
            "The closed form k / (d (1 + beta)) is a lower bound of what is kept of real updates.",
            "Lemma 2.",
            check_factorial.heat_map(
                updates,
                Reasons(
                    holds="And a loose one: real updates are uneven, and the worst case is a flat one.",
                    contradicted="It is not.",
                    in_part="The intervals of some pairs hold the bound itself.",
                    unsettled="The intervals hold the bound.",
                ),
            ),
        ),
        Claim(
            "What is kept per bit, measured or by the closed form, says which k and s to choose.",
            "Not stated; reviewers ask how to tune them.",
            check_factorial.worth_of_a_bit(
                "updates-softmax",
                "heat",
                Reasons(
                    holds="It ranks them as the loss at equal bits does.",
                    contradicted="It does not rank them as the loss at equal bits does.",
                    in_part="One of the two ranks them so, the other not, or not decidedly.",
                ),
            ),
        ),
    ]


def in_step_or_not(quick: bool) -> list[Claim]:
    """Algorithm 2 against Algorithm 1, and the start."""
    mixed, dealt = work.asynchronous(quick)
    in_step, *others = (arm.label for arm in mixed.arms)
    reasons = Reasons(
        holds="A worker's progress is measured from the model it last got, so nothing is lost or counted twice.",
        contradicted="Steps from an old model cost quality here.",
        in_part="With some gaps it does, with others not, or not decidedly.",
        unsettled="The seeds scatter by more than the margin.",
    )
    zero, elsewhere = work.logreg(quick)
    sign = Setting("SignTopK", 3, h=work.GAP).label
    return [
        Claim(
            "Out of step, SignTopK ends as well as in step (softmax).",
            "Asynchronous about as good (unverified).",
            check_async.no_worse(mixed, in_step, others, 0.05, reasons),
        ),
        Claim(
            "Out of step, SignTopK ends as well as in step on label-sorted data (softmax).",
            "Theory allows such data; the experiments are not known to have it.",
            check_async.no_worse(dealt, in_step, others, 0.05, reasons),
        ),
        Claim(
            "The start need not be zero: SignTopK comes as near to SGD from elsewhere (logreg).",
            "x_0 = 0 in the algorithms; a reviewer finds it unreasonable.",
            check_bits.loses_little(
                {zero.name: (sign, SGD), elsewhere.name: (sign, SGD)},
                {zero.name: 2 * TOLERANCES["logreg"], elsewhere.name: 2 * TOLERANCES["logreg"]},
                Reasons(
                    holds="Drifts are differences, which do not know where zero is.",
                    contradicted="It lags behind SGD wherever it starts.",
                    in_part="From the start that is farther away it has more to go in as few steps.",
                ),
            ),
        ),
    ]
