"""Hidden and exposed seconds, by hand."""

from __future__ import annotations

import pytest

from thriftgrad.comm import Moments, Round, Timeline
from thriftgrad.train.overlap import Overlap, covered


def finished(kind: str, began: float, asked: float, issued: float, landed: float) -> Round:
    return Round(kind, 2, {}, {1: asked - began}, moments=Moments(0, began, asked, issued, landed))


def test_a_union_of_intervals() -> None:
    assert covered([], until=9) == 0
    assert covered([(3, 5), (1, 2), (4, 8), (4.5, 5)], until=20) == 6
    assert covered([(1, 4), (3, 6)], until=5) == 4
    assert covered([(6, 9)], until=5) == 0


def test_what_flies_before_the_last_bucket_is_handed_over_is_hidden() -> None:
    overlap = Overlap()
    overlap(finished("AllGather", 0, 1, 1, 4))
    overlap(finished("AllReduce", 1, 2, 2, 9))  # of which 4 s come after
    overlap(finished("end", 9, 9.5, 9.5, 9.5))
    overlap.end_step(handed_over=5, ended=10)
    overlap(finished("AllGather", 20, 21, 21, 22))
    overlap.end_step(handed_over=20, ended=23)
    assert (overlap.encode_seconds, overlap.decode_seconds) == (3, 0.5)
    assert (overlap.hidden_seconds, overlap.exposed_seconds) == (4, 8)


def test_backward_begins_with_its_first_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    overlap, clock = Overlap(), iter([2.0])
    monkeypatch.setattr("thriftgrad.train.overlap.perf_counter", lambda: next(clock))
    overlap.timeline = timeline = Timeline()
    overlap.begin_backward()
    overlap.end_step(handed_over=5, ended=6)
    overlap.end_step(handed_over=8, ended=9)  # of which no beginning was seen
    assert [span.duration_seconds for span in timeline.spans] == pytest.approx([3, 1, 0, 1])
    assert (timeline.backward_seconds, timeline.exposed_seconds) == (3, 2)
