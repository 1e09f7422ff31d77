"""What every local method promises: one shared model, the same bits for the same seed, a value that prints."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from local.workers import Workers, split_into, vector
from samples import same_bits
from thriftgrad import AllReduce, Identity, Key, Ledger, TensorSpec, parse, simulate
from thriftgrad.aggregate import Aggregator
from thriftgrad.local import Average, Caller, Hub, LocalMethod, PerWorker, tick

SHAPES = {"0.weight": (4, 6), "0.bias": (4,), "1.weight": (3, 4), "1.bias": (1,)}
SEED = 7
EVERY = pytest.mark.parametrize("method", zoo.LOCAL_METHODS, ids=repr)
SYNCHRONOUS = tuple(each for each in zoo.LOCAL_METHODS if not each.asynchronous)
ASYNCHRONOUS = tuple(each for each in zoo.LOCAL_METHODS if each.asynchronous)
LOSSLESS = tuple(m for m in SYNCHRONOUS if m.aggregator == AllReduce(Identity()) and m.outer == Average())


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradient(x: np.ndarray[Any, Any], t: int, rank: int) -> np.ndarray[Any, Any]:
    return x - rank + np.random.default_rng([rank, t]).normal(size=x.size)


def synchronous(method: LocalMethod, world: int) -> tuple[Workers, list[Any]]:
    """After three of the longest gaps, and all the states on the way."""
    gradients = [lambda x, t, rank=rank: gradient(x, t, rank) for rank in range(world)]
    workers = Workers(method, start(), gradients, seed=SEED)
    trace = []
    for _ in range(3 * min(method.schedule.gap(), 8) + 2):
        before = [dict(replica.anchors()) for replica in workers.replicas]
        workers.step(0.05)
        trace.append((before, [dict(replica.anchors()) for replica in workers.replicas], workers.now()))
    return workers, trace


class Called:
    """Workers of an asynchronous method and their server on one clock."""

    def __init__(self, method: LocalMethod, world: int) -> None:
        self.models = [{name: nn.Parameter(x) for name, x in start().items()} for _ in range(world)]
        self.optimizers = [method.optimizer(model.values(), 0.05) for model in self.models]
        self.hub, self.ledger, self.steps = Hub(method, start(), world, SEED), Ledger(), 0
        self.callers = [Caller(method, model, rank, world, SEED) for rank, model in enumerate(self.models)]

    def step(self) -> list[int]:
        """A local step of everybody; who called the server after it."""
        for rank, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            split_into(model, gradient(vector(model.values()), self.steps, rank))
            optimizer.step()
            self.callers[rank].advance()
        self.steps += 1
        rates = [dict.fromkeys(SHAPES, 0.05)] * len(self.models)
        return list(tick(self.hub, self.callers, [c.rank for c in self.callers if c.due()], rates, self.ledger))


def worlds_of(method: LocalMethod) -> tuple[int, ...]:
    return (len(method.schedule.schedules),) if isinstance(method.schedule, PerWorker) else (2, 3)


def in_worlds(methods: tuple[LocalMethod, ...]) -> Any:
    pairs = [(method, world) for method in methods for world in worlds_of(method)]
    return pytest.mark.parametrize(("method", "world"), pairs, ids=repr)


@EVERY
def test_a_method_is_what_it_prints(method: LocalMethod) -> None:
    assert parse(repr(method)) == method
    assert hash(parse(repr(method))) == hash(method)
    assert pickle.loads(pickle.dumps(method)) == method


@EVERY
def test_every_row_synchronises(method: LocalMethod) -> None:
    specs = [TensorSpec(shape, name=name) for name, shape in SHAPES.items()]
    for world in worlds_of(method):
        method.check(specs, world, steps=3 * method.schedule.gap())
    with pytest.raises(ValueError, match=r"would not synchronise once in 0 steps|schedules for \d+ workers"):
        method.check(specs, worlds_of(method)[0], steps=0)


@in_worlds(SYNCHRONOUS)
def test_all_workers_share_one_model(method: LocalMethod, world: int) -> None:
    workers, trace = synchronous(method, world)
    for before, after, now in trace:
        for anchors in after:
            assert all(same_bits(x, after[0][name]) for name, x in anchors.items())
        assert np.isfinite(now.local).all()
        moved = {name for name in SHAPES if not same_bits(before[0][name], after[0][name])}
        if len(moved) == len(SHAPES) and not method.schedule.kept:  # just after a sync of the whole model
            assert np.array_equal(now.local, now.anchor)
    replica = workers.replicas[0]
    assert replica.syncs >= 2
    assert replica.skipped_syncs == 0
    assert not any(same_bits(x, start()[name]) for name, x in replica.anchors().items() if x.numel() > 3)
    assert workers.ledger.up_bytes > 0


@in_worlds(SYNCHRONOUS)
def test_the_same_seed_gives_the_same_bits(method: LocalMethod, world: int) -> None:
    one, other = synchronous(method, world)[1], synchronous(method, world)[1]
    for (_, a, here), (_, b, there) in zip(one, other, strict=True):
        assert all(same_bits(x, y[name]) for mine, y in zip(a, b, strict=True) for name, x in mine.items())
        assert np.array_equal(here.local, there.local)
        assert np.array_equal(here.memory, there.memory)


@in_worlds(ASYNCHRONOUS)
def test_who_calls_the_server_leaves_with_its_model(method: LocalMethod, world: int) -> None:
    one, other = Called(method, world), Called(method, world)
    calls = [0] * world
    for _ in range(12):
        called = one.step()
        assert called == other.step()
        for rank in called:
            calls[rank] += 1
            for name, x in one.hub.model().items():
                assert same_bits(one.models[rank][name].detach(), x), f"{name} of {rank}"
        assert all(p.isfinite().all() for model in one.models for p in model.values())
        for mine, again in zip(one.models, other.models, strict=True):
            assert all(same_bits(p.detach(), again[name].detach()) for name, p in mine.items())
    assert min(calls) >= 3
    assert one.ledger.up_bytes > 0


@pytest.mark.parametrize("method", LOSSLESS, ids=repr)
def test_alone_and_without_loss_it_is_the_inner_optimiser(method: LocalMethod) -> None:
    workers, _ = synchronous(method, 1)
    model = {name: nn.Parameter(x) for name, x in start().items()}
    optimizer = method.optimizer(model.values(), 0.05)
    for t in range(workers.steps):
        split_into(model, gradient(vector(model.values()), t, 0))
        optimizer.step()
    for name, parameter in workers.models[0].items():
        torch.testing.assert_close(parameter, model[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [m for m in SYNCHRONOUS if not m.schedule.delay_steps], ids=repr)
def test_alone_it_is_its_aggregator_and_its_outer_optimiser(method: LocalMethod) -> None:
    # Up to the first sync: the drift compressed alone moves the model that was there, and nothing else does.
    workers = Workers(method, start(), [lambda x, t: gradient(x, t, 0)], seed=SEED)
    plain = {name: nn.Parameter(x) for name, x in start().items()}
    optimizer = method.optimizer(plain.values(), 0.05)
    while not workers.replicas[0].syncs:
        split_into(plain, gradient(vector(plain.values()), workers.steps, 0))
        optimizer.step()
        workers.step(0.05)
    names = [state.spec.name for state in workers.replicas[0].parts[0].exchange]
    drifts = [start()[name] - plain[name].detach() for name in names]
    specs = [TensorSpec.of(x, name) for x, name in zip(drifts, names, strict=True)]
    key, aggregator = Key(SEED).fold(workers.steps - 1), method.aggregator
    assert isinstance(aggregator, Aggregator)
    ((means, _),) = simulate([aggregator.aggregate(drifts, aggregator.init(specs), key)])
    for spec, mean in zip(specs, means, strict=True):
        expected, _ = method.outer.step(start()[spec.name], mean, method.outer.init(spec), 0.05)
        assert same_bits(workers.replicas[0].anchors()[spec.name], expected)
