"""What each method of a comparison reached and what it cost; needs no torch.

``load`` reads the records, ``summarise`` turns them into numbers, ``table.py`` words them and ``report.py`` draws them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, stdev

from thriftgrad.lab.load import Configuration, Evaluation, Method, RecordsError, Run, Status, Task, Traffic, load

__all__ = ["Crossing", "MethodSummary", "RecordsError", "Spread", "Summary", "load", "read_summary", "summarise"]


@dataclass(frozen=True)
class Spread:
    """Mean, extremes and sample standard deviation over seeds; one seed has no deviation."""

    mean: float
    low: float
    high: float
    std: float | None


@dataclass(frozen=True)
class Crossing:
    """What each seed had spent at the first evaluation that met the target; None where none did.

    >>> Crossing((120.0, 140.0)).mean, Crossing((120.0, None)).mean, Crossing((120.0, None)).reached
    (130.0, None, 1)
    """

    values: tuple[float | None, ...]

    @property
    def reached(self) -> int:
        """How many seeds met the target."""
        return len(self._met)

    @property
    def mean(self) -> float | None:
        """Mean over seeds, only if every seed met the target: leaving out the slow ones would flatter."""
        return fmean(self._met) if len(self._met) == len(self.values) else None

    def overlaps(self, other: "Crossing") -> bool:
        """Whether the ranges over seeds of two crossings, each met by every seed, share a value."""
        return min(self._met) <= max(other._met) and min(other._met) <= max(self._met)

    @property
    def _met(self) -> list[float]:
        return [value for value in self.values if value is not None]


@dataclass(frozen=True)
class Means:
    """Means over evaluations of what ``distortion.py`` measures; None where no evaluation measured it.

    ``bias`` is the length of the bias without the draws' noise: sqrt(mean(bias^2 - bias_floor^2)), 0 where that is
    negative. ``bias_floor`` is the noise itself, in the root mean square. ``biased``: whether the bias stands out,
    above half the noise or, over eight evaluations or more, by four standard errors of the squares' mean.
    """

    relative_error: float | None
    variance: float | None
    coordinate_variance: float | None
    bias: float | None
    bias_floor: float | None
    cosine: float | None
    bits_per_coordinate: float | None
    symbol_width_bits: float | None
    symbol_entropy_bits: float | None
    biased: bool


def means(evaluations: Sequence[Evaluation]) -> Means:
    """The means over these evaluations, of any seeds and steps."""

    def mean(of: Callable[[Evaluation], float | None]) -> float | None:
        measured = [value for at in evaluations if (value := of(at)) is not None]
        return fmean(measured) if measured else None

    pairs = [(at.bias, at.bias_floor) for at in evaluations if at.bias is not None and at.bias_floor is not None]
    squares = [bias**2 - floor**2 for bias, floor in pairs]
    bias = sqrt(max(0.0, fmean(squares))) if squares else None
    floor = sqrt(fmean(floor**2 for _, floor in pairs)) if pairs else None
    chance = 4 * stdev(squares) / sqrt(len(squares)) if len(squares) >= 8 else inf
    return Means(
        relative_error=mean(lambda at: at.relative_error),
        variance=mean(lambda at: at.variance),
        coordinate_variance=mean(lambda at: at.coordinate_variance),
        bias=bias,
        bias_floor=floor,
        cosine=mean(lambda at: at.cosine),
        bits_per_coordinate=mean(lambda at: at.bits_per_coordinate),
        symbol_width_bits=mean(lambda at: at.symbol_width_bits),
        symbol_entropy_bits=mean(lambda at: at.symbol_entropy_bits),
        # Sums of float32 leave 1e-7 of their length behind.
        biased=bias is not None and floor is not None and bias > 1e-6 and (bias > floor / 2 or bias**2 > chance),
    )


@dataclass(frozen=True)
class MethodSummary:
    """What one method reached and what it cost, over its seeds.

    ``quality`` is taken at the last evaluation of the finished runs alone; ``diverged`` and ``unfinished`` name the
    seeds left out. Costs per step are means over all runs that advanced, ``means`` over all their evaluations.
    Crossings keep the order of ``runs``.
    """

    method: Method
    runs: tuple[Run, ...]
    quality: Spread | None
    link: Traffic | None
    payload: Traffic | None
    times_less_than_fp32: float | None
    times_less_than_bf16: float | None
    steps_to_target: Crossing
    bytes_to_target: Crossing
    seconds_to_target: Mapping[str, Crossing]
    compute_seconds: float | None
    encode_seconds: float | None
    decode_seconds: float | None
    means: Means

    def seeds(self, status: Status) -> tuple[int, ...]:
        """The seeds whose run ended in this way."""
        return tuple(run.seed for run in self.runs if run.status == status)

    @property
    def saves_bytes(self) -> bool:
        """Whether a step moves fewer link bytes than a bf16 ring all-reduce; 2 % is left for headers and padding."""
        return self.times_less_than_bf16 is not None and self.times_less_than_bf16 > 1.02


@dataclass(frozen=True)
class Summary:
    """A whole comparison: its configuration and one summary per method, in the order they were asked for."""

    configuration: Configuration
    methods: tuple[MethodSummary, ...]

    @property
    def on_sgd(self) -> bool:
        """Whether plain SGD trained and the methods looked on."""
        return self.configuration.protocol == "on-sgd"

    @property
    def in_lab(self) -> bool:
        """Whether the workers were real processes behind shaped links, with seconds that were measured."""
        return self.configuration.mode == "lab"


def read_summary(directory: Path) -> Summary:
    """Load a comparison directory and summarise it; raises RecordsError as ``load`` does."""
    return summarise(*load(directory))


def summarise(configuration: Configuration, runs: Iterable[Run]) -> Summary:
    """Work out every number of the comparison; the order of ``runs`` does not matter."""
    ordered = sorted(runs, key=lambda run: run.seed)
    return Summary(
        configuration,
        tuple(
            _summarise_method(configuration, method, tuple(run for run in ordered if run.method == method.slug))
            for method in configuration.methods
        ),
    )


def _summarise_method(configuration: Configuration, method: Method, runs: tuple[Run, ...]) -> MethodSummary:
    link = _traffic(runs, lambda at: at.up_bytes, lambda at: at.down_bytes)
    finals = [run.evaluations[-1].quality for run in runs if run.status == "finished"]
    reached = [_first_at_target(run, configuration.task) for run in runs]

    def crossing(cost: Callable[[Evaluation], float]) -> Crossing:
        return Crossing(tuple(None if at is None else cost(at) for at in reached))

    return MethodSummary(
        method=method,
        runs=runs,
        quality=_spread([quality for quality in finals if quality is not None]),
        link=link,
        payload=_traffic(runs, lambda at: at.payload_up_bytes, lambda at: at.payload_down_bytes),
        times_less_than_fp32=_times_less(link, configuration.baseline_bytes.fp32),
        times_less_than_bf16=_times_less(link, configuration.baseline_bytes.bf16),
        steps_to_target=crossing(lambda at: at.step),
        bytes_to_target=crossing(lambda at: at.bytes_both),
        seconds_to_target={
            clock.name: crossing(lambda at, link=clock.link: at.seconds(link))  # type: ignore[misc]
            for clock in configuration.clocks
        },
        compute_seconds=_per_step(runs, lambda at: at.compute_seconds),
        encode_seconds=_per_step(runs, lambda at: at.encode_seconds),
        decode_seconds=_per_step(runs, lambda at: at.decode_seconds),
        means=means([at for run in runs for at in run.evaluations]),
    )


def _first_at_target(run: Run, task: Task) -> Evaluation | None:
    return next((at for at in run.evaluations if task.meets(at.quality)), None)


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(fmean(values), min(values), max(values), stdev(values) if len(values) > 1 else None)


def _per_step(runs: Iterable[Run], total: Callable[[Evaluation], float]) -> float | None:
    last = [run.evaluations[-1] for run in runs if run.evaluations]
    rates = [total(at) / at.step for at in last if at.step > 0]
    return fmean(rates) if rates else None


def _traffic(
    runs: Iterable[Run], up: Callable[[Evaluation], float], down: Callable[[Evaluation], float]
) -> Traffic | None:
    up_bytes, down_bytes = _per_step(runs, up), _per_step(runs, down)
    return None if up_bytes is None or down_bytes is None else Traffic(up_bytes, down_bytes)


def _times_less(link: Traffic | None, baseline: Traffic) -> float | None:
    # A world of one moves nothing either way, and a ratio to nothing says nothing.
    return None if link is None or link.both == 0 or baseline.both == 0 else baseline.both / link.both
