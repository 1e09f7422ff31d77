"""What the reproduction of Qsparse-local-SGD measures and trains; ``qsparse.py`` says why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from thriftgrad.lab.reproduce.contraction import Contractions
from thriftgrad.lab.reproduce.halving import Halving
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.posed import LocalStudy
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.qsparse_methods import DOWNLINKS, NESTEROV, PLAIN, arm, factorial, method
from thriftgrad.lab.reproduce.studies import Arm
from thriftgrad.local import Every, InnerSGD, PerWorker, RandomGaps

ELEMENTS = {"softmax": 650, "logreg": 30, "digits": 32768, "digits32": 36864, "text": 65536}
"""The largest tensor of each task; only dense unscaled QSGD looks at it."""
CONVEX_GRID = (1.0, 4.0, 16.0, 64.0)  # without momentum, of rates that suit momentum 0.9
TEXT_GRID = (0.2, 0.6, 1.8)
GAP, SLOW = 8, 32
MANY, FEW = 32, 8
"""Of the 650 coordinates of the convex task: 5 % in the grid, 1.2 % where savings are the question."""
KEPT = 200
"""Of each tensor of a network, or all that it has."""


def sgd(h: int = 1) -> Setting:
    """SGD and local SGD without compression."""
    return Setting("SGD", h=h, memory=False)


def components(k: int, h: int) -> dict[frozenset[str], Setting]:
    """Sparsify, quantise and local steps: all subsets."""
    found = {}
    for sparse in (False, True):
        for signs in (False, True):
            for gap in (1, h):
                op = {(False, False): "SGD", (True, False): "TopK", (False, True): "Sign", (True, True): "SignTopK"}
                have = {name for name, has in (("sparsify", sparse), ("quantise", signs), ("local", gap > 1)) if has}
                name = op[sparse, signs]
                setting = Setting(name, k if sparse else None, h=gap, memory=sparse or signs)
                found[frozenset(have)] = setting
    return found


def arms(settings: Iterable[Setting], task: str, inner: InnerSGD = PLAIN) -> tuple[Arm, ...]:
    """An arm for each setting, each once."""
    return tuple(arm(setting, ELEMENTS[task], inner) for setting in dict.fromkeys(settings))


def on_convex(k: int, gap: int) -> list[Setting]:
    """What is trained on the convex tasks: the components, shorter gaps, QTopK, and twins without memory or factor."""
    sign_top, top = Setting("SignTopK", k), Setting("TopK", k)
    return [
        *components(k, gap).values(),
        replace(sign_top, h=gap // 2),
        replace(top, memory=False),
        replace(sign_top, memory=False),
        replace(sign_top, h=gap, memory=False),
        Setting("QTopK", k, 15),
        Setting("QTopK", k, 15, scaled=False),
        Setting("QTopK", k, 15, h=gap),
    ]


def on_net(k: int, gap: int) -> list[Setting]:
    """What is trained where a step is costly."""
    sign = Setting("SignTopK", k, h=gap)
    return [sgd(), sgd(gap), Setting("TopK", k), replace(sign, h=gap // 2), sign]


def grid(quick: bool) -> Halving:
    """The factorial."""
    found, _, _ = cells(quick)
    pairs = [Setting("QTopK", MANY, 15), Setting("QTopK", MANY, 15, h=GAP)]
    always = [sgd(h) for h in gaps(quick)]
    always += [] if quick else [replace(each, scaled=scaled) for each in pairs for scaled in (True, False)]
    return Halving(
        name="factorial",
        task="softmax",
        arms=arms(found, "softmax"),
        seeds=3 if quick else 5,
        steps=32 if quick else 96,
        step_seconds=0.0012,
        grid=CONVEX_GRID[:3] if quick else CONVEX_GRID,
        tuning_steps=16 if quick else 48,
        workers=4 if quick else 8,
        evaluations=8 if quick else 12,
        share=0.1 if quick else 0.4,
        always=tuple(each.label for each in always),
    )


def gaps(quick: bool) -> tuple[int, ...]:
    """The H of the factorial."""
    return (1, GAP) if quick else (1, 4, GAP, 16)


def cells(quick: bool) -> tuple[list[Setting], list[Setting], int]:
    """Those that can be run, those that are forbidden, and how many the full product has."""
    return factorial(MANY, (4, 255) if quick else (2, 4, 15, 255), gaps(quick), ELEMENTS["softmax"])


def convex(quick: bool) -> LocalStudy:
    """The paper's convex experiment, on digits instead of MNIST: 15 workers, batches of 8."""
    return LocalStudy(
        name="convex",
        task="softmax",
        arms=arms(on_convex(FEW, GAP), "softmax"),
        seeds=3 if quick else 5,
        steps=64 if quick else 400,
        step_seconds=0.0009,
        grid=CONVEX_GRID[:3] if quick else CONVEX_GRID,
        tuning_steps=32 if quick else 160,
        workers=4 if quick else 15,
        evaluations=16 if quick else 50,
    )


def logreg(quick: bool) -> tuple[LocalStudy, LocalStudy]:
    """Logistic regression, from zero and from elsewhere."""
    settings = [*on_net(3, GAP), Setting("TopK", 3, memory=False), Setting("SignTopK", 3, memory=False)]
    steps = 48 if quick else 240
    zero = LocalStudy(
        name="logreg",
        task="logreg",
        arms=arms(settings, "logreg"),
        seeds=3 if quick else 5,
        steps=steps,
        step_seconds=0.0007,
        grid=tuple(4 * rate for rate in (CONVEX_GRID[:3] if quick else CONVEX_GRID)),
        tuning_steps=steps // 2,
        workers=4 if quick else 15,
        evaluations=16 if quick else 40,
    )
    few = arms([sgd(), Setting("SignTopK", 3, h=GAP)], "logreg")
    elsewhere = replace(zero, name="logreg from elsewhere", arms=few, deviation=1.0)
    return zero, elsewhere


def asynchronous(quick: bool) -> tuple[LocalStudy, LocalStudy]:
    """In step or not, on data dealt out at random and by label."""
    workers, setting = 4 if quick else 8, Setting("SignTopK", MANY, h=GAP)
    apart = replace(setting, asynchronous=True)
    slow = PerWorker((*(Every(GAP) for _ in range(workers - 1)), Every(SLOW)))
    n = ELEMENTS["softmax"]
    found = (
        arm(setting, n),
        arm(apart, n),
        Arm(f"{apart.label}, random gaps", method(apart, n, schedule=RandomGaps(GAP))),
        Arm(f"{apart.label}, one slow worker", method(apart, n, schedule=slow)),
    )
    steps = 64 if quick else 384
    mixed = LocalStudy(
        name="async",
        task="softmax",
        arms=found,
        seeds=3 if quick else 5,
        steps=steps,
        step_seconds=0.0006,
        grid=CONVEX_GRID[:3] if quick else CONVEX_GRID,
        tuning_steps=steps // 2,
        workers=workers,
        evaluations=16 if quick else 48,
        on_loss=True,
    )
    return mixed, replace(mixed, name="async sorted", sorted_labels=True)


def channel(setting: Setting, downlink: str) -> str:
    """The label of a method with a downlink other than the forwarding that a label means."""
    return f"{setting.label}, {downlink}"


def downlinks(quick: bool) -> LocalStudy:
    """SignTopK with every downlink, and SGD through the same server."""
    setting, n = Setting("SignTopK", FEW, h=GAP), ELEMENTS["softmax"]
    found = [Arm(channel(sgd(), "dense"), method(sgd(), n, downlink="dense"))]
    found += [Arm(channel(setting, each), method(setting, n, downlink=each, down_k=4 * FEW)) for each in DOWNLINKS]
    return replace(convex(quick), name="downlink", arms=tuple(found), workers=4 if quick else 8)


def heat_settings(ks: Iterable[int], quick: bool) -> tuple[Setting, ...]:
    """QTopK on a grid of k and s."""
    return tuple(Setting("QTopK", k, s, h=4) for k in ks for s in ((4, 255) if quick else (2, 4, 15, 255)))


HEAT_KS = (8, 16, 32, 64, 128)


def heat(quick: bool) -> LocalStudy:
    """The grid of k and s, trained."""
    found = heat_settings(HEAT_KS[::2], quick) if quick else heat_settings(HEAT_KS, quick)
    return replace(
        convex(quick),
        name="heat",
        arms=arms(found, "softmax"),
        steps=48 if quick else 192,
        tuning_steps=16 if quick else 64,
        workers=4 if quick else 8,
        evaluations=12 if quick else 48,
        on_loss=True,
    )


def nets(quick: bool) -> tuple[LocalStudy, ...]:
    """The residual network and the transformer, with the authors' local Nesterov momentum."""
    if quick:
        small = arms((sgd(), sgd(GAP), Setting("TopK", KEPT), Setting("SignTopK", KEPT, h=GAP)), "digits", NESTEROV)
        return (LocalStudy("digits", "digits", small, 3, 32, 0.006, (0.1, 0.3, 1.0), 16, workers=4, batch_size=8),)
    return (
        LocalStudy(
            name="digits32",
            task="digits32",
            arms=arms(on_net(KEPT, GAP), "digits32", NESTEROV),
            seeds=5,
            steps=96,
            step_seconds=0.040,
            grid=(1.0, 3.0, 9.0),
            tuning_steps=24,
            workers=8,
            batch_size=4,
            evaluations=12,
        ),
        LocalStudy(
            name="text",
            task="text",
            arms=arms(on_net(KEPT, GAP), "text", NESTEROV),
            seeds=5,
            steps=64,
            step_seconds=0.030,
            grid=TEXT_GRID,
            tuning_steps=24,
            workers=8,
            batch_size=2,
            evaluations=16,
        ),
    )


def studies(quick: bool) -> tuple[LocalStudy, ...]:
    """All training runs."""
    base = (grid(quick), convex(quick), *logreg(quick), *asynchronous(quick), downlinks(quick), heat(quick))
    return (*base, *nets(quick))


def measurements(quick: bool) -> tuple[Measurement, ...]:
    """Operators on the updates of SignTopK at H = 4, memory included."""
    tasks: dict[str, tuple[tuple[int, ...], int, float]] = {"softmax": (HEAT_KS[::2] if quick else HEAT_KS, MANY, 1.0)}
    if not quick:
        tasks |= {"digits": ((32, 128, 512, 2048), 512, 0.1), "text": ((64, 256, 1024, 4096), 1024, 0.1)}
    return tuple(
        Contractions(
            f"updates-{task}-seed{seed}",
            task,
            seed,
            method(Setting("SignTopK", kept, h=4), ELEMENTS[task]),
            rate,
            heat_settings(ks, quick),
            syncs=3,
            workers=2,
            seconds={"softmax": 1.0, "digits": 3.0, "text": 8.0}[task],
        )
        for task, (ks, kept, rate) in tasks.items()
        for seed in range(3 if quick else 5)
    )
