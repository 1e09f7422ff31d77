"""What the reproduction of ALQ and AMQ measures and trains; ``alq.py`` says why."""

from __future__ import annotations

from dataclasses import replace

from thriftgrad.aggregate import AllGather
from thriftgrad.compress import ALQ, ALQ_N, AMQ, AMQ_N, EDEN, NUQSGD, QSGD, Lloyd, OneBit, TernGrad
from thriftgrad.core import ErrorFeedback
from thriftgrad.lab.reproduce import check_coding
from thriftgrad.lab.reproduce.probes import AnyCompressor, Measurement, Probe, ProbedGradients
from thriftgrad.lab.reproduce.studies import AdamMethod, Arm, Study
from thriftgrad.lab.reproduce.synthetic import ZeroLevel
from thriftgrad.lab.reproduce.timing import Timing
from thriftgrad.recipes import sgd
from thriftgrad.train.method import Method

BITS, BUCKET = 3, 16384
SMALL_BUCKET = 8192  # for the network of 38 282 parameters
ELEMENTS = 75_290  # the ResNet-8
BUCKETS = (1, 2, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
GRID = (0.3, 1.0, 3.0, 10.0)  # of the residual network, whose best rates in short runs are above the task's own
SMALL_GRID = (0.1, 0.3, 1.0, 3.0)
PAPER_STEPS, PAPER_SCHEDULE = 80_000, (0, 100, 2_000, *range(10_000, 80_000, 10_000))
"""The paper's steps of training, and those at which it refits levels (code)."""
SCHEDULE = (0, 10, 50)
"""The same for our hundred steps."""

FP32, ONE = "SuperSGD, fp32", "SGD, one worker"
NO_ZERO, ALQ_NO_ZERO = "NUQSGD without 0", "ALQ without 0"
UNCLIPPED = "TernGrad, no clipping"
CLIPPED, UNCLIPPED_TENSORS = "TernGrad, clipped", "TernGrad, no clipping, by tensors"
NORMAL, PUBLISHED = "ALQ, normal model", "ALQ, published code"
FRESH, THRICE, ONCE = "ALQ, every step", "ALQ, steps 0, 10 and 50", "ALQ, step 0 alone"
EF, EF_LLOYD = "EF-SignSGD, bucket 64", "Lloyd, error feedback"


def adaptive(bits: int, bucket: int) -> dict[str, AnyCompressor]:
    """The paper's own methods."""
    return {
        "ALQ": ALQ(bits=bits, bucket=bucket, per_tensor=False, update_at=SCHEDULE),
        "ALQ-N": ALQ_N(bits=bits, bucket=bucket, per_tensor=False, update_at=SCHEDULE),
        "AMQ": AMQ(bits=bits, bucket=bucket, per_tensor=False, update_at=SCHEDULE),
        "AMQ-N": AMQ_N(bits=bits, bucket=bucket, per_tensor=False, update_at=SCHEDULE),
    }


def baselines(bits: int, bucket: int) -> dict[str, AnyCompressor]:
    """What the paper compares with; TernGrad has three levels whatever ``bits`` is, and there no clipping."""
    return {
        "QSGDinf": QSGD(bits=bits, bucket=bucket, norm="linf", per_tensor=False),
        "NUQSGD": NUQSGD(bits=bits, bucket=bucket, per_tensor=False),
        NO_ZERO: NUQSGD(bits=bits, bucket=bucket, include_zero=False, per_tensor=False),
        UNCLIPPED: TernGrad(clip=None, bucket=bucket, shared_scale=False, per_tensor=False),
    }


def terngrads() -> dict[str, AnyCompressor]:
    """TernGrad as its own paper has it, a scale of all workers for each tensor, and the same but for clipping.

    On gradients without training, the gradient of the whole network is one tensor.
    """
    return {CLIPPED: TernGrad(), UNCLIPPED_TENSORS: TernGrad(clip=None)}


def variants(bits: int, bucket: int) -> dict[str, AnyCompressor]:
    """ALQ's ablations, and quantisers that the paper does not compare with."""
    base = ALQ(bits=bits, bucket=bucket)
    return {
        ALQ_NO_ZERO: replace(base, include_zero=False),
        "ALQ, weight norm^1": replace(base, weight_power=1),
        NORMAL: replace(base, distribution="normal"),
        "ALQ without 0, normal model": replace(base, distribution="normal", include_zero=False),
        PUBLISHED: replace(base, distribution="normal", include_zero=False, weight_power=1, reference_mode="ltq"),
        "Lloyd": Lloyd(bits=bits, bucket=bucket),
        "EDEN": EDEN(bits=bits, bucket=bucket),
    }


MAIN = (*adaptive(BITS, BUCKET), *baselines(BITS, BUCKET), *terngrads())
VARIANTS = tuple(variants(BITS, BUCKET))
SWEPT = ("ALQ", "ALQ-N", "AMQ", "AMQ-N", "QSGDinf", "NUQSGD", UNCLIPPED)


# -- on SGD's path --


def compared(steps: tuple[int, ...], bucket: int) -> list[Probe]:
    """Every quantiser at 3 bits."""
    everything = adaptive(BITS, bucket) | baselines(BITS, bucket) | terngrads() | variants(BITS, bucket)
    return [Probe("3 bits", label, each, steps) for label, each in everything.items()]


def sweeps(late: tuple[int, ...], bucket: int) -> list[Probe]:
    """Bits, buckets, schedules and coders."""
    everything = adaptive(BITS, bucket) | baselines(BITS, bucket) | variants(BITS, bucket)
    found = []
    for bits in range(2, 9):
        found += [Probe("bits", label, each, late, bits) for label, each in _swept(bits, bucket).items()]
    for size in BUCKETS:
        found += [Probe("bucket", label, each, late, size) for label, each in _swept(BITS, size).items()]
    levels = ALQ(bits=BITS, bucket=bucket)
    schedules = {FRESH: None, THRICE: SCHEDULE, ONCE: (0,)}
    found += [Probe("schedule", label, levels, late, fitted=fitted) for label, fitted in schedules.items()]
    coded = {label: each for label, each in everything.items() if label in (*SWEPT, ALQ_NO_ZERO, NO_ZERO)}
    coded["NUQSGD, 4 bits"] = NUQSGD(bits=4, bucket=bucket)
    return found + check_coding.probes(coded, late, {NO_ZERO, ALQ_NO_ZERO, "AMQ", "AMQ-N"})


def _swept(bits: int, bucket: int) -> dict[str, AnyCompressor]:
    every = adaptive(bits, bucket) | baselines(bits, bucket)
    return {label: every[label] for label in SWEPT}


def measurements(tasks: tuple[str, ...], quick: bool) -> tuple[Measurement, ...]:
    """All measurements without training."""
    by_bucket = {bucket: adaptive(BITS, bucket) | baselines(BITS, bucket) for bucket in (64, 512, BUCKET)}
    by_bucket[ELEMENTS] = terngrads()
    timed = tuple((label, bucket, each) for bucket, some in by_bucket.items() for label, each in some.items())
    gradients = []
    for task in tasks:
        steps = (10, 40) if quick else (5, 20, 40) if task == "text" else (5, 20, 60, 95)
        bucket = SMALL_BUCKET if task == "digits" else BUCKET
        put = compared(steps, bucket) + (sweeps(steps[-2:], bucket) if task == tasks[0] else [])
        gradients += [
            ProbedGradients(f"gradients-{task}-seed{seed}", task, seed, tuple(put), 30.0)
            for seed in range(3 if quick else 5)
        ]
    return (
        ZeroLevel("zero-level", n=16384, draws=3 if quick else 10),
        Timing("timing", timed, ELEMENTS, draws=3),
        *gradients,
    )


# -- trained --


def arms(bits: int = BITS, bucket: int = BUCKET) -> dict[str, Arm]:
    """Every method of the main table."""
    without = {ALQ_NO_ZERO: ALQ(bits=bits, bucket=bucket, per_tensor=False, include_zero=False, update_at=SCHEDULE)}
    everything = adaptive(bits, bucket) | without | baselines(bits, bucket) | terngrads()
    quantised = {label: AllGather(each) for label, each in everything.items()}
    remembered = {
        EF: AllGather(ErrorFeedback(OneBit(bucket=64))),
        EF_LLOYD: AllGather(ErrorFeedback(Lloyd(bits=bits, bucket=bucket, update_at=SCHEDULE))),
    }
    found = {FP32: Arm(FP32, sgd())}
    return found | {label: Arm(label, Method(each)) for label, each in (quantised | remembered).items()}


def studies(vision: str, quick: bool) -> tuple[Study, ...]:
    """All training runs; each study is tuned on its own grid."""
    if quick:
        ours = ("ALQ", ALQ_NO_ZERO, "ALQ-N", "AMQ")
        others = ("QSGDinf", "NUQSGD", UNCLIPPED, CLIPPED, UNCLIPPED_TENSORS)
        few = _of(arms(bucket=SMALL_BUCKET), FP32, *ours, *others)
        return (Study("accuracy", vision, few, 3, 60, 0.005, SMALL_GRID[:3], 30),)
    one = (Arm(ONE, sgd()),)
    found = [
        Study("accuracy", vision, tuple(arms().values()), 5, 100, 0.026, GRID, 40),
        Study("equal steps", vision, one, 5, 100, 0.026, GRID, 40, workers=1),
        Study("equal samples", vision, one, 5, 400, 0.026, GRID, 160, workers=1),
        Study("text", "text", _of(arms(), FP32, "ALQ", "QSGDinf", "NUQSGD"), 5, 60, 0.028, SMALL_GRID, 30),
    ]
    small = arms(bucket=SMALL_BUCKET)
    for workers, names in ((16, (FP32, "ALQ", "QSGDinf", "NUQSGD")), (32, (FP32, "ALQ", "QSGDinf"))):
        found.append(_on_digits(f"workers-{workers}", _of(small, *names), 60, workers=workers))
    found.append(_on_digits("bits", _by("bits", {b: arms(b, SMALL_BUCKET) for b in (2, 3, 5, 8)}, small[FP32]), 80))
    found.append(
        _on_digits("bucket", _by("bucket", {k: arms(BITS, k) for k in (64, 1024, 8192, 32768)}, small[FP32]), 80)
    )
    trio = _of(small, FP32, "ALQ", "QSGDinf")
    methods = [arm.method for arm in trio if isinstance(arm.method, Method)]
    plain = tuple(replace(arm, method=replace(each, momentum=0.0)) for arm, each in zip(trio, methods, strict=True))
    adam = tuple(replace(arm, method=AdamMethod(each.aggregator)) for arm, each in zip(trio, methods, strict=True))
    found.append(replace(_on_digits("momentum 0", plain, 80, 10), grid=(0.3, 1.0, 3.0, 10.0)))
    found.append(replace(_on_digits("adam", adam, 80, 10), grid=(0.003, 0.01, 0.03, 0.1)))
    found += [_on_digits(f"batch {size}", trio, 80, 10, batch_size=size) for size in (8, 128)]
    return tuple(found)


def _on_digits(
    name: str, arms: tuple[Arm, ...], steps: int, seeds: int = 5, workers: int = 4, batch_size: int | None = None
) -> Study:
    cost = 0.005 * (batch_size or 32) / 32
    return Study(name, "digits", arms, seeds, steps, cost, SMALL_GRID, steps // 2, workers, batch_size)


def _by(unit: str, found: dict[int, dict[str, Arm]], full: Arm) -> tuple[Arm, ...]:
    """The compared methods at each place of an axis, and full precision."""
    several = [
        replace(each[label], label=at(label, unit, x))
        for x, each in found.items()
        for label in ("ALQ", ALQ_NO_ZERO, "QSGDinf", "NUQSGD")
    ]
    return (full, *several)


def at(label: str, unit: str, x: int) -> str:
    """The name of an arm at a place of an axis.

    >>> at("ALQ", "bits", 3)
    'ALQ, 3 bits'
    """
    return f"{label}, {x} bits" if unit == "bits" else f"{label}, bucket {x}"


def _of(found: dict[str, Arm], *labels: str) -> tuple[Arm, ...]:
    return tuple(found[label] for label in labels)
