"""PowerSGD, its forms and its rivals as arms of studies, each under one label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from thriftgrad import recipes
from thriftgrad.aggregate import Aggregator, AllGather, AllReduce, GradiVeQ, PowerSGD
from thriftgrad.compress import RandomBlock, RandomK, Sign, SpectralAtomo, TopK, UnbiasedLowRank
from thriftgrad.core import ErrorFeedback
from thriftgrad.lab.reproduce.studies import Arm
from thriftgrad.train.method import Method

SGD = "SGD"
SAVING = 1.0
"""Matrices travel as factors wherever these are smaller at all, as in the paper but for those where they are larger."""

_WORDS = {
    ("warm_start", False): "cold",
    ("memory", "none"): "no memory",
    ("memory", "global"): "global memory",
    ("alternating", True): "alternating",
}
_NUMBERS = {"power_iterations": "k", "residual_iterations": "residual", "refresh_every": "refresh"}


def power(rank: int, *, plus_gradient: bool = False, **settings: Any) -> Arm:
    """PowerSGD of this rank, momentum 0.9 after aggregation; its label says what differs from the paper's form.

    >>> power(2, warm_start=False, power_iterations=4).label
    'PowerSGD r=2, cold, k=4'
    """
    said = [_WORDS[each] for each in settings.items() if each in _WORDS]
    said += [f"{word}={settings[name]}" for name, word in _NUMBERS.items() if name in settings]
    said += ["exact"] if settings.get("refresh") == "exact" else []
    said += ["D'+m"] if plus_gradient else []
    label = ", ".join([f"PowerSGD r={rank}", *said])
    aggregator = PowerSGD(rank=rank, min_compression_rate=SAVING, **settings)
    return Arm(label, Method(aggregator, plus_gradient=plus_gradient))


def powers(ranks: Iterable[int]) -> tuple[Arm, ...]:
    """PowerSGD of several ranks."""
    return tuple(power(rank) for rank in ranks)


def sgd(plus_gradient: bool = False) -> Arm:
    """SGD on the exact mean."""
    return Arm(f"{SGD}, D'+m" if plus_gradient else SGD, Method(recipes.sgd().aggregator, plus_gradient=plus_gradient))


def with_memory(rank: int, fraction: float) -> tuple[Arm, Arm, Arm]:
    """The sparse rivals under error feedback: of rank r's floats for each tensor, and TopK of about as many bytes."""
    return (
        _arm(f"RandomBlock r={rank}", AllReduce(ErrorFeedback(RandomBlock(rank=rank)))),
        _arm(f"RandomK r={rank}", AllReduce(ErrorFeedback(RandomK(rank=rank, rescale=False)))),
        _arm(f"TopK bytes of r={rank}", AllGather(ErrorFeedback(TopK(fraction=fraction)))),
    )


def sign_norm() -> Arm:
    """The paper's Sign+Norm: signs and each tensor's mean magnitude, under error feedback."""
    return _arm("Sign+Norm", AllGather(ErrorFeedback(Sign())))


def unbiased(rank: int) -> Arm:
    """Random projections without bias, no memory."""
    return _arm(f"Unbiased r={rank}", AllReduce(UnbiasedLowRank(rank=rank)))


def atomo(rank: int) -> Arm:
    """Spectral Atomo, no memory."""
    return _arm(f"Atomo r={rank}", AllGather(SpectralAtomo(rank=rank)))


def signum() -> Arm:
    """Signum with its majority vote, no memory."""
    return Arm("Signum", recipes.signum())


def gradiveq(components: int, cycle: int) -> Arm:
    """GradiVeQ in slices of 256; of ``cycle`` steps the first sends whole gradients, and counts."""
    return _arm("GradiVeQ", GradiVeQ(components=components, compressed_steps=cycle - 1))


def _arm(label: str, aggregator: Aggregator[Any]) -> Arm:
    return Arm(label, Method(aggregator))
