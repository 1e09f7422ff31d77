"""NUQSGD: what the paper claims, and how each claim is measured here.

Ramezani-Kebrya, Faghri, Markov, Aksenov, Alistarh and Roy, "NUQSGD: Provably Communication-efficient Data-parallel
SGD via Nonuniform Quantization", JMLR 22(114), 2021, arXiv:1908.06077. "Unverified" marks what is known of the paper
from secondary sources alone; "reviews" what its published reviews and summary state.

The paper: ResNet-110 on CIFAR-10 and ResNet-18 on ImageNet, 4 bits, buckets of 8192, one seed. Here: ResNet-8 on digits
and a small transformer on text; buckets run over the whole gradient as one vector.
"""

from __future__ import annotations

from thriftgrad.lab.reproduce import check_accuracy, check_coding, check_grids, check_time, check_variance
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.nuqsgd_work import BITS, BUCKET, EF, FP32, LABELS, TIMED_ELEMENTS, measurements, studies
from thriftgrad.lab.reproduce.reproduction import Reproduction
from thriftgrad.lab.reproduce.studies import Study

PAPER = "NUQSGD (Ramezani-Kebrya et al., JMLR 2021, arXiv:1908.06077)"


def reproduction(quick: bool) -> Reproduction:
    """All of it, or a quick look: three seeds, short runs, a smaller network and fewer tasks."""
    vision = "digits" if quick else "digits32"
    tasks = (vision,) if quick else (vision, "text")
    trained = studies(vision, quick)
    return Reproduction(
        name="nuqsgd",
        paper=PAPER,
        quick=quick,
        claims=(*_variance_claims(tasks), *_theory_claims(vision), *_training_claims(vision, trained)),
        measurements=measurements(tasks, quick),
        studies=trained,
    )


def _variance_claims(tasks: tuple[str, ...]) -> list[Claim]:
    found = []
    for task in tasks:
        gradients = f"gradients-{task}"
        found += [
            Claim(
                f"At 4 bits and bucket 8192 NUQSGD has less variance than QSGD ({task}, on SGD's path).",
                "NUQSGD below QSGD at equal bits (reviews, figures unverified).",
                check_variance.less(
                    gradients,
                    "4 bits",
                    [("NUQSGD", "QSGD")],
                    Reasons(
                        holds="Most coordinates lie below QSGD's first level, 1/7 of the norm; NUQSGD's is 1/64 of it.",
                        contradicted="On these gradients QSGD has the smaller variance.",
                    ),
                    LABELS,
                ),
            ),
            Claim(
                f"NUQSGD matches QSGDinf in variance ({task}, 4 bits, bucket 8192, on SGD's path).",
                "Matches QSGDinf in variance (reviews; no numbers available).",
                check_variance.alike(
                    gradients,
                    "4 bits",
                    "NUQSGD",
                    "QSGDinf",
                    Reasons(
                        holds="Exponential levels of a long scale do as well as uniform levels of a short one.",
                        contradicted="Which is better depends on the tails: QSGDinf's scale is the largest coordinate, "
                        "which light tails keep small and heavy tails do not.",
                    ),
                ),
            ),
        ]
    gradients = f"gradients-{tasks[0]}"
    found += [
        Claim(
            f"NUQSGD has less variance than QSGD at every width from 3 to 8 bits ({tasks[0]}, bucket 8192).",
            "At equal bits (reviews); eps_Q never falls below 1/8, while QSGD's bound falls as 4^-bits.",
            check_variance.less_along(
                gradients,
                "bits",
                "NUQSGD",
                "QSGD",
                Reasons(
                    holds="The exponential grid has its levels where the coordinates are, at every width.",
                    contradicted="The uniform grid has the smaller variance.",
                    in_part="More bits refine the uniform grid everywhere; the exponential one only adds levels near "
                    "0, and between powers of two its error is up to r^2 / 8 whatever the bits.",
                ),
                LABELS,
                "bits",
                least=3,
            ),
        ),
        Claim(
            f"QSGD, QSGDinf and NUQSGD are exact at a bucket of 1, and variance grows with it ({tasks[0]}, 4 bits).",
            "eps_Q grows with d; a bucket of 1 has no error in either norm.",
            check_variance.grows_from_exact(
                gradients,
                "bucket",
                ("QSGD", "QSGDinf", "NUQSGD"),
                Reasons(
                    holds="A longer bucket has a longer norm for the same coordinates.",
                    contradicted="Variance does not grow with the bucket.",
                    in_part="Where neighbouring buckets are within each other's noise, the seeds do not order them.",
                ),
            ),
        ),
        Claim(
            f"For large buckets NUQSGD's variance grows as the square root of the bucket ({tasks[0]}, 4 bits).",
            "eps_Q = 2^-s sqrt(d) - 7/8 for d >= 2^(2s+2), that is 16384 at 4 bits; order-optimal (unverified).",
            check_variance.power_of_bucket(
                gradients,
                "bucket",
                "NUQSGD",
                0.3,
                0.7,
                Reasons(
                    holds="Real gradients grow as the worst case does.",
                    contradicted="The square root is the worst case's growth; on these gradients the exponent is "
                    "another.",
                ),
            ),
        ),
    ]
    return found


def _theory_claims(vision: str) -> list[Claim]:
    return [
        Claim(
            "NUQSGD's variance is at most eps_Q |v|^2: 1/8 + d / 2^(2s+2), or 2^-s sqrt(d) - 7/8 from d = 2^(2s+2) on.",
            "Main theorem (numbering unverified; the bound was derived anew): 31.125 for s = 2, d = 16384.",
            check_grids.variance_bound(
                "worst-cases",
                Reasons(
                    holds="The exact worst case, by a concave envelope, lies just below the bound.",
                    contradicted="A measured variance or the exact worst case exceeds the bound.",
                ),
            ),
        ),
        Claim(
            "The grids of the authors' code, NUQSGD and QSGD without 0, obey the papers' variance bounds.",
            "Levels include 0 (unverified); both published codes use +-2^-j without 0 (read in the code).",
            check_grids.bound_without_zero(
                "zero-level",
                {("NUQSGD", 2): 127.0, ("NUQSGD", 3): 31.125, ("NUQSGD", 4): 1.125, ("QSGD", 3): 42.667},
                Reasons(
                    holds="Both grids obey them.",
                    contradicted="Without 0 each coordinate near 0 becomes + or - the smallest level: "
                    "a floor of d l_1^2.",
                    in_part="Without 0 each coordinate near 0 becomes + or - the smallest level, a floor of d l_1^2 "
                    "that the bound does not know; from 4 bits on l_1 is small enough.",
                ),
            ),
        ),
        Claim(
            "NUQSGD's expected code length is at most 32 + 3k + k log2(d/k) + k log2 log2(8 (4^s + d)/k), "
            "k = 4^s + 2^s sqrt(d).",
            "Code-length theorem, Elias's recursive code (unverified; terms o(1) dropped): 107,038 bits at s = 3, "
            "d = 10^6.",
            check_grids.code_length(
                "code-lengths",
                Reasons(
                    holds="Real encodings stay below it, with the count of nonzeros that the papers leave out.",
                    contradicted="Real encodings are longer than the bound.",
                ),
            ),
        ),
        Claim(
            f"Coding pays: NUQSGD's 4-bit symbols take fewer than 4 bits ({vision}, really encoded).",
            "Non-trivial coding helps (reviews); Elias in the paper, no coding at all in the authors' code.",
            check_coding.shorter(
                f"gradients-{vision}",
                "NUQSGD",
                ("Elias", "Elias, sparse", "Huffman"),
                Reasons(
                    holds="Most coordinates round to 0 or the smallest levels, and any code uses that.",
                    contradicted="Coded symbols are longer than packed ones.",
                ),
            ),
        ),
        Claim(
            "4-bit NUQSGD is faster end to end than EF-SignSGD, which is about as fast as 8-bit NUQSGD.",
            "8 GPUs, ResNet-34 and -50, Horovod (reviews; numbers not recoverable); "
            "EF-SignSGD in buckets of 64, 2 bits.",
            check_time.faster(
                "timing",
                TIMED_ELEMENTS,
                [(("NUQSGD, 4 bits", BUCKET), (EF, 64))],
                [((EF, 64), ("NUQSGD, 8 bits", BUCKET))],
                Reasons(
                    holds="Fewer operations, without a memory to update, outweigh messages twice as long.",
                    contradicted="EF-SignSGD, its memory's update included, sends half the bytes; the paper's was slow "
                    "for want of parallelism on a GPU.",
                    in_part="EF-SignSGD pays for its memory's update and sends half the bytes; the paper's was slow "
                    "for want of parallelism on a GPU, which one CPU thread does not show.",
                ),
            ),
        ),
    ]


def _training_claims(vision: str, studies: tuple[Study, ...]) -> list[Claim]:
    scattered = "The seeds scatter by more than the margin, so a match and a small loss look alike."
    match = Reasons(
        holds="Its rounding error is a fraction of the minibatch's own noise, so training does not see it.",
        contradicted="The difference is larger than the margin.",
        in_part="The seeds settle only part of it.",
        unsettled=scattered,
    )
    found = [
        Claim(
            f"4-bit NUQSGD reaches the accuracy of full precision and of QSGDinf ({vision}, 4 workers).",
            "Matches both (reviews; tables unverified); one seed, one learning rate for all.",
            check_accuracy.better(
                "accuracy", [("NUQSGD", FP32), ("NUQSGD", "QSGDinf")], match, by=-check_accuracy.MARGIN
            ),
        ),
        Claim(
            f"4-bit NUQSGD is more accurate than 4-bit QSGD ({vision}, 4 workers, both tuned).",
            "Follows from the variance (reviews; tables unverified).",
            check_accuracy.better(
                "accuracy",
                [("NUQSGD", "QSGD")],
                Reasons(
                    holds="QSGD's rounding error is several times the gradient itself, and no learning rate mends "
                    "that.",
                    contradicted="QSGD is the more accurate one.",
                ),
            ),
        ),
        Claim(
            f"NUQSGD is no less accurate than EF-SignSGD in buckets of 64 ({vision}, 4 workers).",
            "Compared in time; accuracies unverified.",
            check_accuracy.better(
                "accuracy",
                [("NUQSGD", EF)],
                Reasons(
                    holds="Unbiased rounding needs no memory.",
                    contradicted="Error feedback with a scale for every 64 coordinates is the better method here.",
                ),
                by=-check_accuracy.MARGIN,
            ),
        ),
        Claim(
            "With 4-bit NUQSGD 4 bits a coordinate are what a worker sends and receives.",
            "Bit widths stand for communication; norms, headers and the way down are not counted.",
            check_accuracy.total_bits(
                "accuracy",
                "NUQSGD",
                BITS,
                Reasons(
                    holds="Scales and headers are negligible at this bucket.",
                    contradicted="Each message carries more than its nominal width.",
                    in_part="A message does take 4 bits, but an all-gather moves it once for every other worker, both "
                    "ways.",
                ),
            ),
        ),
    ]
    for study in studies[1:]:
        margin = 0.05 if study.task == "text" else check_accuracy.MARGIN
        found.append(
            Claim(
                f"4-bit NUQSGD matches full precision on {study.task} with {study.workers} workers.",
                "Images and up to 8 GPUs in the paper.",
                check_accuracy.matches(study.name, [("NUQSGD", FP32)], match, margin),
            )
        )
    return found
