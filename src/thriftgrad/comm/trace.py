"""A timeline of who computed and who communicated when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thriftgrad.comm.link import LinkModel
from thriftgrad.comm.rounds import Round


@dataclass(frozen=True)
class Span:
    """One worker busy with one thing."""

    rank: int
    kind: Literal["compute", "communicate"]
    label: str
    start_seconds: float
    duration_seconds: float


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
        events = [
            {
                "name": span.label,
                "cat": span.kind,
                "ph": "X",
                "ts": 1e6 * span.start_seconds,
                "dur": 1e6 * span.duration_seconds,
                "pid": 0,
                "tid": span.rank,
            }
            for span in self.spans
        ]
        Path(path).write_text(json.dumps({"traceEvents": events}))
