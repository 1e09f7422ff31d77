"""What the reproduction of NUQSGD measures and trains; ``nuqsgd.py`` says why."""

from __future__ import annotations

from thriftgrad.aggregate import AllGather
from thriftgrad.compress import NUQSGD, QSGD, OneBit
from thriftgrad.core import ErrorFeedback
from thriftgrad.lab.reproduce import check_coding
from thriftgrad.lab.reproduce.probes import AnyCompressor, Measurement, Probe, ProbedGradients
from thriftgrad.lab.reproduce.studies import Arm, Study
from thriftgrad.lab.reproduce.synthetic import CodeLengths, WorstCases, ZeroLevel
from thriftgrad.lab.reproduce.timing import Timing
from thriftgrad.recipes import sgd
from thriftgrad.train.method import Method
from thriftgrad.wire.coders import Huffman

BITS, BUCKET = 4, 8192
BUCKETS = (1, 2, 8, 64, 512, 2048, 8192, 16384, 32768)
GRID = (0.3, 1.0, 3.0, 10.0)  # of the residual network, whose best rates in short runs are above the task's own
SMALL_GRID = (0.1, 0.3, 1.0, 3.0)
TIMED_ELEMENTS = 269_722  # a ResNet-20

FP32, EF, NO_ZERO = "SGD, fp32", "EF-SignSGD, bucket 64", "NUQSGD without 0"


def grids(bits: int = BITS, bucket: int = BUCKET) -> dict[str, AnyCompressor]:
    """The fixed grids of the paper; buckets run over the whole gradient."""
    return {
        "QSGD": QSGD(bits=bits, bucket=bucket, per_tensor=False),
        "QSGDinf": QSGD(bits=bits, bucket=bucket, norm="linf", per_tensor=False),
        "NUQSGD": NUQSGD(bits=bits, bucket=bucket, per_tensor=False),
        NO_ZERO: NUQSGD(bits=bits, bucket=bucket, include_zero=False, per_tensor=False),
    }


LABELS = tuple(grids())
# Two scales to 64 signs make 2 bits a coordinate, as in the paper's timing.
EF_SIGN_SGD = ErrorFeedback(OneBit(bucket=64))


def arms() -> tuple[Arm, ...]:
    """Every method that is trained."""
    quantised = [Arm(label, Method(AllGather(each))) for label, each in grids().items()]
    return (Arm(FP32, sgd()), *quantised, Arm(EF, Method(AllGather(EF_SIGN_SGD))))


def studies(vision: str, quick: bool) -> tuple[Study, ...]:
    """All training runs; each study is tuned on its own grid."""
    accuracy = Study(
        name="accuracy",
        task=vision,
        arms=arms(),
        seeds=3 if quick else 10,
        steps=60 if quick else 120,
        step_seconds=0.005 if quick else 0.026,
        grid=SMALL_GRID[:3] if quick else GRID,
        tuning_steps=30 if quick else 60,
    )
    if quick:
        return (accuracy,)
    few = tuple(arm for arm in arms() if arm.label in (FP32, "QSGD", "QSGDinf", "NUQSGD"))
    many = [
        Study(f"workers-{count}", "digits", few, 5, 60, 0.005, SMALL_GRID[:3], 30, workers=count) for count in (16, 32)
    ]
    text = Study("text", "text", few, 5, 60, 0.028, SMALL_GRID, 20)
    return (accuracy, text, *many)


def measurements(tasks: tuple[str, ...], quick: bool) -> tuple[Measurement, ...]:
    """All measurements without training."""
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
    return [Probe("4 bits", label, each, steps) for label, each in grids().items()]


def _sweeps(late: tuple[int, ...]) -> list[Probe]:
    bits = [Probe("bits", label, each, late, b) for b in range(2, 9) for label, each in grids(b).items()]
    buckets = [Probe("bucket", label, each, late, k) for k in BUCKETS for label, each in grids(BITS, k).items()]
    return bits + buckets + check_coding.probes(grids(), late, {NO_ZERO})


def _timed() -> tuple[tuple[str, int, AnyCompressor], ...]:
    found: list[tuple[str, int, AnyCompressor]] = [(EF, 64, EF_SIGN_SGD)]
    for bucket in (64, 512, BUCKET):
        found += [(f"{label}, 4 bits", bucket, each) for label, each in grids(BITS, bucket).items()]
        found += [("NUQSGD, 8 bits", bucket, NUQSGD(bits=8, bucket=bucket))]
        found += [("NUQSGD, 4 bits, Huffman", bucket, NUQSGD(bits=BITS, bucket=bucket) >> Huffman())]
    return tuple(found)
