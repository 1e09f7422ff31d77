"""A trial of DDP bucket sizes and threads: one choice for all ranks, and nothing else changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import on_ranks
from samples import same_bits
from thriftgrad import AllGather, AllReduce, Identity, TensorSpec, TopK, kernels, tune
from thriftgrad.aggregate import Aggregator
from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.comm import Comm
from thriftgrad.core import Key
from thriftgrad.train import Tuning

pytestmark = pytest.mark.xdist_group("distributed")

CAPS = (0.001, 1.0)

calls: list[tuple[int, int]] = []
"""Of each exchange in this process: how many tensors, and how many threads a kernel may use."""


@dataclass(frozen=True, repr=False)
class Watched(Aggregator[None]):
    """Averages, and notes that it was called."""

    def init_tensor(self, spec: TensorSpec) -> None:
        return None

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[None], key: Key
    ) -> Comm[tuple[list[Tensor], list[None]]]:
        calls.append((len(tensors), kernels.threads()))
        sums = yield from all_reduce_list(tensors)
        return [x / 2 for x in sums], list(states)


class Net(nn.Module):
    """With everything that a forward pass may change: running means and torch's random state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 100), nn.BatchNorm1d(100), nn.Dropout(0.5), nn.Linear(100, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(4, 8)).square().sum()


def tried() -> dict[str, Any]:
    torch.manual_seed(dist.get_rank())
    module = Net()
    optimizer = torch.optim.Adam(module.parameters())
    loss(module).backward()
    optimizer.step()

    def everything() -> list[Tensor]:
        moments = [x for state in optimizer.state.values() for x in state.values()]
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        return [*module.state_dict().values(), *moments, *gradients, torch.get_rng_state()]

    before, running = [x.clone() for x in everything()], threading.active_count()
    kernels.set_threads(3)
    tuning = tune(module, loss, Watched(), bucket_caps_mb=CAPS, threads=(1, 2), steps=2, ddp={"static_graph": True})
    same = all(same_bits(a, b) for a, b in zip(before, everything(), strict=True))
    kept, left = kernels.threads(), threading.active_count() - running
    kernels.set_threads(None)
    free = tune(module, loss, AllGather(TopK(fraction=0.1)), bucket_caps_mb=[1], threads=[2], steps=1)
    return {
        "tuning": tuning,
        "free": free,
        "untouched": same,
        "threads kept": (kept, kernels.threads() == torch.get_num_threads()),
        "threads left": left,
        "calls": calls,
    }


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Any]]:
    return on_ranks(2, tried)


def test_two_ranks_choose_alike_and_touch_nothing(on_two: list[dict[str, Any]]) -> None:
    one, other = on_two
    for result in (one, other):
        assert result["untouched"]
        assert result["threads kept"] == (3, True)
        assert result["threads left"] == 0
    tuning = one["tuning"]
    assert tuning == other["tuning"]
    assert list(tuning.seconds) == [(cap, count) for cap in CAPS for count in (1, 2)]
    assert tuning.seconds[tuning.bucket_cap_mb, tuning.threads] == min(tuning.seconds.values()) > 0
    assert repr(tuning) == (
        f"Tuning(bucket_cap_mb={tuning.bucket_cap_mb}, threads={tuning.threads}, seconds={tuning.seconds})"
    )
    assert list(one["free"].seconds) == [(1, 2)]


def test_every_candidate_is_really_in_effect(on_two: list[dict[str, Any]]) -> None:
    result, _ = on_two
    per_trial = 4  # steps, of which two are not timed
    for count in (1, 2):
        whole = [tensors for tensors, threads in result["calls"] if threads == count and tensors == 6]
        parts = [tensors for tensors, threads in result["calls"] if threads == count and tensors < 6]
        assert len(whole) >= per_trial  # all tensors in the one bucket of 1 MB
        assert sum(parts) + 6 * (len(whole) - per_trial) == 6 * per_trial  # and in several of 1 kB
        assert len(parts) >= 2 * (per_trial - 1)
    assert {threads for _, threads in result["calls"]} == {1, 2}


def tried_unlike() -> dict[str, Any]:
    rank = dist.get_rank()
    os.sched_getaffinity = lambda _: set(range(3 + 2 * rank))  # another machine on every rank
    unset = tune(nn.Linear(8, 8), loss, Watched(), bucket_caps_mb=[1], steps=1)
    messages = []
    for options in ({"threads": (1, 2)[: 1 + rank]}, {"bucket_caps_mb": [1][rank:]}, {"steps": rank}):
        with pytest.raises(ValueError, match=r"^tune: ") as caught:
            tune(nn.Linear(8, 8), loss, Watched(), **options)
        messages.append(str(caught.value))
    return {"counts": [count for _, count in unset.seconds], "messages": messages}


def test_ranks_with_other_cores_try_the_same_and_other_arguments_are_refused_by_all() -> None:
    for result in on_ranks(2, tried_unlike):
        assert result["counts"] == [1, 3]
        assert result["messages"] == [
            f"tune: the ranks disagree on {fact}: rank 0 has {one}, rank 1 has {other}; give every rank the same."
            for fact, one, other in [("threads", [1], [1, 2]), ("bucket_caps_mb", [1], []), ("steps", 0, 1)]
        ]


@pytest.fixture
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_caps_mb": []}, r"^tune: bucket_caps_mb is empty; give at least one to try\.$"),
        ({"threads": ()}, r"^tune: threads is empty; give at least one to try\.$"),
        ({"bucket_caps_mb": [1, 0]}, r"^tune: bucket_caps_mb must be positive, got \[1, 0\]\.$"),
        ({"threads": [-1]}, r"^tune: threads must be positive, got \[-1\]\.$"),
        ({"steps": 0}, r"^tune: steps must be positive, got 0\.$"),
    ],
)
def test_nothing_to_choose_from(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(nn.Linear(2, 2), loss, AllReduce(Identity()), **options)


@pytest.mark.usefixtures("world_of_one")
def test_a_module_that_is_ddp_already() -> None:
    with pytest.raises(TypeError, match=r"^tune: expected the bare module, got a .* model; pass its \.module\.$"):
        tune(DistributedDataParallel(nn.Linear(2, 2)), loss, AllReduce(Identity()))


@pytest.mark.usefixtures("world_of_one")
def test_an_error_in_the_loss_leaves_threads_as_they_were() -> None:
    def wrong(model: nn.Module) -> Tensor:
        raise ArithmeticError("not today")

    kernels.set_threads(3)
    try:
        with pytest.raises(ArithmeticError, match="not today"):
            tune(nn.Linear(2, 2), wrong, AllReduce(Identity()), threads=[1])
        assert kernels.threads() == 3
    finally:
        kernels.set_threads(None)


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize("before", [None, torch.get_num_threads()], ids=["unset", "as many as torch"])
def test_threads_are_set_as_they_were_and_not_to_what_that_came_to(before: int | None) -> None:
    kernels.set_threads(before)
    torchs = torch.get_num_threads()
    try:
        tune(nn.Linear(8, 8), loss, AllReduce(Identity()), bucket_caps_mb=[1], threads=[1], steps=1)
        torch.set_num_threads(torchs + 1)
        assert kernels.threads() == (before or torchs + 1)
    finally:
        torch.set_num_threads(torchs)
        kernels.set_threads(None)


def test_the_quickest_is_chosen(monkeypatch: pytest.MonkeyPatch, world_of_one: None) -> None:
    told = iter([0.4, 0.3, 0.1, 0.2])
    monkeypatch.setattr("thriftgrad.train.tuning._step_seconds", lambda *_: next(told))
    tuning = tune(nn.Linear(2, 2), loss, AllReduce(Identity()), bucket_caps_mb=[1, 4], threads=[1, 2])
    assert tuning == Tuning(4, 1, {(1, 1): 0.4, (1, 2): 0.3, (4, 1): 0.1, (4, 2): 0.2})
