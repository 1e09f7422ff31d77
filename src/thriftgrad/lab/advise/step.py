"""The model of one training step: backward pass, and encoding, flight and decoding of each DDP bucket beside it.

Three things go on at once, each in its own order: the backward pass; a communication thread that encodes and decodes;
and the link, which carries one collective after another. All want the worker's processors, which share themselves out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


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


def step_seconds(compute: Compute, ways: Sequence[Way], lanes: float, in_turn: bool = False) -> float:
    """How long a step lasts.

    The communication thread computes what has become possible first, and what is computed first flies first; or, with
    ``in_turn``, in the order of ``comm.Lane``: round i of DDP bucket j in turn i + j, in a turn a bucket's first round
    before the others. ``lanes``: how many computations of a worker run at full speed side by side, a fraction where
    workers share processors.

    >>> one = Way(ready_seconds=2.0, rounds=((0.5, Flight(3.0)),), decode_seconds=0.25)
    >>> step_seconds(Compute(1.0, 2.0), [one], lanes=1)  # all of it after the backward pass
    6.75
    """
    run = _Run(compute.backward_seconds, ways, in_turn)
    seconds = compute.forward_seconds / min(1.0, lanes)
    while run.start():
        seconds += run.advance(lanes)
    return seconds


Task = tuple[int, int]
"""A DDP bucket and which of its rounds."""


class _Run:
    """A step on its way. Of each of the three that go on: seconds left of what it does now, 0 where it does nothing."""

    def __init__(self, backward_seconds: float, ways: Sequence[Way], in_turn: bool) -> None:
        self._ways = ways
        self._stops = sorted({*(way.ready_seconds for way in ways), backward_seconds})  # of the backward pass
        self._passed = 0.0
        self._thread = self._flying = 0.0
        self._task: Task | None = None
        self._queue: deque[Task] = deque()  # for the thread, in the order in which they became possible
        every = [(at, number) for at, way in enumerate(ways) for number in range(len(way.rounds))]
        every.sort(key=lambda task: (sum(task), task[1] > 0, task[0]))
        self._turns = deque(every if in_turn else ())  # of the flights to come
        self._computed: list[Task] = []  # whose flight may begin
        self._flight: Task | None = None
        self._became_ready()

    def start(self) -> bool:
        """Give the thread and the link what they may begin; False at the end of the step."""
        while self._task is None and self._queue:
            bucket, number = self._task = self._queue.popleft()
            rounds = self._ways[bucket].rounds
            self._thread = rounds[number][0] if number < len(rounds) else self._ways[bucket].decode_seconds
            if not self._thread:
                self._has_computed()
        if self._flight is None and self._computed and (not self._turns or self._turns[0] in self._computed):
            self._flight = self._turns.popleft() if self._turns else self._computed[0]
            self._computed.remove(self._flight)
            self._flying = self._flight_of(self._flight).seconds
            if not self._flying:
                self._has_flown()
                return self.start()
        return bool(self._stops or self._thread or self._flying)

    def advance(self, lanes: float) -> float:
        """Go on to the next moment at which something ends; the seconds until then."""
        stop = self._stops[0] - self._passed if self._stops else 0.0
        left = [stop, self._thread, self._flying]
        wants = [1.0, 1.0, self._flight_of(self._flight).busy if self._flight else 0.0]
        speeds = fair([want if each else 0.0 for want, each in zip(wants, left, strict=True)], lanes)
        ends = [each / speed for each, speed in zip(left, speeds, strict=True)]
        seconds = min(end for each, end in zip(left, ends, strict=True) if each)
        stop, self._thread, self._flying = (
            0.0 if end <= seconds else each - speed * seconds
            for each, end, speed in zip(left, ends, speeds, strict=True)
        )
        if left[0]:
            self._passed = self._stops[0] - stop
            if not stop:
                self._became_ready()
        if left[1] and not self._thread:
            self._has_computed()
        if left[2] and not self._flying:
            self._has_flown()
        return seconds

    def _flight_of(self, task: Task) -> Flight:
        bucket, number = task
        return self._ways[bucket].rounds[number][1]

    def _became_ready(self) -> None:
        """The backward pass has come to a stop, or begins."""
        self._queue += [(at, 0) for at, way in enumerate(self._ways) if way.ready_seconds == self._passed]
        self._stops = [each for each in self._stops if each > self._passed]

    def _has_computed(self) -> None:
        assert self._task is not None
        bucket, number = self._task
        if number < len(self._ways[bucket].rounds):
            self._computed.append(self._task)
        self._task = None

    def _has_flown(self) -> None:
        assert self._flight is not None
        bucket, number = self._flight
        self._flight = None
        self._queue.append((bucket, number + 1))


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
