"""What the quality half of PowerSGD's reproduction measures and trains; ``powersgd.py`` says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from thriftgrad.aggregate import AllReduce, PowerSGD
from thriftgrad.compress import UnbiasedLowRank
from thriftgrad.lab.reproduce.approximation import Approximations
from thriftgrad.lab.reproduce.powersgd_methods import (
    atomo,
    gradiveq,
    power,
    powers,
    sgd,
    sign_norm,
    signum,
    unbiased,
    with_memory,
)
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.quadratics import Form, Quadratics
from thriftgrad.lab.reproduce.studies import Arm, Study

HIGH, MEDIUM = 1, 4
"""Ranks at which rivals send as much. The paper's are 2 and 7, on networks about eight times as wide."""
RANKS = (1, 2, 4, 8, 16, 32)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
FIXED = {"digits18": 0.8, "lstm": 4.5, "text": 4.9, "lstm 16 workers": 4.5}
FIXED_QUICK = {"digits": 0.6, "lstm": 5.2}
"""The target beside SGD's own quality."""
GIGABIT, HUNDRED = "1gbit,0.1ms", "100mbit,0.1ms"
TOP_K = {
    "digits": {HIGH: 0.0172, MEDIUM: 0.063},
    "digits18": {HIGH: 0.0221, MEDIUM: 0.075},
    "lstm": {HIGH: 0.0155, MEDIUM: 0.0418},
}
"""The fraction that TopK sends in as many bytes as PowerSGD of these ranks."""


def sparse(task: str, rank: int) -> list[Arm]:
    """Random Block, Random K and Top K in the bytes of a rank; Random K is too slow to be everywhere."""
    block, random, top = with_memory(rank, TOP_K[task][rank])
    return [block, top] if task == "digits18" or rank == MEDIUM else [block, random, top]


def rivals(task: str) -> list[Arm]:
    """What the paper compares under error feedback."""
    return [*sparse(task, HIGH), *sparse(task, MEDIUM), sign_norm()]


def ranks_of(task: str, quick: bool) -> tuple[int, ...]:
    """The ranks that are trained."""
    return {"lstm": (1, 2, MEDIUM, 16) if quick else RANKS, "text": (1, 2, MEDIUM, 32)}.get(task, (1, 2, MEDIUM))


def images(quick: bool) -> Study:
    """The paper's tables on CIFAR-10: memory, ranks, compressors under memory, others without."""
    task, steps = ("digits", 24) if quick else ("digits18", 40)
    forms = [
        sgd(),
        *powers(ranks_of(task, quick)),
        *(power(rank, memory="none") for rank in (1, 2)),
        unbiased(2),
        power(2, plus_gradient=True),
    ]
    others = [*rivals(task), atomo(2), signum(), gradiveq(12, 24) if quick else gradiveq(14, 20)]
    return Study(
        name=task,
        task=task,
        arms=(*forms, *others),
        seeds=3 if quick else 5,
        steps=steps,
        step_seconds=0.006 if quick else 0.042,
        grid=RATES[1:4] if quick else RATES,
        tuning_steps=8 if quick else 10,
        workers=4 if quick else 8,
        batch_size=4,
        links=(GIGABIT, HUNDRED),
        evaluations=8,
        calibration=128,
    )


def language(quick: bool) -> Study:
    """The paper's tables on its LSTM, and everything that only few of its rows are about."""
    forms = [
        sgd(),
        *powers(ranks_of("lstm", quick)),
        power(2, warm_start=False),
        power(2, memory="none"),
        power(2, warm_start=False, memory="none"),
        unbiased(2),
        *(iterated(warm, k) for warm in (True, False) for k in (2, 4)),
        power(1, residual_iterations=2),
        power(4, alternating=True),
        power(2, memory="global"),
        power(2, plus_gradient=True),
        sgd(plus_gradient=True),
        power(2, refresh_every=16),
        power(2, refresh="exact", refresh_every=16),
    ]
    steps = 32 if quick else 96
    others = [*rivals("lstm"), atomo(MEDIUM), signum(), gradiveq(8, 32) if quick else gradiveq(5, 24)]
    return Study(
        name="lstm",
        task="lstm",
        arms=tuple({arm.label: arm for arm in (*forms, *others)}.values()),
        seeds=3 if quick else 5,
        steps=steps,
        step_seconds=0.006 if quick else 0.0095,
        grid=RATES[1:] if quick else RATES,
        tuning_steps=8 if quick else 20,
        workers=4 if quick else 8,
        batch_size=2 if quick else 4,
        links=(GIGABIT, HUNDRED),
        evaluations=8 if quick else 12,
    )


def sixteen() -> Study:
    """The LSTM on twice the workers, each with half the batch."""
    return replace(
        language(quick=False),
        name="lstm 16 workers",
        arms=(sgd(), *powers((1, 2, MEDIUM))),
        workers=16,
        batch_size=2,
        step_seconds=0.0055,
    )


def transformer() -> Study:
    """The transformer of the paper's appendix, which needed rank 32 there."""
    return Study(
        name="text",
        task="text",
        arms=(sgd(), *powers(ranks_of("text", quick=False)), power(MEDIUM, memory="none")),
        seeds=5,
        steps=48,
        step_seconds=0.014,
        grid=(0.06, 0.2, 0.6, 1.8, 5.4),
        tuning_steps=12,
        workers=8,
        batch_size=2,
        links=(GIGABIT, HUNDRED),
        evaluations=16,
    )


def studies(quick: bool) -> tuple[Study, ...]:
    """All training runs."""
    base = (images(quick), language(quick))
    return base if quick else (*base, sixteen(), transformer())


def form_of(arm: Arm) -> tuple[str, PowerSGD]:
    """The arm's label and what it exchanges by."""
    aggregator = arm.method.aggregator
    assert isinstance(aggregator, PowerSGD)
    return arm.label, aggregator


ITERATED = (1, 2, 4)
"""Power iterations a step."""


def iterated(warm: bool, k: int) -> Arm:
    """Rank 2, from the last factor or from a new one, with k rounds."""
    settings: dict[str, Any] = {} if warm else {"warm_start": False}
    settings |= {"power_iterations": k} if k > 1 else {}
    return power(2, **settings)


def looking_on(quick: bool) -> tuple[tuple[str, PowerSGD], ...]:
    """The forms that are put on SGD's path."""
    found = [*powers(RANKS), *(iterated(warm, k) for warm in (True, False) for k in ITERATED)]
    found += [power(1, residual_iterations=2), power(2, refresh_every=16), power(2, memory="none")]
    return tuple({arm.label: form_of(arm) for arm in found}.values())


PATHS = {
    True: {"digits": (16, 4.0), "lstm": (16, 4.0)},
    False: {"digits18": (24, 8.0), "lstm": (64, 8.0), "text": (24, 10.0)},
}
"""Whether quick: the tasks of which SGD's path is looked at, for how many steps, and about how many seconds."""
COLD: tuple[dict[str, Any], ...] = ({"warm_start": False}, {"warm_start": False, "memory": "none"})
STABLE_RANKS = (1, 2, 4)
STABLE_RATES = (0.05, 0.1, 0.2, 0.5, 1.0)
NOISES = (0.0, 3.0, 30.0)


def four(rank: int) -> list[Arm]:
    """With memory and without, warm and cold."""
    return [power(rank), power(rank, memory="none"), *(power(rank, **each) for each in COLD)]


def stress_forms() -> tuple[Form, ...]:
    """What is put under a dominant noise direction."""
    found: list[Form] = [form_of(arm) for arm in (*four(1), power(1, refresh_every=10))]
    return (*found, (unbiased(1).label, AllReduce(UnbiasedLowRank(rank=1))))


def measurements(quick: bool) -> tuple[Measurement, ...]:
    """On SGD's path, and on quadratics."""
    seeds = range(3 if quick else 5)
    paths = [
        Approximations(f"path-{task}-seed{seed}", task, seed, looking_on(quick), steps, 4, seconds)
        for task, (steps, seconds) in PATHS[quick].items()
        for seed in seeds
    ]
    flat: tuple[Form, ...] = tuple(form_of(arm) for rank in STABLE_RANKS[: 1 if quick else 3] for arm in four(rank))
    flat_seconds, noisy_seconds = (4.0, 4.0) if quick else (15.0, 25.0)
    stable = [Quadratics(f"flat-seed{seed}", flat, STABLE_RATES, (None,), 400, seed, flat_seconds) for seed in seeds]
    stress = [
        Quadratics(f"noisy-seed{seed}", stress_forms(), (0.02,), NOISES, 400 if quick else 1600, seed, noisy_seconds)
        for seed in seeds
    ]
    return (*paths, *stable, *stress)
