"""The asynchronous server: applies what workers send, when it comes, and answers each with what it lacks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from thriftgrad.core import Key, PayloadError, all_finite
from thriftgrad.local.letters import FRESH, Change, Reply, Verdict, changes_nbytes, read_push, write_reply
from thriftgrad.local.method import LocalMethod
from thriftgrad.local.terms import Terms, compressed, moved


class Visit(NamedTuple):
    """A worker's last letter: the version it holds, what became of its push, and the version that push made."""

    holds: int
    verdict: Verdict
    made: int | None = None


@dataclass
class Tally:
    """What one worker has brought: how many pushes met which verdict, and how many changes old the applied were."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)

    @property
    def applied(self) -> int:
        return self.verdicts[Verdict.APPLIED]

    @property
    def mean_staleness(self) -> float:
        """NaN if nothing was applied."""
        counted = self.staleness.total()
        return sum(age * n for age, n in self.staleness.items()) / counted if counted else float("nan")


class Hub:
    """The server's side of Algorithm 2, without a network: x <- x - (1/R) sum of the q_r that came.

    ``receive`` letters of any workers, ``commit`` them as one change, then ``reply`` to each. R is the number of all
    workers, not of those that came, so x minus the virtual model of all gradients is what the workers still owe. With a
    ``down`` the change is compressed once, and the server takes the step that it sends. Changes are kept for workers
    that lag behind, for as long as they are shorter than a dense copy.

    Neither a damaged push nor one that is not finite changes anything here.

    Raises ``TypeError`` for a method without an ``AsyncServer``; ``ValueError`` for fewer than one worker, a schedule
    for another number of workers, or buffers to be averaged.
    Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367, Algorithm 2; with ``down`` as in Tang et al., DoubleSqueeze,
    2019, arXiv:1905.05957.
    """

    def __init__(
        self,
        method: LocalMethod,
        parameters: Mapping[str, Tensor],
        workers: int,
        seed: int = 0,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.method, self.workers, self.seed = method, workers, seed
        self.terms = Terms(method, parameters, workers, buffers or {})
        self.version = 0
        self.tallies = [Tally() for _ in range(workers)]
        self.down = tuple(state.inner for state in self.terms.down_states)
        self._names = list(parameters)
        self._model = self.terms.start
        self._waiting: dict[int, tuple[Tensor, list[Tensor], int]] = {}
        self._visits: dict[int, Visit] = {}
        self._log: deque[Change] = deque()  # the last one leads to the current version

    def receive(self, rank: int, letter: Tensor) -> Verdict:
        """Read a worker's letter; its push waits for the next ``commit``.

        Raises ``PayloadError``, and changes nothing, if it is none; the worker's next reply will say so.
        """
        self._check(rank)
        self._waiting.pop(rank, None)
        try:
            push = read_push(letter, self.terms.most_push_bytes)
            if push.version > self.version and push.version != FRESH:
                raise PayloadError(f"push: measured from version {push.version}, and {self.version} is the newest.")
            values = self.terms.pushed(push.message) if push.message is not None else None
        except PayloadError:
            self._visits[rank] = Visit(FRESH, Verdict.DAMAGED)
            self.tallies[rank].verdicts[Verdict.DAMAGED] += 1
            raise
        verdict = Verdict.NOTHING
        if push.message is not None and values is not None:
            verdict = self._judged(push.version, values)
            if verdict is Verdict.APPLIED:
                self._waiting[rank] = push.message, values, self.version - push.version
            else:
                self.tallies[rank].verdicts[verdict] += 1
        self._visits[rank] = Visit(push.version, verdict)
        return verdict

    def _judged(self, version: int, values: Sequence[Tensor]) -> Verdict:
        limit = self.terms.server.max_staleness
        if version == FRESH or (limit is not None and self.version - version > limit):
            return Verdict.STALE
        return Verdict.APPLIED if all_finite(values) else Verdict.NOT_FINITE

    def commit(self) -> tuple[int, ...]:
        """Apply all that was received since the last commit, in rank order, as one change; whose it was."""
        waiting, self._waiting = dict(sorted(self._waiting.items())), {}
        if not waiting:
            return ()
        change = self.terms.mean(values for _, values, _ in waiting.values())
        messages: tuple[tuple[int, Tensor | None], ...] = tuple((rank, each[0]) for rank, each in waiting.items())
        down = self.down
        if self.terms.server.down is not None:
            message, after = compressed(self.terms.server.down, change, self.down, self._keys())
            messages, down, change = ((0, message),), tuple(after), self.terms.change([message])
        model = moved(self._model, change)
        if not all_finite(model):  # each was finite, their sum is not
            for rank in waiting:
                self._visits[rank] = self._visits[rank]._replace(verdict=Verdict.NOT_FINITE)
                self.tallies[rank].verdicts[Verdict.NOT_FINITE] += 1
            return ()
        self._model, self.down = model, down
        self.version += 1
        for rank, (_, _, age) in waiting.items():
            self._visits[rank] = self._visits[rank]._replace(made=self.version)
            self.tallies[rank].verdicts[Verdict.APPLIED] += 1
            self.tallies[rank].staleness[age] += 1
        self._log.append(Change(messages))
        # So whatever part of the log a worker needs is shorter than a dense copy.
        while self._log and changes_nbytes(list(self._log)) >= self.terms.dense_bytes:
            self._log.popleft()
        return tuple(waiting)

    def _keys(self) -> list[Key]:
        key = Key(self.seed).fold(self.version)
        return [key.fold(name, "down") for name in self._names]

    def reply(self, rank: int) -> Tensor:
        """The letter that answers this worker's last one: the verdict, and all it lacks or a dense copy."""
        self._check(rank)
        holds, verdict, made = self._visits[rank]
        missing = self.version - holds
        if 0 <= missing <= len(self._log):
            changes = list(self._log)[len(self._log) - missing :]
            if made is not None and self.terms.server.down is None:
                changes[made - holds - 1] = _without(changes[made - holds - 1], rank)
            return write_reply(Reply(verdict, self.version, None, tuple(changes)))
        return write_reply(Reply(verdict, self.version, self.terms.write_dense(self._model), ()))

    def model(self) -> dict[str, Tensor]:
        """The server's model, in float32 (float64 for such parameters)."""
        return dict(zip(self._names, self._model, strict=True))

    def restart(
        self, version: int, model: Mapping[str, Tensor], down: Sequence[object], applied: Sequence[int]
    ) -> None:
        """Go on from a checkpoint: the model, the memory of ``down``, and how many pushes of each worker are in it."""
        self.version, self.down = version, tuple(down)
        self._model = [model[name] for name in self._names]
        self.tallies = [Tally(Counter({Verdict.APPLIED: n})) for n in applied]
        self._waiting, self._visits = {}, {}
        self._log.clear()

    def _check(self, rank: int) -> None:
        if not 0 <= rank < self.workers:
            raise ValueError(f"Hub: workers are numbered from 0 to {self.workers - 1}, got rank {rank}.")


def _without(change: Change, rank: int) -> Change:
    """The change for a worker that holds its own message."""
    return Change(tuple((who, None if who == rank else message) for who, message in change.messages))
