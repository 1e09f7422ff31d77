"""Local updates on real ranks where one of them is not like the others: NaN, another step, layout, rate or group."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.ranks import on_ranks
from samples import same_bits
from thriftgrad import AllGather, ErrorFeedback, Identity, LocalUpdates, ScatterReduce, TopK, recipes
from thriftgrad.local import Every, LocalMethod, OuterSign, SlowMo, Streaming
from thriftgrad.local.async_server import AsyncServer
from thriftgrad.train import AsyncUpdates, Server

pytestmark = pytest.mark.xdist_group("distributed")

TOP = ErrorFeedback(TopK(k=3))
NAN = "if that goes on, the optimizer's state of the rank that logs its drift is not finite either"
EMPTY = "optimizer.state.clear() there begins anew"


def layers(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))


def sgd(model: nn.Module, momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)


def train(model: nn.Module, local: LocalUpdates, steps: int, poison: bool = False) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(100 * local._replica.step + dist.get_rank())
        x = torch.randn(5, 6, generator=generator)
        local.optimizer.zero_grad()
        (model(x * torch.nan if poison else x) - 1).square().mean().backward()
        local.optimizer.step()
        local.step()


def told_by(action: Callable[[], Any]) -> str:
    try:
        action()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Lines(logging.Handler):
    """What the package has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("thriftgrad").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def everyones(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def shared(local: LocalUpdates) -> bool:
    """Whether the anchors are the same on all ranks, to the bit."""
    one, *others = everyones(local.anchors())
    return all(same_bits(x, other[name]) for other in others for name, x in one.items())


# A NaN


def recover() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, schedule in (("each", Streaming(4, 2)), ("late", Streaming(4, 2, delay=1, mixing=0.5))):
        model = layers()
        with LocalUpdates(model, LocalMethod(AllGather(TOP), schedule), sgd(model)) as local:
            train(model, local, 2)
            train(model, local, 1, poison=dist.get_rank() == 1)
            train(model, local, 13)
            found[name] = local.stats().syncs, local.stats().skipped_syncs
    log, model = Lines(), layers()
    with LocalUpdates(model, recipes.local_sgd(h=2), sgd(model, momentum=0.9)) as local:
        train(model, local, 1, poison=dist.get_rank() == 1)
        train(model, local, 3)
        found["stuck"] = local.stats().skipped_syncs
        local.optimizer.state.clear()
        train(model, local, 2)
        found["cleared"] = local.stats().syncs
    found["log"] = log.lines
    return found


def test_a_nan_on_one_rank_is_told_and_streaming_goes_on() -> None:
    zero, one = on_ranks(2, recover)
    for found in (zero, one):
        assert found["each"] == found["late"] == (7, 1)
        assert (found["stuck"], found["cleared"]) == (2, 1)
    assert [line[: line.index(",")] for line in zero["log"]] == [
        f"step {step}: a drift or the mean was not finite" for step in (2, 4)
    ]
    assert [line[: line.index(",")] for line in one["log"]] == [
        f"step {step}: the drift of rank 1 was not finite" for step in (2, 4)
    ]
    assert all(NAN in line and EMPTY in line for line in (*zero["log"], *one["log"]))


def overflow() -> tuple[list[str], int]:
    log, x = Lines(), torch.zeros(4, requires_grad=True)
    with LocalUpdates({"x": x}, LocalMethod(AllGather(Identity())), torch.optim.SGD([x], lr=1.0)) as local:
        with torch.no_grad():
            x.fill_(3e38)  # finite on each rank, and their sum is not
        local.step()
        return log.lines, local.stats().skipped_syncs


def test_rank_0_tells_of_a_mean_that_overflows() -> None:
    (lines, skipped), others = on_ranks(2, overflow)
    assert lines[0].startswith("step 1: a drift or the mean was not finite, so all ranks went back")
    assert (others, skipped) == (([], 1), 1)


def test_an_asynchronous_worker_tells_of_a_drift_that_is_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    method = LocalMethod(AsyncServer(TOP), Every(1))
    server = Server({"x": torch.ones(8)}, method, 1, address="127.0.0.1:0")
    thread = Thread(target=server.run)
    thread.start()
    x = torch.ones(8, requires_grad=True)
    with AsyncUpdates(
        {"x": x}, method, torch.optim.SGD([x], lr=0.1), rank=0, workers=1, address=server.address
    ) as remote:
        with torch.no_grad():
            x[3] = torch.nan
        remote.step()
        assert remote.stats().skipped_syncs == 1
        assert torch.equal(x, torch.ones(8))
    thread.join(20)
    assert not thread.is_alive()
    assert "worker 0, step 1: the drift was not finite, so this worker goes on from the server's model" in caplog.text
    assert "optimizer.state.clear() begins anew" in caplog.text


# Steps and rates


def load_other_steps(alone: bool) -> list[str]:
    """Rank 1 loads a file that is a step older, or nobody but rank 0 loads."""
    rank, told = dist.get_rank(), []
    for method in (recipes.local_sgd(h=4), LocalMethod(AllGather(TOP), Streaming(4, 2, delay=1))):
        model, states = layers(), []
        with LocalUpdates(model, method, sgd(model)) as local:
            for _ in range(6):
                train(model, local, 1)
                states.append(local.state_dict())
        again = layers()
        with LocalUpdates(again, method, sgd(again)) as other:
            if not (alone and rank):
                other.load_state_dict(states[5 - rank])
            told.append(told_by(other.step))
    return told


@pytest.mark.parametrize("alone", [False, True], ids=["older", "unloaded"])
def test_ranks_of_different_steps_are_told_at_the_next(alone: bool) -> None:
    sentence = (
        f"ValueError: LocalUpdates: the ranks disagree on step: rank 0 has 6, rank 1 has {0 if alone else 5}; "
        "give every rank the same."
    )
    assert on_ranks(2, load_other_steps, alone) == [[sentence] * 2] * 2


def of_sites() -> tuple[str, str]:
    """A follower that has another seed, and one that loads another step: all four ranks are told."""
    rank = dist.get_rank()
    sites = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    leaders, model, told = dist.new_group([0, 2]), layers(), []
    where = {"group": leaders, "site": sites[rank // 2]}
    told.append(told_by(lambda: LocalUpdates(model, recipes.local_sgd(), sgd(model), seed=int(rank == 3), **where)))
    with LocalUpdates(model, recipes.local_sgd(), sgd(model), **where) as local:
        local.load_state_dict(local.state_dict() | {"step": 5 if rank == 3 else 4})
        told.append(told_by(local.step))
    return tuple(told)


def test_ranks_of_other_sites_are_told_too() -> None:
    start, end = "ValueError: LocalUpdates: the ranks disagree on", "; give every rank the same."
    one = (f"{start} seed: rank 0 has 0, rank 3 has 1{end}", f"{start} step: rank 0 has 4, rank 3 has 5{end}")
    assert on_ranks(4, of_sites) == [one] * 4


def shapes_differ() -> list[str]:
    rank, told = dist.get_rank(), []
    for model in (nn.Linear(3, 2 + rank), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) if rank else None):
        model = model or nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
        told.append(told_by(lambda m=model: LocalUpdates(m, recipes.local_sgd(), sgd(m))))
    return told


def test_models_that_differ_in_shape_or_buffers_are_told_before_anything_is_sent() -> None:
    start, end = "ValueError: LocalUpdates: the ranks disagree on", "; give every rank the same."
    sentences = [
        f"{start} parameter/weight: rank 0 has float32[2, 3], rank 1 has float32[3, 3]{end}",
        f"{start} buffer/1.running_mean: rank 0 has absent, rank 1 has torch.float32 [2]{end}",
    ]
    assert on_ranks(2, shapes_differ) == [sentences] * 2


def rates_of_their_own() -> list[bool]:
    same = []
    for outer in (SlowMo(), OuterSign()):
        model = layers()
        with LocalUpdates(model, LocalMethod(AllGather(TOP), Every(1), outer=outer), sgd(model)) as local:
            train(model, local, 2)
            local.optimizer.param_groups[0]["lr"] /= 1 + dist.get_rank()
            train(model, local, 3)
            same.append(shared(local))
    return same


@pytest.mark.parametrize("world", [2, 3])
def test_rates_of_their_own_leave_the_anchors_shared(world: int) -> None:
    assert on_ranks(world, rates_of_their_own) == [[True, True]] * world


# The start


class Holder(nn.Module):
    """A convolution with buffers of many kinds."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("expanded", torch.full((1, 5), 1.0 + rank).expand(4, 5))
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t() + rank)
        self.register_buffer("short", torch.tensor([1, -2, 300], dtype=torch.int16) + rank)
        self.register_buffer("flags", torch.tensor([True, rank == 1]))
        self.register_buffer("number", torch.tensor(2.0 + rank, dtype=torch.float64))
        self.register_buffer("empty", torch.ones(0))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf if rank == 0 else 0.0).triu(1))


def start() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = Holder(rank)
    if rank == 1:
        model = model.to(memory_format=torch.channels_last)
        assert model.conv.weight.stride() != (27, 9, 3, 1)
    mine = {name: x.detach().clone() for name, x in model.state_dict().items()}
    with LocalUpdates(model, recipes.local_sgd(h=1), sgd(model)) as local:
        begun = {name: x.detach().clone() for name, x in model.state_dict().items()}
        local.step()  # buffers that are equal everywhere stay so
        for name, x in model.named_buffers():
            assert same_bits(x.contiguous(), begun[name].contiguous()), name
    return mine, begun


def test_all_start_as_rank_0_whatever_the_layout_and_type() -> None:
    (first, _), (other, begun) = on_ranks(2, start)
    assert not all(torch.equal(x, other[name]) for name, x in first.items())
    for name, x in first.items():
        assert same_bits(begun[name].contiguous(), x.contiguous()), name


# Groups, optimisers and other numbers of ranks


def outside() -> list[str]:
    group, model = dist.new_group([0]), layers()
    told = [told_by(lambda: LocalUpdates(model, recipes.local_sgd(), sgd(model), group=group))]
    if dist.get_rank():
        told.append(told_by(lambda: LocalUpdates(model, recipes.local_sgd(), sgd(model), group=group, site=group)))
    return told


def test_a_rank_outside_the_group() -> None:
    assert on_ranks(2, outside) == [
        ["nothing"],
        [
            "ValueError: LocalUpdates: this rank is not in the given group; call it on the ranks that are.",
            "ValueError: LocalUpdates: this rank is not in the given site; give each rank its own.",
        ],
    ]


SCATTERED = LocalMethod(ScatterReduce(TOP, TOP), Every(1))


def scattered(shape: Sequence[int]) -> dict[str, Any]:
    model = nn.Linear(*shape)
    with LocalUpdates(model, SCATTERED, sgd(model)) as local:
        for _ in range(2):
            local.step()
        return local.state_dict()


def load_scattered(shape: Sequence[int], merged: dict[str, Any]) -> str:
    model = nn.Linear(*shape)
    with LocalUpdates(model, SCATTERED, sgd(model)) as local:
        return told_by(lambda: local.load_state_dict(merged))


@pytest.mark.parametrize(("shape", "name"), [((8, 5), "bias/down/memory"), ((6, 6), "weight")], ids=["uneven", "even"])
def test_shards_of_another_number_of_ranks_are_refused(shape: tuple[int, int], name: str) -> None:
    one, other = on_ranks(2, scattered, shape)
    assert on_ranks(3, load_scattered, shape, one | other) == [
        f"ValueError: load_state_dict: 'memory/rank0000{rank}/{name}' is cut into pieces by the number of ranks, which "
        "was 2; load it with 2 ranks, or go on with empty memories."
        for rank in range(3)
    ]


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_optimisers_that_do_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    model, method = layers(), recipes.local_sgd()
    for optimizer, sentence in (
        (None, "TypeError: LocalUpdates: optimizer must be the inner torch.optim.Optimizer, got None; pass that."),
        (
            sgd(layers()),
            "ValueError: LocalUpdates: the optimizer does not hold parameter '0.weight' and 3 more; pass the one that "
            "trains this model.",
        ),
    ):
        assert told_by(lambda o=optimizer: LocalUpdates(model, method, o)) == sentence
    assert not caplog.records
    with LocalUpdates(model[0], method, sgd(model)) as local:
        train(model, local, 3)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("thriftgrad", "LocalUpdates: the optimizer trains 2 more parameters, which are never synchronised")
    ]


@pytest.mark.usefixtures("alone")
def test_frozen_parameters_of_the_optimiser_are_no_matter(caplog: pytest.LogCaptureFixture) -> None:
    model = layers()
    model[0].requires_grad_(False)
    LocalUpdates(model, recipes.local_sgd(), sgd(model)).close()
    assert not caplog.records


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_keeps_the_buffers_to_go_back_to() -> None:
    def made() -> tuple[nn.Sequential, LocalUpdates]:
        model = nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2))
        return model, LocalUpdates(model, LocalMethod(AllGather(Identity()), Every(2)), sgd(model), seed=0)

    model, local = made()
    train(model, local, 2)
    mean = model[1].running_mean.clone()
    train(model, local, 1)
    assert not torch.equal(model[1].running_mean, mean)
    saved, weights = local.state_dict(), {name: x.clone() for name, x in model.state_dict().items()}
    local.close()
    other, local = made()
    local.load_state_dict(saved)
    other.load_state_dict(weights)
    train(other, local, 1, poison=True)
    assert same_bits(other[1].running_mean, mean)
    local.close()
    short = {key: x for key, x in saved.items() if key != "shared/0/buffer/0"}
    other, local = made()
    with pytest.raises(
        ValueError, match=re.escape("'shared/0/buffer/0' is missing or is not torch.float32 of shape (2,)")
    ):
        local.load_state_dict(short)
    local.close()
