"""The model of one training step: backward pass, and encoding, flight and decoding of each DDP bucket beside it.

Three things go on at once, each in its own order: the backward pass; a communication thread that encodes and decodes;
and the link, which carries one collective after another. All want the worker's processors, which share themselves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Flight:
    """One collective: seconds where nothing else runs, and how many processors it keeps busy meanwhile."""

    seconds: float
    busy: float = 0.0


@dataclass(frozen=True)
class Way:
    """The way of one DDP bucket through an exchange.

    Its gradients are ready after ``ready_seconds`` of the backward pass; then come rounds of (seconds of computing,
    flight), and ``decode_seconds`` of computing after the last.
    """

    ready_seconds: float
    rounds: tuple[tuple[float, Flight], ...]
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Compute:
    """Seconds of one worker's forward and backward pass where nothing else runs."""

    forward_seconds: float
    backward_seconds: float

    def seconds(self, lanes: float) -> float:
        """Both, on these lanes: a step that exchanges nothing."""
        return (self.forward_seconds + self.backward_seconds) / min(1.0, lanes)


def step_seconds(compute: Compute, ways: Sequence[Way], lanes: float) -> float:
    """How long a step lasts.

    The communication thread begins a DDP bucket as soon as it is ready and the thread is free, and else takes older
    ones further in their order. ``lanes``: how many computations of a worker run at full speed side by side, a fraction
    where workers share processors.

    >>> one = Way(ready_seconds=2.0, rounds=((0.5, Flight(3.0)),), decode_seconds=0.25)
    >>> step_seconds(Compute(1.0, 2.0), [one], lanes=1)  # all of it after the backward pass
    6.75
    """
    run = _Run(compute.backward_seconds, [_Bucket(way) for way in ways])
    seconds = compute.forward_seconds / min(1.0, lanes)
    while run.start():
        seconds += run.advance(lanes)
    return seconds


@dataclass(eq=False)
class _Bucket:
    """How far a DDP bucket has come: ``done`` of its rounds have flown."""

    way: Way
    done: int = 0
    computing: float | None = None  # seconds left of what is computed now
    flying: float | None = None
    began: bool = False
    over: bool = False

    @property
    def next_compute(self) -> float:
        rounds = self.way.rounds
        return rounds[self.done][0] if self.done < len(rounds) else self.way.decode_seconds

    @property
    def flight(self) -> Flight:
        return self.way.rounds[self.done][1]


@dataclass
class _Run:
    """A step on its way."""

    backward_seconds: float
    buckets: list[_Bucket]
    passed: float = 0.0  # of the backward pass
    waiting: list[_Bucket] = field(default_factory=list)  # for the link, in the order they came to it
    computing: _Bucket | None = None

    def start(self) -> bool:
        """Give the thread and the link what they may begin; False at the end of the step."""
        while self.computing is None and (bucket := self._next()) is not None:
            bucket.began = True
            bucket.computing = bucket.next_compute
            self.computing = bucket
            self._finish_computing()
        for bucket in self.waiting[:1]:
            if bucket.flying is None:
                bucket.flying = bucket.flight.seconds
        return self.passed < self.backward_seconds or self.computing is not None or bool(self.waiting)

    def _next(self) -> _Bucket | None:
        ready = [each for each in self.buckets if not each.over and each.way.ready_seconds <= self.passed]
        free = [each for each in ready if each not in self.waiting]
        return next((each for each in free if not each.began), next(iter(free), None))

    def _finish_computing(self) -> None:
        """If nothing of it is left."""
        bucket = self.computing
        if bucket is None or bucket.computing:
            return
        self.computing = bucket.computing = None
        if bucket.done < len(bucket.way.rounds):
            self.waiting.append(bucket)
        else:
            bucket.over = True

    def advance(self, lanes: float) -> float:
        """Go on to the next moment at which something ends; the seconds until then."""
        flying = self.waiting[0] if self.waiting else None
        backward, thread, link = fair(
            [float(self.passed < self.backward_seconds), float(self.computing is not None), _busy(flying)], lanes
        )
        goals = [each.way.ready_seconds for each in self.buckets if each.way.ready_seconds > self.passed]
        goal = min([*goals, self.backward_seconds])
        ends = []
        if self.passed < self.backward_seconds:
            ends.append((goal - self.passed) / backward)
        if self.computing is not None and self.computing.computing:
            ends.append(self.computing.computing / thread)
        if flying is not None and flying.flying is not None:
            ends.append(flying.flying / link)
        seconds = min(ends)
        if self.passed < self.backward_seconds:
            left = (goal - self.passed) / backward
            self.passed = goal if left <= seconds else self.passed + seconds * backward
        if self.computing is not None and self.computing.computing:
            self.computing.computing = _less(self.computing.computing, seconds * thread)
            self._finish_computing()
        if flying is not None and flying.flying is not None:
            flying.flying = _less(flying.flying, seconds * link)
            if not flying.flying:
                flying.flying = None
                flying.done += 1
                self.waiting.pop(0)
        return seconds


def _busy(bucket: _Bucket | None) -> float:
    return bucket.flight.busy if bucket else 0.0


def _less(left: float, done: float) -> float:
    """What is left; nothing if it is rounding."""
    return left - done if left - done > 1e-12 * left else 0.0


def fair(demands: Sequence[float], lanes: float) -> list[float]:
    """The speed of each of several tasks that want so many lanes each: who wants little gets all of it.

    >>> fair([1.0, 1.0, 0.0], lanes=1)
    [0.5, 0.5, 1.0]
    >>> fair([1.0, 0.25], lanes=1)
    [0.75, 1.0]
    """
    speeds, left = [1.0] * len(demands), lanes
    order = sorted((want, at) for at, want in enumerate(demands) if want)
    for place, (want, at) in enumerate(order):
        given = min(want, left / (len(order) - place))
        speeds[at], left = given / want, left - given
    return speeds
