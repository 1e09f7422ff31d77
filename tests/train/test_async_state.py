"""Checkpoints of an asynchronous training: loading, then training, equals training on; what is no state is refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from samples import same_bits
from thriftgrad import AsyncServer, ErrorFeedback, LocalMethod, RandomGaps, Sign, TopK
from thriftgrad.local import Caller, Every, Hub, tick
from thriftgrad.train.async_state import read_caller, read_hub, write_caller, write_hub

METHOD = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=3)), ErrorFeedback(Sign())), RandomGaps(3))


def model() -> dict[str, Tensor]:
    return {"weight": torch.linspace(-1, 1, 24).view(4, 6), "bias": torch.ones(5)}


class Pair:
    """Two workers and a server."""

    def __init__(self) -> None:
        self.models = [model(), model()]
        self.hub = Hub(METHOD, model(), 2, seed=1)
        self.callers = [Caller(METHOD, each, rank, 2, seed=1) for rank, each in enumerate(self.models)]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            for caller, each in zip(self.callers, self.models, strict=True):
                for name, x in each.items():
                    each[name].sub_(0.1 * (x - caller.rank) + 0.01 * caller.step)
                caller.advance()
            rates = dict.fromkeys(model(), 0.1)
            tick(self.hub, self.callers, [c.rank for c in self.callers if c.due()], [rates] * 2)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("stop", [0, 1, 8])
def test_save_load_continue_equals_continue(stop: int) -> None:
    whole, stopped, again = Pair(), Pair(), Pair()
    whole.run(stop + 20)
    stopped.run(stop)
    read_hub(again.hub, through_a_file(write_hub(stopped.hub)))
    for caller, before in zip(again.callers, stopped.callers, strict=True):
        assert read_caller(caller, through_a_file(write_caller(before, "a life"))) == "a life"
    assert again.hub.tallies[0].applied == stopped.hub.tallies[0].applied
    again.run(20)
    for name in model():
        assert same_bits(whole.hub.model()[name], again.hub.model()[name])
        for one, other in zip(whole.models, again.models, strict=True):
            assert same_bits(one[name], other[name])
    assert whole.callers[0].memory_norm() == again.callers[0].memory_norm() > 0


def test_a_drop_of_the_learning_rate_is_noticed_after_a_return() -> None:
    method = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=3))), Every(1), reset_memory_on_lr_drop=True)
    hub, caller, back = Hub(method, model(), 1), *(Caller(method, model(), 0, 1) for _ in range(2))
    for each, rate in ((caller, 0.1), (back, 0.01)):
        if each is back:
            read_caller(back, write_caller(caller, ""))
            assert back.memory_norm() > 0
        each.parameters["bias"] -= torch.arange(5.0)
        each.advance()
        tick(hub, [each], [0], [dict.fromkeys(model(), rate)])
    assert back.memory_norm() == 0


def test_a_saved_state_is_not_changed_by_training_on() -> None:
    pair = Pair()
    pair.run(3)
    saved = [write_hub(pair.hub), write_caller(pair.callers[0], "")]
    copies = [through_a_file(each) for each in saved]
    pair.run(5)
    for one, other in zip(saved, copies, strict=True):
        assert all(same_bits(x, other[key]) for key, x in one.items() if isinstance(x, Tensor))


def fresh(method: LocalMethod = METHOD, rank: int = 0, workers: int = 2, seed: int = 1) -> Caller:
    return Caller(method, model(), rank, workers, seed=seed)


OTHER = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=3))), Every(2))


@pytest.mark.parametrize(
    ("caller", "said"),
    [
        (fresh(OTHER), r"saved with method LocalMethod\(.*RandomGaps.*, here it is LocalMethod\(.*Every"),
        (fresh(rank=1), "saved with owner worker 0, here it is worker 1"),
        (fresh(workers=3), "saved with workers 2, here it is 3"),
        (fresh(seed=2), "saved with seed 1, here it is 2"),
        (Caller(METHOD, {"bias": torch.ones(5)}, 0, 2, seed=1), r"parameter/weight float32\[4, 6\], here it is absent"),
    ],
)
def test_the_state_of_another_training_is_refused(caller: Caller, said: str) -> None:
    pair = Pair()
    pair.run(4)
    before = {name: p.clone() for name, p in caller.parameters.items()}
    with pytest.raises(ValueError, match=rf"load_state_dict: the state was .*{said}"):
        read_caller(caller, write_caller(pair.callers[0], ""))
    assert caller.step == 0
    assert all(same_bits(p, before[name]) for name, p in caller.parameters.items())


@pytest.mark.parametrize("key", ["anchor/bias", "local/weight", "memory/rank00000/bias/memory"])
def test_a_damaged_state_of_a_worker_is_refused(key: str) -> None:
    pair, caller = Pair(), fresh()
    pair.run(4)
    saved = write_caller(pair.callers[0], "")
    del saved[key]
    with pytest.raises(ValueError, match=r"load_state_dict: .*incomplete or altered, so use another checkpoint"):
        read_caller(caller, saved)
    assert caller.step == 0
    assert same_bits(caller.parameters["weight"], model()["weight"])


@pytest.mark.parametrize("key", ["model/bias", "memory/server/weight/memory"])
def test_a_damaged_state_of_the_server_is_refused(key: str) -> None:
    pair, hub = Pair(), Hub(METHOD, model(), 2, seed=1)
    pair.run(4)
    saved = write_hub(pair.hub)
    saved[key] = saved[key][:1]
    with pytest.raises(ValueError, match=r"load_state_dict: .*incomplete or altered, so use another checkpoint"):
        read_hub(hub, saved)
    assert hub.version == 0


def test_what_is_no_state_is_refused() -> None:
    pair = Pair()
    with pytest.raises(ValueError, match="load_state_dict: this is no state of an asynchronous training; pass what"):
        read_hub(pair.hub, {"step": 3})
    with pytest.raises(ValueError, match="saved with owner worker 1, here it is server"):
        read_hub(pair.hub, write_caller(pair.callers[1], ""))
