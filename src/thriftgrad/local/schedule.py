"""Schedules: at which steps a worker synchronises, as values that print, compare and need no state of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Key
from thriftgrad.core.compressor import Expression


@dataclass(frozen=True, repr=False)
class Schedule(Expression, ABC):
    """The sync set I_T of each worker. Steps count from 1; a worker takes its local step first, then synchronises.

    A function of step and rank alone, so a checkpoint needs the step and nothing else.

    ``common``       all workers synchronise at the same steps, as aggregators need it.
    ``parts``        into how many parts the model is divided, each with steps of its own.
    ``delay_steps``  steps between a part's exchange and the use of its result.
    ``kept``         the share of the local model that is kept when a result arrives.
    """

    @property
    def common(self) -> bool:
        return True

    @property
    def parts(self) -> int:
        return 1

    @property
    def delay_steps(self) -> int:
        return 0

    @property
    def kept(self) -> float:
        return 0.0

    @abstractmethod
    def due(self, step: int, rank: int = 0) -> bool:
        """Whether this worker synchronises after its local step number ``step``."""

    @abstractmethod
    def gap(self) -> int:
        """The most local steps between two syncs of a worker, and before its first: the paper's gap(I_T) <= H."""

    def starting(self, step: int, rank: int = 0) -> tuple[int, ...]:
        """The parts of the model whose exchange begins after this step."""
        return (0,) if self.due(step, rank) else ()

    def check(self, world: int) -> None:
        """``ValueError`` if it does not suit so many workers."""


@dataclass(frozen=True, repr=False)
class Every(Schedule):
    """Every ``h`` steps: at those with step = offset modulo h. ``Every(8, offset=1)``: 1, 9, 17 ...

    Raises ``ValueError`` for h below 1 or an offset outside [0, h).

    >>> [step for step in range(1, 20) if Every(8, offset=1).due(step)]
    [1, 9, 17]
    """

    h: int
    offset: int = 0

    def __post_init__(self) -> None:
        _check_h("Every", self.h)
        check_integer("Every", "offset", self.offset)
        if not 0 <= self.offset < self.h:
            raise ValueError(f"Every: the offset must lie in [0, h) = [0, {self.h}), got {self.offset}.")

    def due(self, step: int, rank: int = 0) -> bool:
        return step % self.h == self.offset

    def gap(self) -> int:
        return self.h


@dataclass(frozen=True, repr=False)
class At(Schedule):
    """At the given steps and no others; what follows the last one stays local.

    Raises ``ValueError`` if there are none, or they are not ascending from 1 on.

    >>> At((2, 4, 9)).gap()
    5
    """

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, Iterable):
            raise TypeError(f"At: steps are several numbers, as in At((2, 4)), got {self.steps!r}.")
        object.__setattr__(self, "steps", tuple(self.steps))
        for step in self.steps:
            check_integer("At", "a step", step)
        if not self.steps:
            raise ValueError("At: no steps given, so the workers would never synchronise; name one at least.")
        if not all(a < b for a, b in pairwise((0, *self.steps))):
            raise ValueError(f"At: steps must ascend and start from 1, got {self.steps}.")

    def due(self, step: int, rank: int = 0) -> bool:
        at = bisect_left(self.steps, step)
        return at < len(self.steps) and self.steps[at] == step

    def gap(self) -> int:
        return max(b - a for a, b in pairwise((0, *self.steps)))


@dataclass(frozen=True, repr=False)
class RandomGaps(Schedule):
    """Each worker on its own: after a sync it draws the next gap uniformly from 1 ... h.

    Drawn from (seed, rank, number of the gap), so a restarted worker goes on with the same gaps. For an
    ``AsyncServer``: workers synchronise at different steps. Raises ``ValueError`` for h below 1 or a seed outside
    [0, 2**64). The asynchronous experiments of Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367, as recalled.
    """

    h: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_h("RandomGaps", self.h)
        Key(self.seed)

    @property
    def common(self) -> bool:
        return False

    def due(self, step: int, rank: int = 0) -> bool:
        steps = _drawn(self.h, self.seed, rank)
        while steps[-1] < step:
            draw = Key(self.seed).fold("gap", len(steps)).private(rank).seed
            steps.append(steps[-1] + 1 + draw % self.h)
        return step > 0 and steps[bisect_left(steps, step)] == step

    def gap(self) -> int:
        return self.h


@cache
def _drawn(h: int, seed: int, rank: int) -> list[int]:
    """The sync steps drawn so far, from 0 on: only to draw none twice."""
    return [0]


@dataclass(frozen=True, repr=False)
class PostLocal(Schedule):
    """At every step up to ``switch``, every ``h`` steps from there on.

    Raises ``ValueError`` for h or a switch below 1. Lin et al., Don't Use Large Mini-Batches, Use Local SGD, ICLR
    2020, arXiv:1808.07217, which switches at the first drop of the learning rate.

    >>> [step for step in range(1, 12) if PostLocal(switch=3, h=4).due(step)]
    [1, 2, 3, 7, 11]
    """

    switch: int
    h: int

    def __post_init__(self) -> None:
        _check_h("PostLocal", self.h)
        check_integer("PostLocal", "switch", self.switch)
        if self.switch < 1:
            raise ValueError(f"PostLocal: the switch must come after step 1 or later, got {self.switch}; use Every.")

    def due(self, step: int, rank: int = 0) -> bool:
        return 1 <= step <= self.switch or (step > self.switch and (step - self.switch) % self.h == 0)

    def gap(self) -> int:
        return self.h


@dataclass(frozen=True, repr=False)
class PerWorker(Schedule):
    """A schedule for each worker, in the order of ranks: a slow worker, say. For an ``AsyncServer``.

    Raises ``ValueError`` for no schedules, or another number of workers; ``TypeError`` for one that is no schedule or
    divides the model.

    >>> PerWorker((Every(8), Every(8), Every(32))).gap()
    32
    """

    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, Iterable):
            raise TypeError(f"PerWorker: schedules are several, as in PerWorker((Every(8),)), got {self.schedules!r}.")
        object.__setattr__(self, "schedules", tuple(self.schedules))
        if not self.schedules:
            raise ValueError("PerWorker: no schedules given; name one for each worker.")
        for each in self.schedules:
            whole = isinstance(each, Schedule) and not (each.parts > 1 or each.delay_steps or each.kept)
            if not whole or isinstance(each, PerWorker):
                raise TypeError(f"PerWorker needs schedules of the whole model, such as Every(8), got {each!r}.")

    @property
    def common(self) -> bool:
        return False

    def due(self, step: int, rank: int = 0) -> bool:
        return self.schedules[rank].due(step, rank)

    def gap(self) -> int:
        return max(each.gap() for each in self.schedules)

    def check(self, world: int) -> None:
        if len(self.schedules) != world:
            raise ValueError(f"PerWorker: {len(self.schedules)} schedules for {world} workers; give one for each.")


@dataclass(frozen=True, repr=False)
class Streaming(Schedule):
    """One of ``fragments`` parts of the model every h / fragments steps, so each part every ``h`` steps.

    Part p's result is used after the steps (p + 1) h / fragments, again every h; its exchange begins ``delay`` steps
    earlier and may run beside the local steps between. Then the local model becomes
    (1 - mixing) global + mixing local. Parts are made of whole modules, in turn.

    Raises ``ValueError`` for h that is no multiple of ``fragments``, fewer than one, a delay outside [0, h / fragments)
    or mixing outside [0, 1). Douillard et al., Streaming DiLoCo, 2025, arXiv:2501.18512.

    >>> schedule = Streaming(h=8, fragments=2, delay=1)
    >>> {step: schedule.starting(step) for step in range(1, 10) if schedule.due(step)}
    {3: (0,), 7: (1,)}
    """

    h: int
    fragments: int
    delay: int = 0
    mixing: float = 0.0

    def __post_init__(self) -> None:
        _check_h("Streaming", self.h)
        check_integer("Streaming", "fragments", self.fragments)
        check_integer("Streaming", "delay", self.delay)
        if self.fragments < 1 or self.h % self.fragments:
            raise ValueError(
                f"Streaming: h must be a multiple of the number of fragments, got h={self.h} and "
                f"fragments={self.fragments}."
            )
        if not 0 <= self.delay < self.h // self.fragments:
            raise ValueError(
                f"Streaming: the delay must lie in [0, h / fragments) = [0, {self.h // self.fragments}), "
                f"got {self.delay}."
            )
        if not 0 <= self.mixing < 1:
            raise ValueError(f"Streaming: mixing must lie in [0, 1), got {self.mixing}.")

    @property
    def parts(self) -> int:
        return self.fragments

    @property
    def delay_steps(self) -> int:
        return self.delay

    @property
    def kept(self) -> float:
        return self.mixing

    def due(self, step: int, rank: int = 0) -> bool:
        return bool(self.starting(step, rank))

    def starting(self, step: int, rank: int = 0) -> tuple[int, ...]:
        each = self.h // self.fragments
        whole, rest = divmod(step + self.delay, each)
        return ((whole - 1) % self.fragments,) if whole and not rest else ()

    def gap(self) -> int:
        return self.h


def split(names: Sequence[str], parts: int) -> list[list[int]]:
    """The positions of the tensors of each part: modules stay whole and are dealt out in turn.

    Raises ``ValueError`` for fewer modules than parts.

    >>> split(["0.weight", "0.bias", "2.weight", "4.weight"], 2)
    [[0, 1, 3], [2]]
    """
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if len(modules) < parts:
        raise ValueError(f"Streaming: a model of {len(modules)} modules cannot be divided into {parts} fragments.")
    part = {module: i % parts for i, module in enumerate(modules)}
    owners = [part[name.rpartition(".")[0]] for name in names]
    return [[i for i, owner in enumerate(owners) if owner == each] for each in range(parts)]


def _check_h(owner: str, h: int) -> None:
    if type(h) is not int or h < 1:
        raise ValueError(f"{owner}: h, the steps between two syncs, must be an integer of at least 1, got {h!r}.")
