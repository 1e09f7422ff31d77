"""What a comparison says, in sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thriftgrad.lab import agreement
from thriftgrad.lab.load import Clock
from thriftgrad.lab.summary import Crossing, MethodSummary, Summary
from thriftgrad.lab.table import MISSING, human_bytes, quality_text, significant, status_text, target_text, times_text


def findings(summary: Summary) -> tuple[str, ...]:
    """What the comparison says, the headline first; a win without compression is said as plainly as any other."""
    if summary.on_sgd:
        return _on_sgd(summary)
    there = [method for method in summary.methods if method.steps_to_target.mean is not None]
    if there:
        sentences = [_bytes_finding(there, target_text(summary))]
        sentences += [_seconds_finding(there, clock) for clock in summary.configuration.clocks]
        if all(method.saves_bytes for method in there):
            sentences.append("Nothing here says whether to compress: no method as large as bf16 reaches the target.")
    else:
        sentences = [_best_without_target(summary)]
    missed = ", ".join(
        f"{method.method.label} ({method.steps_to_target.reached} of {len(method.runs)} seeds)"
        for method in summary.methods
        if method.steps_to_target.mean is None
    )
    left_out = ", ".join(
        f"{method.method.label} ({status_text(method)})" for method in summary.methods if status_text(method)
    )
    if there and missed:
        sentences.append(f"Not at the target on every seed: {missed}.")
    if left_out:
        sentences.append(f"Runs left out of the final quality: {left_out}.")
    if summary.in_lab:
        sentences.append(agreement.finding(summary))
    return tuple(sentences)


def _on_sgd(summary: Summary) -> tuple[str, ...]:
    """What methods do to the gradients of a training that is not theirs; none of them reached anything."""
    small = [method for method in summary.methods if method.saves_bytes]
    errors = [(each.means.relative_error, each) for each in small if each.means.relative_error is not None]
    noisy = [(each.means.variance, each) for each in summary.methods if each.means.variance and not each.means.biased]
    biased = [(each.means.bias, each) for each in summary.methods if each.means.bias and each.means.biased]
    sentences = ["On the gradients of plain SGD, no method sent less than bf16."]
    if errors:
        error, best = min(errors, key=lambda pair: pair[0])
        bits = best.means.bits_per_coordinate
        sent = "" if bits is None else f", at {significant(bits)} bits a coordinate"
        sentences = [
            f"On the gradients of plain SGD, {best.method.label} comes closest to their mean among the methods that "
            f"send less than bf16: a relative error of {significant(error)}{sent}."
        ]
    if noisy:
        sentences.append(f"No bias seen, by normalised variance: {_ranked(noisy)}.")
    if biased:
        sentences.append(f"Biased, by |E estimate - mean| / |mean|: {_ranked(biased)}.")
    quality = next((method.quality for method in summary.methods if method.quality is not None), None)
    if quality is not None:
        name = summary.configuration.task.quality
        sentences.append(f"Plain SGD itself ends at a mean {name} of {quality_text(quality.mean)}.")
    return tuple(sentences)


def _ranked(values: Sequence[tuple[float, MethodSummary]]) -> str:
    ordered = sorted(values, key=lambda pair: pair[0])
    return ", ".join(f"{method.method.label} {significant(value)}" for value, method in ordered)


def _bytes_finding(there: Sequence[MethodSummary], target: str) -> str:
    race = _Race.of(there, lambda method: method.bytes_to_target)
    start = f"{race.winner.method.label} reaches {target} in the fewest bytes, {human_bytes(race.best)} per worker"
    return f"{start}{race.lead('fewer')}{race.unsettled}."


def _seconds_finding(there: Sequence[MethodSummary], clock: Clock) -> str:
    race = _Race.of(there, lambda method: method.seconds_to_target[clock.name])
    start = f"On {clock.label}, {race.winner.method.label} is first to the target, after {significant(race.best)} s"
    return f"{start}{race.lead('faster')}{race.unsettled}."


@dataclass(frozen=True)
class _Race:
    """The methods that reach the target on every seed, in the order of one cost."""

    ranked: tuple[tuple[float, MethodSummary], ...]
    overlapping: tuple[MethodSummary, ...]

    @classmethod
    def of(cls, there: Sequence[MethodSummary], cost: Callable[[MethodSummary], Crossing]) -> "_Race":
        means = [(mean, method) for method in there if (mean := cost(method).mean) is not None]
        ranked = tuple(sorted(means, key=lambda pair: pair[0]))
        winner = ranked[0][1]
        return cls(ranked, tuple(method for _, method in ranked[1:] if cost(winner).overlaps(cost(method))))

    @property
    def winner(self) -> MethodSummary:
        return self.ranked[0][1]

    @property
    def best(self) -> float:
        return self.ranked[0][0]

    def lead(self, ahead: str) -> str:
        """The winner against the best method of the other kind: those that send less than bf16 does, and the rest."""
        if self.best == 0:  # met before the first step, or by a world of one, which sends nothing
            return ""
        compresses = self.winner.saves_bytes
        rival = next(((mean, method) for mean, method in self.ranked if method.saves_bytes != compresses), None)
        if compresses:
            return f", {times_text(rival[0] / self.best)} {ahead} than {rival[1].method.label}" if rival else ""
        if rival is None:
            return "; no method that sends less than bf16 gets there on every seed"
        needs = f"{rival[1].method.label}, the best that does, needs {times_text(rival[0] / self.best)} as much"
        return f"; sending less than bf16 does not pay: {needs}"

    @property
    def unsettled(self) -> str:
        """Whom the seeds do not tell apart from the winner."""
        names = ", ".join(method.method.label for method in self.overlapping)
        return f"; the seeds do not separate {self.winner.method.label} from {names}" if names else ""


def _best_without_target(summary: Summary) -> str:
    steps, task = summary.configuration.steps, summary.configuration.task
    missed = f"No method reaches {target_text(summary)} on every seed within {steps} steps"
    ended = [(method.quality.mean, method) for method in summary.methods if method.quality is not None]
    if not ended:
        return f"{missed}, and no run finished."
    best, method = sorted(ended, key=lambda pair: pair[0], reverse=task.higher_is_better)[0]
    sent = human_bytes(method.link.both) if method.link else MISSING
    return f"{missed}; the best final mean is {quality_text(best)}, by {method.method.label} at {sent} a step."
