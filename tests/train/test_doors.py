"""Whoever comes to the wrong door is told which is the right one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from thriftgrad import AsyncServer, LocalUpdates, Sign, attach, recipes
from thriftgrad.lab.comparison import ComparisonError, Request, resolve
from thriftgrad.train import LocalStats, Method


@pytest.fixture
def ddp() -> Iterator[DistributedDataParallel]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DistributedDataParallel(nn.Linear(2, 2))
    dist.destroy_process_group()


def test_attach_sends_local_methods_to_local_updates(ddp: DistributedDataParallel) -> None:
    with pytest.raises(TypeError, match=r"^attach: Every\(h=4\) belongs to .* use LocalUpdates\(module, method, opt"):
        attach(ddp, recipes.local_sgd(h=4))  # type: ignore[arg-type]


def test_a_method_of_gradients_takes_no_asynchronous_server() -> None:
    with pytest.raises(TypeError, match=r"an AsyncServer belongs into a LocalMethod\.$"):
        Method(AsyncServer(Sign()))  # type: ignore[arg-type]


def test_ddp_over_one_rank_needs_no_site(ddp: DistributedDataParallel) -> None:
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    with LocalUpdates(ddp, recipes.local_sgd(h=1), optimizer) as local:
        assert set(local.anchors()) == {"weight", "bias"}


def test_ddp_over_several_ranks_does(ddp: DistributedDataParallel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"averages the gradients over 2 ranks already; give site="):
        LocalUpdates(ddp, recipes.local_sgd(h=1), optimizer)


def test_k_and_a_fraction_are_one_too_many() -> None:
    assert "TopK(k=1000)" in repr(recipes.qsparse_local_sgd())
    assert "TopK(k=10)" in repr(recipes.qsparse_local_sgd(k=10))
    assert "TopK(fraction=0.1)" in repr(recipes.qsparse_local_sgd(fraction=0.1))
    with pytest.raises(ValueError, match=r"give either fraction or k, got fraction=0\.1 and k=10"):
        recipes.qsparse_local_sgd(k=10, fraction=0.1)


def test_a_comparison_names_the_method_that_does_not_fit() -> None:
    request = Request(("sgd", "diloco"), "logreg", 2, 1, 20, (), None, False, False, None)
    with pytest.raises(
        ComparisonError, match=r"^compare: diloco: Every\(h=500\): worker 0 would not synchronise once in"
    ):
        resolve(request)


def test_before_anything_is_sent_there_is_no_ratio() -> None:
    nothing = dict.fromkeys(("payload_up_bytes", "payload_down_bytes", "up_bytes", "down_bytes"), 0)
    stats = LocalStats(steps=1, syncs=0, skipped_syncs=0, memory_norm=0.0, world=2, elements=9, **nothing)
    assert str(stats) == "1 steps, 0 syncs, memory 0; nothing sent"
