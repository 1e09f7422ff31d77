"""NUQSGD: what the paper claims, and how each claim is measured here.

Ramezani-Kebrya, Faghri, Markov, Aksenov, Alistarh and Roy, "NUQSGD: Provably Communication-efficient Data-parallel
SGD via Nonuniform Quantization", JMLR 22(114), 2021, arXiv:1908.06077. "Unverified" marks what is known of the paper
from secondary sources alone; "reviews" what its published reviews and summary state.

The paper: ResNet-110 on CIFAR-10 and ResNet-18 on ImageNet, 4 bits, buckets of 8192, one seed. Here: ResNet-8 on digits
and a small transformer on text; buckets run over the whole gradient as one vector.
"""

from __future__ import annotations

from thriftgrad.aggregate import AllGather
from thriftgrad.compress import NUQSGD, QSGD, OneBit
from thriftgrad.core import ErrorFeedback
from thriftgrad.lab.reproduce import check_accuracy, check_coding, check_grids, check_time, check_variance
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.probes import AnyCompressor, Measurement, Probe, ProbedGradients
from thriftgrad.lab.reproduce.reproduction import Reproduction
from thriftgrad.lab.reproduce.studies import Arm, Study
from thriftgrad.lab.reproduce.synthetic import CodeLengths, WorstCases, ZeroLevel
from thriftgrad.lab.reproduce.timing import Timing
from thriftgrad.recipes import sgd
from thriftgrad.train.method import Method
from thriftgrad.wire.coders import Huffman

PAPER = "NUQSGD (Ramezani-Kebrya et al., JMLR 2021, arXiv:1908.06077)"
BITS, BUCKET = 4, 8192
BUCKETS = (1, 2, 8, 64, 512, 2048, 8192, 16384, 32768)
GRID = (0.03, 0.1, 0.3, 1.0, 3.0)
TIMED_ELEMENTS = 269_722  # a ResNet-20

FP32, EF, NO_ZERO = "SGD, fp32", "EF-SignSGD, bucket 64", "NUQSGD without 0"


def reproduction(quick: bool) -> Reproduction:
    """All of it, or a quick look: three seeds, short runs, a smaller network and fewer tasks."""
    vision = "digits" if quick else "digits32"
    tasks = (vision,) if quick else (vision, "text")
    studies = _studies(vision, quick)
    return Reproduction(
        name="nuqsgd",
        paper=PAPER,
        quick=quick,
        claims=(*_variance_claims(tasks), *_theory_claims(vision), *_training_claims(vision, studies)),
        measurements=_measurements(tasks, quick),
        studies=studies,
    )


# -- what is compared --


def _grids(bits: int = BITS, bucket: int = BUCKET) -> dict[str, AnyCompressor]:
    return {
        "QSGD": QSGD(bits=bits, bucket=bucket, per_tensor=False),
        "QSGDinf": QSGD(bits=bits, bucket=bucket, norm="linf", per_tensor=False),
        "NUQSGD": NUQSGD(bits=bits, bucket=bucket, per_tensor=False),
        NO_ZERO: NUQSGD(bits=bits, bucket=bucket, include_zero=False, per_tensor=False),
    }


LABELS = tuple(_grids())


def _arms() -> tuple[Arm, ...]:
    quantised = [Arm(label, Method(AllGather(each))) for label, each in _grids().items()]
    # Two scales to 64 signs make 2 bits a coordinate, as in the paper's timing.
    return (Arm(FP32, sgd()), *quantised, Arm(EF, Method(AllGather(ErrorFeedback(OneBit(bucket=64))))))


def _studies(vision: str, quick: bool) -> tuple[Study, ...]:
    accuracy = Study(
        name="accuracy",
        task=vision,
        arms=_arms(),
        seeds=3 if quick else 5,
        steps=60 if quick else 120,
        step_seconds=0.005 if quick else 0.026,
        grid=GRID[1:-1] if quick else GRID,
        tuning_steps=30 if quick else 60,
    )
    if quick:
        return (accuracy,)
    few = tuple(arm for arm in _arms() if arm.label in (FP32, "QSGD", "QSGDinf", "NUQSGD"))
    many = [
        Study(f"workers-{count}", "digits", few, 5, 60, 0.005, workers=count, grid=GRID[1:-1], tuning_steps=30)
        for count in (16, 32)
    ]
    text = Study("text", "text", few, 5, 60, 0.028, grid=GRID[1:-1], tuning_steps=20)
    return (accuracy, text, *many)


def _measurements(tasks: tuple[str, ...], quick: bool) -> tuple[Measurement, ...]:
    steps = (10, 40) if quick else (5, 20, 60, 110)
    probes = {task: _compared((5, 20, 40) if task == "text" else steps) for task in tasks}
    probes[tasks[0]] += _sweeps(steps[-2:])
    gradients = [
        ProbedGradients(f"gradients-{task}-seed{seed}", task, seed, tuple(probes[task]), 20.0)
        for task in tasks
        for seed in range(3 if quick else 5)
    ]
    return (
        ZeroLevel("zero-level", n=16384, draws=3 if quick else 10),
        WorstCases("worst-cases", cases=((2, 16384), (6, 64), (6, 8192), (6, 65536)), draws=5),
        CodeLengths("code-lengths", cases=((3, 1_000_000), (4, 1_000_000), (2, 100_000)), draws=3),
        Timing("timing", _timed(), TIMED_ELEMENTS, draws=3),
        *gradients,
    )


def _compared(steps: tuple[int, ...]) -> list[Probe]:
    return [Probe("4 bits", label, each, steps) for label, each in _grids().items()]


def _sweeps(late: tuple[int, ...]) -> list[Probe]:
    bits = [Probe("bits", label, each, late, b) for b in range(2, 9) for label, each in _grids(b).items()]
    buckets = [Probe("bucket", label, each, late, k) for k in BUCKETS for label, each in _grids(BITS, k).items()]
    return bits + buckets + check_coding.probes(_grids(), late, {NO_ZERO})


def _timed() -> tuple[tuple[str, int, AnyCompressor], ...]:
    found: list[tuple[str, int, AnyCompressor]] = [(EF, 64, OneBit(bucket=64))]
    for bucket in (64, 512, BUCKET):
        found += [(f"{label}, 4 bits", bucket, each) for label, each in _grids(BITS, bucket).items()]
        found += [("NUQSGD, 8 bits", bucket, NUQSGD(bits=8, bucket=bucket))]
        found += [("NUQSGD, 4 bits, Huffman", bucket, NUQSGD(bits=BITS, bucket=bucket) >> Huffman())]
    return tuple(found)


# -- the claims --


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
                    "0, and "
                    "between powers of two its error is up to r^2 / 8 whatever the bits.",
                ),
                LABELS,
                "bits",
                least=3,
            ),
        ),
        Claim(
            f"A bucket of 1 is exact and variance grows with the bucket ({tasks[0]}, 4 bits).",
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
            f"For large buckets variance grows as the square root of the bucket ({tasks[0]}, 4 bits).",
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
            "Its variance is at most eps_Q |v|^2: 1/8 + d / 2^(2s+2), or 2^-s sqrt(d) - 7/8 from d = 2^(2s+2) on.",
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
            "The grid of the authors' code obeys the paper's variance bound.",
            "Levels include 0 (unverified); both published codes use +-2^-j without 0 (read in the code).",
            check_grids.bound_without_zero(
                "zero-level",
                {("NUQSGD", 2): 127.0, ("NUQSGD", 3): 31.125, ("NUQSGD", 4): 1.125, ("QSGD", 3): 42.667},
                Reasons(
                    holds="Both grids obey it.",
                    contradicted="Without 0 each coordinate near 0 becomes + or - the smallest level: a floor of d "
                    "l_1^2.",
                    in_part="Without 0 each coordinate near 0 becomes + or - the smallest level, a floor of d l_1^2 "
                    "that the "
                    "bound does not know; from 4 bits on l_1 is small enough.",
                ),
            ),
        ),
        Claim(
            "The expected code length is at most 32 + 3k + k log2(d/k) + k log2 log2(8 (4^s + d)/k), k = 4^s + 2^s "
            "sqrt(d).",
            "Code-length theorem, Elias's recursive code (unverified; terms o(1) dropped): 107,038 bits at s = 3, d "
            "= 10^6.",
            check_grids.code_length(
                "code-lengths",
                Reasons(
                    holds="Real encodings stay below it, with the count of nonzeros that the papers leave out.",
                    contradicted="Real encodings are longer than the bound.",
                ),
            ),
        ),
        Claim(
            f"Coding pays: 4-bit symbols take fewer than 4 bits ({vision}, really encoded).",
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
            "8 GPUs, ResNet-34 and -50, Horovod (reviews; numbers not recoverable); EF-SignSGD in buckets of 64, 2 "
            "bits.",
            check_time.faster(
                "timing",
                TIMED_ELEMENTS,
                [(("NUQSGD, 4 bits", BUCKET), (EF, 64))],
                [((EF, 64), ("NUQSGD, 8 bits", BUCKET))],
                Reasons(
                    holds="Fewer operations on shorter messages.",
                    contradicted="EF-SignSGD sends half the bytes; the paper's was slow for want of parallelism on a "
                    "GPU.",
                    in_part="EF-SignSGD sends half the bytes; the paper's was slow for want of parallelism on a GPU, "
                    "which one "
                    "CPU thread does not show.",
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
            check_accuracy.matches("accuracy", "NUQSGD", (FP32, "QSGDinf"), match),
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
            "4 bits are what a worker sends and receives.",
            "Bit widths stand for communication; norms, headers and the way down are not counted.",
            check_accuracy.total_bits(
                "accuracy",
                "NUQSGD",
                BITS,
                Reasons(
                    holds="Scales and headers are negligible at this bucket.",
                    contradicted="Each message carries more than its nominal width.",
                    in_part="A message does take 4 bits, but an all-gather moves it once for every other worker, "
                    "both ways.",
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
                check_accuracy.matches(study.name, "NUQSGD", (FP32,), match, margin),
            )
        )
    return found
