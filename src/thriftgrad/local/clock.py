"""Algorithm 2 on the paper's common clock: those that are due meet the server at one step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter

from torch import Tensor

from thriftgrad.comm.rounds import Observer, Round, Traffic
from thriftgrad.local.caller import Caller
from thriftgrad.local.hub import Hub
from thriftgrad.local.letters import Verdict


def tick(
    hub: Hub,
    callers: Sequence[Caller],
    due: Iterable[int],
    learning_rates: Sequence[Mapping[str, float]],
    observe: Observer | None = None,
) -> dict[int, Verdict]:
    """The workers ``due`` push, the server commits once, and they pull; what became of each push.

    ``callers`` and ``learning_rates`` are those of all workers, by rank. ``observe`` is told of two rounds, of all
    pushes and of all replies, and of the seconds computed after them; the server's own are counted to those it served.
    """
    due = sorted(set(due))
    if not due:
        return {}
    pushing, serving, pulling = (dict.fromkeys(range(len(callers)), 0.0) for _ in range(3))
    letters: dict[int, Tensor] = {}
    for rank in due:
        start = perf_counter()
        letters[rank] = callers[rank].push(learning_rates[rank])
        pushing[rank] = perf_counter() - start
    start = perf_counter()
    for rank in due:
        hub.receive(rank, letters[rank])
    hub.commit()
    replies = {rank: hub.reply(rank) for rank in due}
    serving |= dict.fromkeys(due, perf_counter() - start)
    verdicts = {}
    for rank in due:
        start = perf_counter()
        verdicts[rank] = callers[rank].pull(replies[rank])
        pulling[rank] = perf_counter() - start
    if observe is not None:
        observe(round_of("Push", len(callers), letters, pushing))
        observe(round_of("Pull", len(callers), replies, serving))
        observe(Round("end", len(callers), {}, pulling))
    return verdicts


def round_of(
    kind: str, world: int, letters: Mapping[int, Tensor], seconds: dict[int, float], waited_seconds: float | None = None
) -> Round:
    """What an observer is told of letters up ("Push") or down ("Pull"), by worker: a star, one hop each."""
    traffic = {}
    for rank, letter in letters.items():
        up, down = (letter.numel(), 0) if kind == "Push" else (0, letter.numel())
        traffic[rank] = Traffic(up, down, up, down, 1)
    return Round(kind, world, traffic, seconds, waited_seconds)
