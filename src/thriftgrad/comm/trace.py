"""Timelines of who computed and who communicated when: as a link would have it, and as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

from thriftgrad.comm.link import LinkModel
from thriftgrad.comm.rounds import Round


@dataclass(frozen=True)
class Span:
    """One worker busy with one thing, in a row of its own where several are at once."""

    rank: int
    kind: Literal["compute", "communicate", "backward", "exposed", "encode", "decode"]
    label: str
    start_seconds: float
    duration_seconds: float
    row: int = 0


class Trace:
    """Lays the rounds end to end on a clock; pass it as ``observe``.

    Computation takes the seconds measured here (times the worker's slowdown on the link). Communication takes
    the modelled seconds of ``link``, or without one the seconds waited on the real group. A collective
    begins when the last worker asks for it. ``seconds`` is the clock.
    """

    def __init__(self, link: LinkModel | None = None) -> None:
        self.link = link
        self.seconds = 0.0
        self.compute_seconds = 0.0
        self.communicate_seconds = 0.0
        self.spans: list[Span] = []

    def __call__(self, finished: Round) -> None:
        slowdown = self.link.slowdown_of if self.link else lambda rank: 1.0
        computed = {rank: seconds * slowdown(rank) for rank, seconds in finished.compute_seconds.items()}
        for rank, seconds in computed.items():
            self.spans.append(Span(rank, "compute", f"before {finished.kind}", self.seconds, seconds))
        longest = max(computed.values(), default=0.0)
        flight = self.link.seconds(finished) if self.link else finished.waited_seconds or 0.0
        for rank in finished.traffic:
            self.spans.append(Span(rank, "communicate", finished.kind, self.seconds + longest, flight))
        self.compute_seconds += longest
        self.communicate_seconds += flight
        self.seconds += longest + flight

    def save(self, path: str | Path) -> None:
        """Write a Chrome trace (open it in chrome://tracing or Perfetto): one row per worker."""
        _write(path, [_event(span, 0, span.rank) for span in self.spans])


BACKWARD, CODEC, FLIGHTS = range(3)  # rows


class Timeline:
    """What one rank really did when; pass it as ``observe`` to ``run`` or ``Lane``.

    The spans stand in rows: backward passes and what they waited for; what was computed for the exchange; and as many
    rows as were needed for what was in flight at once. A request that was computed and not yet in flight was held
    until its turn. Time 0 is when this was made.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.spans: list[Span] = []
        self.steps = 0
        self.backward_seconds = self.hidden_seconds = self.exposed_seconds = 0.0
        self._origin = perf_counter()
        self._first: int | None = None  # number of this step's first worker
        self._flights: list[float] = []  # when each of their rows is free again

    def __call__(self, finished: Round) -> None:
        moments = finished.moments
        if moments is None:
            raise ValueError("Timeline: a simulation has no times of its own; use Trace(link).")
        if self._first is None:
            self._first = moments.worker
        who = f"bucket {moments.worker - self._first}"
        if finished.kind == "end":
            self._add("decode", f"{who}: decode", moments.began, moments.asked, CODEC)
            return
        self._add("encode", f"{who}: before {finished.kind}", moments.began, moments.asked, CODEC)
        row = next((i for i, free in enumerate(self._flights) if free <= moments.issued), len(self._flights))
        self._flights[row : row + 1] = [moments.landed]
        self._add("communicate", f"{who}: {finished.kind}", moments.issued, moments.landed, FLIGHTS + row)

    def end_step(self, began: float, handed_over: float, ended: float, hidden_seconds: float) -> None:
        """A backward pass began, handed over its last bucket and had all estimates, on the clock of ``perf_counter``.

        ``hidden_seconds``: for how long something was in flight meanwhile.
        """
        self._add("backward", f"step {self.steps}: backward", began, handed_over, BACKWARD)
        self._add("exposed", f"step {self.steps}: waiting", handed_over, ended, BACKWARD)
        self.steps += 1
        self.backward_seconds += handed_over - began
        self.exposed_seconds += ended - handed_over
        self.hidden_seconds += hidden_seconds
        self._first = None

    def summary(self) -> str:
        """One line: how long a step computed and how much of its communication that hid."""
        if not self.steps:
            return "no step was traced"
        backward, hidden, exposed = (
            1e3 * seconds / self.steps for seconds in (self.backward_seconds, self.hidden_seconds, self.exposed_seconds)
        )
        both = hidden + exposed
        share = f" ({hidden / both:.0%} hidden)" if both else ""
        return (
            f"{self.steps} steps; per step {backward:.2f} ms of backward, {hidden:.2f} ms of communication hidden "
            f"behind it, {exposed:.2f} ms exposed{share}"
        )

    def save(self, path: str | Path) -> None:
        """Write a Chrome trace, the summary with it (open it in chrome://tracing or Perfetto)."""
        names = {BACKWARD: "backward", CODEC: "encode, decode"}
        names |= {FLIGHTS + i: f"in flight, {i + 1}" for i in range(len(self._flights))}
        _write(path, [_event(span, span.rank, span.row) for span in self.spans], names, self.rank, self.summary())

    def _add(
        self,
        kind: Literal["communicate", "backward", "exposed", "encode", "decode"],
        label: str,
        start: float,
        end: float,
        row: int,
    ) -> None:
        self.spans.append(Span(self.rank, kind, label, start - self._origin, end - start, row))


def _event(span: Span, process: int, thread: int) -> dict[str, object]:
    return {
        "name": span.label,
        "cat": span.kind,
        "ph": "X",
        "ts": 1e6 * span.start_seconds,
        "dur": 1e6 * span.duration_seconds,
        "pid": process,
        "tid": thread,
    }


def _write(
    path: str | Path,
    events: Iterable[dict[str, object]],
    rows: Mapping[int, str] | None = None,
    process: int = 0,
    summary: str = "",
) -> None:
    named = [
        {"name": "thread_name", "ph": "M", "pid": process, "tid": row, "args": {"name": name}}
        for row, name in (rows or {}).items()
    ]
    Path(path).write_text(json.dumps({"traceEvents": [*named, *events], "otherData": {"summary": summary}}))
