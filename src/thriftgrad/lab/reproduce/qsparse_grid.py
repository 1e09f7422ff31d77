"""Qsparse-local-SGD: the claims about its factors, k and s, and workers out of step; ``qsparse.py`` says whence."""

from __future__ import annotations

from dataclasses import replace

from thriftgrad.lab.reproduce import check_accuracy, check_async, check_bits, check_factorial
from thriftgrad.lab.reproduce import qsparse_work as work
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.qsparse_savings import SGD, TOLERANCES


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
