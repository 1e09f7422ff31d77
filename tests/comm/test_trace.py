"""Timelines: rounds end to end, communication modelled; and what really happened when."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import pytest
import torch

from thriftgrad import LinkModel, simulate
from thriftgrad.comm import Moments, Round, Timeline, Trace, Traffic, all_reduce

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


def flown(worker: int, *moments: float) -> Round:
    began, asked, issued, landed = moments
    return Round("AllGather", 2, {0: BOOK}, {0: asked - began}, landed - issued, Moments(worker, *moments))


def ended(worker: int, began: float, asked: float) -> Round:
    return Round("end", 2, {}, {0: asked - began}, moments=Moments(worker, began, asked, asked, asked))


def test_a_real_timeline_has_a_row_for_each_of_what_is_in_flight_at_once(tmp_path: Path) -> None:
    timeline, zero = Timeline(rank=1), perf_counter()
    for finished in (
        flown(3, zero + 1, zero + 2, zero + 2, zero + 6),
        flown(4, zero + 2, zero + 3, zero + 4, zero + 7),  # held for a second
        ended(3, zero + 7, zero + 8),
        flown(5, zero + 8, zero + 9, zero + 9, zero + 10),
        ended(4, zero + 9, zero + 9.5),
        ended(5, zero + 10, zero + 11),
    ):
        timeline(finished)
    timeline.end_step(zero, zero + 9, zero + 11, hidden_seconds=5.0)
    timeline(flown(6, zero + 12, zero + 13, zero + 13, zero + 14))
    timeline.end_step(zero + 12, zero + 12, zero + 15, hidden_seconds=0.0)
    offset = timeline.spans[0].start_seconds - 1
    shown = [(s.row, s.kind, s.label, round(s.start_seconds - offset, 6), s.duration_seconds) for s in timeline.spans]
    assert shown == [
        (row, kind, label, start, pytest.approx(duration, abs=1e-6))
        for row, kind, label, start, duration in [
            (1, "encode", "bucket 0: before AllGather", 1, 1),
            (2, "communicate", "bucket 0: AllGather", 2, 4),
            (1, "encode", "bucket 1: before AllGather", 2, 1),
            (3, "communicate", "bucket 1: AllGather", 4, 3),
            (1, "decode", "bucket 0: decode", 7, 1),
            (1, "encode", "bucket 2: before AllGather", 8, 1),
            (2, "communicate", "bucket 2: AllGather", 9, 1),
            (1, "decode", "bucket 1: decode", 9, 0.5),
            (1, "decode", "bucket 2: decode", 10, 1),
            (0, "backward", "step 0: backward", 0, 9),
            (0, "exposed", "step 0: waiting", 9, 2),
            (1, "encode", "bucket 0: before AllGather", 12, 1),  # of the second step
            (2, "communicate", "bucket 0: AllGather", 13, 1),
            (0, "backward", "step 1: backward", 12, 0),
            (0, "exposed", "step 1: waiting", 12, 3),
        ]
    ]
    assert timeline.summary() == (
        "2 steps; per step 4500.00 ms of backward, 2500.00 ms of communication hidden behind it, 2500.00 ms exposed "
        "(50% hidden)"
    )
    path = tmp_path / "timeline.json"
    timeline.save(path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {0: "backward", 1: "encode, decode", 2: "in flight, 1", 3: "in flight, 2"}
    assert {event["pid"] for event in events} == {1}
    assert len(events) == len(names) + len(timeline.spans)


def test_a_timeline_without_steps_or_of_a_simulation() -> None:
    timeline = Timeline()
    assert timeline.summary() == "no step was traced"
    with pytest.raises(ValueError, match=r"^Timeline: a simulation has no times of its own; use Trace\(link\)\.$"):
        simulate([all_reduce(torch.ones(1)) for _ in range(2)], timeline)
