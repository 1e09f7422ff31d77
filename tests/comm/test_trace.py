"""The timeline: rounds end to end, computation measured, communication modelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from thriftgrad import LinkModel, simulate
from thriftgrad.comm import Round, Trace, Traffic, all_reduce

BOOK = Traffic(0, 0, 10**6, 10**6, 1)


def test_rounds_lie_end_to_end() -> None:
    trace = Trace(LinkModel(8e6, latency_seconds=0.5, slowdown=(1.0, 3.0)))
    trace(Round("AllReduce", 2, {0: BOOK, 1: BOOK}, {0: 1.0, 1: 2.0}))
    # Worker 1 computes three times slower: 6 s, then its megabyte takes 0.5 + 3 s.
    assert trace.compute_seconds == pytest.approx(6.0)
    assert trace.communicate_seconds == pytest.approx(3.5)
    trace(Round("end", 2, {}, {0: 1.0, 1: 0.0}))
    assert trace.seconds == pytest.approx(10.5)
    spans = [(s.rank, s.kind, s.label, s.start_seconds, s.duration_seconds) for s in trace.spans]
    assert spans == [
        (0, "compute", "before AllReduce", 0.0, 1.0),
        (1, "compute", "before AllReduce", 0.0, 6.0),
        (0, "communicate", "AllReduce", 6.0, 3.5),
        (1, "communicate", "AllReduce", 6.0, 3.5),
        (0, "compute", "before end", 9.5, 1.0),
        (1, "compute", "before end", 9.5, 0.0),
    ]


def test_without_a_link_the_seconds_waited_count() -> None:
    trace = Trace()
    trace(Round("AllReduce", 2, {0: BOOK}, {0: 1.0}, waited_seconds=0.25))
    trace(Round("AllReduce", 2, {0: BOOK}, {0: 1.0}))
    assert trace.seconds == pytest.approx(2.25)
    assert trace.communicate_seconds == pytest.approx(0.25)


def test_a_simulation_is_traced_and_saved(tmp_path: Path) -> None:
    trace = Trace(LinkModel(8e6))
    simulate([all_reduce(torch.ones(250_000)) for _ in range(2)], trace)
    assert trace.communicate_seconds == pytest.approx(1.0)
    assert trace.seconds == pytest.approx(trace.compute_seconds + 1.0)
    path = tmp_path / "trace.json"
    trace.save(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert len(events) == len(trace.spans) == 6
    sent = [event for event in events if event["cat"] == "communicate"]
    assert [(event["tid"], event["name"], event["ph"], event["dur"]) for event in sent] == [
        (0, "AllReduce", "X", pytest.approx(1e6)),
        (1, "AllReduce", "X", pytest.approx(1e6)),
    ]
