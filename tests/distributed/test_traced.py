"""What a handle records of real steps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from distributed.ranks import on_ranks
from distributed.training import SMALL_BUCKETS, attached, train
from thriftgrad import PowerSGD

pytestmark = pytest.mark.xdist_group("distributed")

STEPS = 3


def traced(folder: Path) -> Any:
    model, handle = attached(PowerSGD(rank=2, min_compression_rate=0), **SMALL_BUCKETS)
    train(model, range(2))  # DDP regroups its buckets after the first
    path = folder / f"trace{dist.get_rank()}.json"
    with handle.traced(path) as timeline:
        train(model, range(2, 2 + STEPS))
    train(model, [2 + STEPS])
    return path.exists(), timeline.summary(), timeline.spans, handle.stats()


def test_spans_of_each_bucket_in_their_order(tmp_path: Path) -> None:
    (written, summary, spans, stats), (other, *_) = on_ranks(2, traced, tmp_path)
    assert written
    assert not other  # rank 0 alone writes
    assert summary.startswith(f"{STEPS} steps; per step ")
    assert stats.steps == STEPS + 3
    assert stats.exposed_seconds > sum(span.duration_seconds for span in spans if span.kind == "exposed") > 0
    events = json.loads((tmp_path / "trace0.json").read_text())["traceEvents"]
    assert len([event for event in events if event["ph"] == "X"]) == len(spans)

    backward = [span for span in spans if span.kind == "backward"]
    waiting = [span for span in spans if span.kind == "exposed"]
    assert len(backward) == len(waiting) == STEPS
    for step, (computing, exposed) in enumerate(zip(backward, waiting, strict=True)):
        end = exposed.start_seconds + exposed.duration_seconds
        inside = [s for s in spans if computing.start_seconds <= s.start_seconds <= end and s.row > 0]
        buckets = {span.label.split(":")[0] for span in inside}
        assert buckets == {f"bucket {i}" for i in range(len(buckets))}, step
        assert len(buckets) > 2
        for bucket in buckets:
            mine = [span for span in inside if span.label.split(":")[0] == bucket]
            # Two rounds of PowerSGD: each encoded, then in flight, one after another; the last answer decoded.
            assert [span.kind for span in mine] == ["encode", "communicate"] * (len(mine) // 2) + ["decode"]
            for before, after in pairwise(mine):
                assert before.start_seconds + before.duration_seconds <= after.start_seconds + 1e-9
