"""ALQ and AMQ: the claims about variance and levels, checked without training; ``alq.py`` says where they come from."""

from __future__ import annotations

from thriftgrad.lab.reproduce import check_grids, check_levels, check_variance
from thriftgrad.lab.reproduce.alq_work import (
    ALQ_NO_ZERO,
    BUCKET,
    CLIPPED,
    FRESH,
    MAIN,
    NO_ZERO,
    NORMAL,
    ONCE,
    PUBLISHED,
    SMALL_BUCKET,
    SWEPT,
    THRICE,
    UNCLIPPED,
    UNCLIPPED_TENSORS,
    VARIANTS,
)
from thriftgrad.lab.reproduce.claims import Claim, Reasons


def on_path(task: str) -> list[Claim]:
    """The paper's methods at its 3 bits."""
    gradients, bucket = f"gradients-{task}", SMALL_BUCKET if task == "digits" else BUCKET
    where = f"{task}, 3 bits, bucket {bucket}, on SGD's path"
    return [
        Claim(
            f"ALQ, ALQ-N, AMQ and AMQ-N have less variance than QSGDinf ({where}).",
            "Figure, ResNet-32, early in training: ALQ 1.9e-6, ALQ-N 1.9e-6, AMQ 2.9e-6, AMQ-N 2.6e-6, QSGDinf 5.8e-6.",
            check_variance.less(
                gradients,
                "3 bits",
                [(label, "QSGDinf") for label in ("ALQ", "ALQ-N", "AMQ", "AMQ-N")],
                Reasons(
                    holds="Levels at the bulk of the coordinates do better than uniform ones.",
                    contradicted="On these gradients uniform levels of the largest coordinate do better.",
                    in_part="Levels fitted to the few buckets of a small network also fit their noise, and on the next "
                    "gradient a level or two stand in the wrong place.",
                ),
                (*MAIN, *VARIANTS),
            ),
        ),
        Claim(
            f"NUQSGD and unclipped TernGrad have more variance than QSGDinf ({where}).",
            "Figure, ResNet-32: NUQSGD 5.0e-5, TernGrad 5.9e-6, QSGDinf 5.8e-6.",
            check_variance.less(
                gradients,
                "3 bits",
                [("QSGDinf", "NUQSGD"), ("QSGDinf", UNCLIPPED)],
                Reasons(
                    holds="The smallest level of 3-bit NUQSGD is a quarter of the norm, far above nearly all "
                    "coordinates.",
                    contradicted="They have less.",
                ),
                ("QSGDinf", "NUQSGD", NO_ZERO, UNCLIPPED, UNCLIPPED_TENSORS, CLIPPED),
            ),
        ),
        Claim(
            f"A step of ALQ has at most twice the variance of full precision's ({where}).",
            "Figure, ResNet-32: 1.9e-6 against SuperSGD's 1.3e-6 early, 1.4e-7 against 3.5e-8 late; QSGDinf 5.8e-6.",
            check_variance.total(
                gradients,
                "3 bits",
                "ALQ",
                2.0,
                Reasons(
                    holds="Its rounding error is smaller than the minibatch's noise.",
                    contradicted="Its rounding error is larger than the minibatch's noise.",
                ),
                ("ALQ", "ALQ-N", "AMQ", "QSGDinf", UNCLIPPED, "NUQSGD", NO_ZERO),
            ),
        ),
    ]


def sweeps(task: str) -> list[Claim]:
    """Bits and buckets."""
    gradients = f"gradients-{task}"
    return [
        Claim(
            f"The variance of ALQ, ALQ-N, AMQ, AMQ-N, QSGDinf and NUQSGD falls with every bit from 2 to 8 ({task}).",
            "Notebook, accuracies of ResNet-8: 2 bits 67 to 86, 5 bits 88.2 to 88.5; TernGrad flat at 85.3.",
            check_variance.falls(
                gradients,
                "bits",
                [label for label in SWEPT if label != UNCLIPPED],
                Reasons(
                    holds="Every grid gains levels.",
                    contradicted="More bits do not help.",
                    in_part="More levels may be placed where they do not help: NUQSGD's come near 0 only, and its "
                    "error between powers of two stays.",
                ),
                "bits",
            ),
        ),
        Claim(
            "ALQ, ALQ-N, AMQ, AMQ-N, QSGDinf, NUQSGD and unclipped TernGrad are exact at a bucket of 1, and variance "
            f"grows with it: no drop at tiny buckets ({task}).",
            "The figure drops at bucket 32; in the notebook that point is bucket 32768, matched by its first digits.",
            check_variance.grows_from_exact(
                gradients,
                "bucket",
                SWEPT,
                Reasons(
                    holds="The drop is an artefact of plotting.",
                    contradicted="Variance does not grow with the bucket.",
                    in_part="There is no drop at tiny buckets; some neighbouring buckets are within each other's "
                    "noise, and adaptive levels make up for part of the growth.",
                ),
            ),
        ),
        Claim(
            f"ALQ has less variance than QSGDinf at every bucket from 64 on ({task}, 3 bits).",
            "Notebook: all within noise to bucket 1024; at 16384 ALQ 88.6, QSGDinf 85.7 (accuracy of ResNet-8).",
            check_variance.less_along(
                gradients,
                "bucket",
                "ALQ",
                "QSGDinf",
                Reasons(
                    holds="It pays at every bucket.",
                    contradicted="QSGDinf is as good or better.",
                    in_part="It pays at some buckets only: in small ones the largest coordinate is a good scale.",
                ),
                SWEPT,
                "bucket",
                least=64,
            ),
        ),
    ]


def levels(task: str) -> list[Claim]:
    """Where levels stand, what they are fitted to and when."""
    gradients = f"gradients-{task}"
    return [
        Claim(
            "The published levels of ALQ and AMQ minimise the paper's expected variance.",
            "Levels .0048 .0180 .1252 and p = 0.232 (figure; the code computes .0048 .0180 .1252 and 0.2317).",
            check_levels.converged(
                Reasons(
                    holds="They are the optimum.",
                    contradicted="The code stops its gradient descent after 30 sweeps, and chooses p by a cost that "
                    "leaves out the interval around 0, in which nine of ten coordinates lie.",
                ),
            ),
        ),
        Claim(
            f"ALQ has less variance with its normal model's optimum than with the published levels ({task}).",
            "Follows from the paper: levels minimise the variance of a truncated normal fitted to the coordinates.",
            check_variance.less(
                gradients,
                "3 bits",
                [("ALQ without 0, normal model", PUBLISHED)],
                Reasons(
                    holds="Here the model is good enough.",
                    contradicted="Gradients have heavier tails than the model; levels that have not converged lie "
                    "further out, where the tails are. The histogram of the coordinates, converged, mends both.",
                ),
                (ALQ_NO_ZERO, "ALQ without 0, normal model", PUBLISHED, "ALQ", NORMAL),
            ),
        ),
        Claim(
            f"ALQ's weights norm^2 lower the variance against norm^1 and ALQ-N's equal weights ({task}, 3 bits).",
            "norm^2 minimises the total variance (unverified, derived); the code has norm^1; accuracies nearly equal.",
            check_variance.less(
                gradients,
                "3 bits",
                [("ALQ", "ALQ-N"), ("ALQ", "ALQ, weight norm^1")],
                Reasons(
                    holds="Long buckets dominate the total.",
                    contradicted="With few buckets norm^2 leaves the levels to one or two of them, and they fit its "
                    "noise.",
                    unsettled="With few buckets of like norms the weights hardly matter: the seeds do not settle it.",
                ),
                ("ALQ", "ALQ, weight norm^1", "ALQ-N", "AMQ", "AMQ-N"),
            ),
        ),
        Claim(
            f"Three updates of ALQ's levels do as well as fresh ones at every step ({task}, 3 bits).",
            "Updates at 0, 100, 2000 and every 10,000th of 80,000 steps: ten (code).",
            check_variance.alike(
                gradients,
                "schedule",
                THRICE,
                FRESH,
                Reasons(
                    holds="The distribution of normalised coordinates changes slowly.",
                    contradicted="The levels' age shows.",
                ),
            ),
        ),
        Claim(
            f"ALQ's levels of the first step alone are worse than fresh ones ({task}, 3 bits).",
            "An ablation has step 0 alone (code); its result is not available.",
            check_variance.less(
                gradients,
                "schedule",
                [(FRESH, ONCE)],
                Reasons(
                    holds="Gradients at initialisation have another distribution.",
                    contradicted="The first levels are as good later on.",
                ),
                (FRESH, THRICE, ONCE),
            ),
        ),
        Claim(
            f"A zero level costs ALQ no variance at equal bits ({task}).",
            "ALQ's levels contain 0 in the paper (unverified) and not in the code.",
            check_variance.less(
                gradients,
                "3 bits",
                [("ALQ", ALQ_NO_ZERO)],
                Reasons(
                    holds="The zero level is worth more than the value it replaces.",
                    contradicted="Without 0 there is one more distinct value, and fitted levels need no zero; 0 pays "
                    "in coded bits and in theory.",
                ),
                ("ALQ", ALQ_NO_ZERO, "NUQSGD", NO_ZERO),
            ),
        ),
        Claim(
            f"The NUQSGD of the comparison, without 0, has the variance of NUQSGD ({task}, 3 bits).",
            "The baseline's code has no zero level (read in the code); 33 % on ImageNet (figure).",
            check_variance.alike(
                gradients,
                "3 bits",
                NO_ZERO,
                "NUQSGD",
                Reasons(
                    holds="The zero level makes no difference.",
                    contradicted="Without its zero level, which its theory needs, its variance is several times as "
                    "large: the baseline is handicapped.",
                ),
            ),
        ),
        Claim(
            "NUQSGD and QSGD without 0 obey the published variance bounds (Gaussian buckets).",
            "The bounds assume a zero level: 31.1 for NUQSGD and 42.7 for QSGD at 3 bits, d = 16384.",
            check_grids.bound_without_zero(
                "zero-level",
                {("NUQSGD", 3): 31.125, ("QSGD", 3): 42.667},
                Reasons(
                    holds="They do.",
                    contradicted="Each coordinate near 0 becomes + or - the smallest level: a floor of d l_1^2.",
                ),
            ),
        ),
    ]
