"""How far the modelled seconds of a comparison in the lab are from those that were measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from thriftgrad.lab.load import Clock, Run
from thriftgrad.lab.summary import MethodSummary, Summary

TOLERANCE = 0.15
"""The model is held to be right within this share of the measurement."""


@dataclass(frozen=True)
class Agreement:
    """Seconds of one method, measured and modelled; None where there are none."""

    measured: float | None
    modelled: float | None

    @property
    def off(self) -> float | None:
        """The model's error, relative to the measurement."""
        return self.modelled / self.measured - 1 if self.measured and self.modelled is not None else None

    @property
    def holds(self) -> bool:
        """Whether the model is within the tolerance, or there is nothing to compare."""
        return self.off is None or abs(self.off) <= TOLERANCE


def of_steps(summary: Summary) -> list[Agreement]:
    """Seconds of a step, for each method of a comparison in the lab."""
    measured, modelled = summary.configuration.clocks
    return [
        Agreement(step_seconds(method.runs, measured), step_seconds(method.runs, modelled))
        for method in summary.methods
    ]


def to_target(summary: Summary) -> list[Agreement]:
    """Seconds to the target, for each method of a comparison in the lab."""
    measured, modelled = (clock.name for clock in summary.configuration.clocks)
    return [
        Agreement(method.seconds_to_target[measured].mean, method.seconds_to_target[modelled].mean)
        for method in summary.methods
    ]


def step_seconds(runs: Iterable[Run], clock: Clock) -> float | None:
    """Mean over runs of a step's seconds by one clock."""
    last = [run.evaluations[-1] for run in runs if run.evaluations]
    rates = [at.seconds(clock.link) / at.step for at in last if at.step > 0]
    return fmean(rates) if rates else None


def finding(summary: Summary) -> str:
    """Whether the model foretold the measurement, in a sentence."""
    (link,) = summary.configuration.links
    found = list(zip(summary.methods, of_steps(summary), to_target(summary), strict=True))
    apart = [_told(method, step, target) for method, step, target in found if not (step.holds and target.holds)]
    if apart:
        return f"The model of {link.label} is more than {TOLERANCE:.0%} off the measurement for {'; '.join(apart)}."
    errors = [abs(each.off) for _, step, target in found for each in (step, target) if each.off is not None]
    if not errors:
        return f"Nothing was measured on {link.label} that its model could be held against."
    return f"The model of {link.label} is within {max(errors):.0%} of the measurement for every method."


def _told(method: MethodSummary, step: Agreement, target: Agreement) -> str:
    parts = [
        f"{name} {each.off:+.0%}"
        for name, each in (("a step", step), ("to the target", target))
        if each.off is not None
    ]
    return f"{method.method.label} ({', '.join(parts)})"
