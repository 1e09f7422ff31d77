"""Every memory of a state is found and can be emptied; in float64 nothing at all is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samples import SHAPES, gradients, same_leaf, specs, step, vector
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Identity,
    Key,
    MomentumCorrection,
    ParameterServer,
    Partition,
    PowerSGD,
    RandomK,
    ScatterReduce,
    Shrink,
    Sign,
    TensorSpec,
    TopK,
)
from thriftgrad.aggregate import InBasis, LocalClip, LocalMomentum
from thriftgrad.core import memories, wide, without_memories
from thriftgrad.core.tree import leaves

SPARSE = ErrorFeedback(TopK(k=1))


def after_two_steps(aggregator: Any, world: int = 2) -> list[Any]:
    states = [aggregator.init(specs()) for _ in range(world)]
    for i in range(2):
        _, states = step(aggregator, gradients(world, i), states, Key(i))
    return states


@pytest.mark.parametrize(
    ("aggregator", "each"),
    [
        (AllGather(SPARSE), 6),
        (AllGather(SPARSE >> Identity()), 6),
        (AllGather(MomentumCorrection(TopK(k=1))), 6),
        (AllGather(Sign()), 0),
        (AllReduce(ErrorFeedback(RandomK(k=1, rescale=False))), 6),
        (ParameterServer(SPARSE, SPARSE), 12),
        (ParameterServer(TopK(k=1), SPARSE), 6),
        (ScatterReduce(SPARSE, SPARSE), 6 * 3),  # two shards up, one down
        (LocalMomentum(AllGather(SPARSE)), 6),
        (LocalClip(AllGather(SPARSE), 1.0), 6),
        (InBasis(Identity(), AllGather(SPARSE)), 6),
        (PowerSGD(rank=1), 3),  # the matrices that are large enough
        (Partition({"matrix": AllGather(SPARSE), "rest": AllReduce(Identity())}), 4),
    ],
    ids=repr,
)
def test_all_are_found_and_emptied_and_nothing_else(aggregator: Any, each: int) -> None:
    for state in after_two_steps(aggregator):
        found = list(memories(state))
        assert len(found) == each
        assert all(isinstance(memory, torch.Tensor) for memory in found)
        empty = without_memories(state)
        assert type(empty) is type(state)
        assert not any(memory.any() for memory in memories(empty))
        before, after = list(leaves(state)), list(leaves(empty))
        kept = [same_leaf(a, b) for a, b in zip(before, after, strict=True) if not any(a is memory for memory in found)]
        assert all(kept)
        assert len(kept) == len(before) - each
        assert [m.shape for m in memories(empty)] == [m.shape for m in found]
    assert not each or any(memory.any() for memory in memories(tuple(after_two_steps(aggregator))))


def test_the_given_state_stays_as_it_was() -> None:
    (state, _) = after_two_steps(AllGather(SPARSE))
    norms = [float(memory.norm()) for memory in memories(state)]
    without_memories(state)
    assert [float(memory.norm()) for memory in memories(state)] == norms
    assert sum(norms) > 0


def test_an_emptied_state_goes_on_as_if_all_had_been_sent() -> None:
    method = AllGather(SPARSE)
    means, _ = step(method, gradients(2, 2), [without_memories(state) for state in after_two_steps(method)], Key(2))
    fresh, _ = step(method, gradients(2, 2), [method.init(specs()) for _ in range(2)], Key(2))
    assert all(torch.equal(a, b) for a, b in zip(means[0], fresh[0], strict=True))


def test_types_that_sums_are_kept_in() -> None:
    assert [wide(each) for each in (torch.bfloat16, torch.float16, torch.float32, torch.float64)] == [
        *[torch.float32] * 3,
        torch.float64,
    ]


EXACT = [
    AllGather(ErrorFeedback(TopK(k=2))),
    AllGather(ErrorFeedback(TopK(k=4) >> Sign())),
    AllGather(ErrorFeedback(TopK(fraction=0.5) >> Shrink(QSGD(bits=3)))),
    AllGather(ErrorFeedback(Shrink(RandomK(fraction=0.5)))),
    AllGather(ErrorFeedback(Cast("bf16"))),
    AllReduce(ErrorFeedback(RandomK(k=2, rescale=False))),
    ParameterServer(ErrorFeedback(RandomK(k=2, rescale=False) >> Cast("bf16")), Identity()),
    ParameterServer(ErrorFeedback(TopK(k=2)), Identity()),
    ParameterServer(ErrorFeedback(TopK(k=2) >> Identity()), TopK(fraction=1.0)),
    ScatterReduce(ErrorFeedback(TopK(k=1)), Identity()),
    InBasis(Identity(), AllGather(ErrorFeedback(TopK(k=2)))),
    Partition({"matrix": AllGather(ErrorFeedback(Sign())), "rest": AllReduce(Identity())}),
]


@pytest.mark.parametrize("aggregator", EXACT, ids=repr)
def test_in_float64_the_distance_to_the_uncompressed_sum_is_the_mean_memory(aggregator: Any) -> None:
    """x - v = mean of the memories to 1e-12, where x sums the estimates and v the true means, after every step."""
    world = 3
    states = [aggregator.init(specs(torch.float64)) for _ in range(world)]
    owed = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
    for i in range(20):
        tensors = gradients(world, i, torch.float64)
        means, states = step(aggregator, tensors, states, Key(i))
        for at, mean in enumerate(means[0]):
            assert mean.dtype == torch.float64
            owed[at] += torch.stack([mine[at] for mine in tensors]).mean(0) - mean
    for at, name in enumerate(SHAPES):
        kept = [torch.cat([m.reshape(-1) for m in memories(mine[at])]) for mine in states if [*memories(mine[at])]]
        mean = torch.stack(kept).mean(0) if kept else torch.zeros(owed[at].numel())
        torch.testing.assert_close(owed[at].reshape(-1), mean.double(), rtol=0, atol=1e-12, msg=name)


def test_two_memories_of_a_server_in_float64() -> None:
    """DoubleSqueeze: what is owed is the mean of the workers' memories and the server's."""
    method = ParameterServer(ErrorFeedback(TopK(k=1)), ErrorFeedback(TopK(k=1) >> Sign()))
    spec = TensorSpec((30,), torch.float64)
    states, owed = [method.init([spec]) for _ in range(4)], torch.zeros(30, dtype=torch.float64)
    for i in range(50):
        xs = [vector("gaussian", 30, 4 * i + w).double() for w in range(4)]
        means, states = step(method, [[x] for x in xs], states, Key(i))
        owed += torch.stack(xs).mean(0) - means[0][0]
    ups = torch.stack([state[0].inner.up.memory for state in states]).mean(0)
    torch.testing.assert_close(owed, ups + states[0][0].inner.down.memory, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shrunk", [False, True])
def test_top_k_of_float64_travels_as_float64(shrunk: bool) -> None:
    x = vector("gaussian", 30).double() / 3
    inner = Shrink(RandomK(fraction=1.0)) if shrunk else TopK(k=30)
    payload, state = ErrorFeedback(inner).compress(x, ErrorFeedback(inner).init(TensorSpec.of(x)), Key(0))
    assert payload.carrier.dtype == torch.float64
    assert torch.equal(ErrorFeedback(inner).decompress(payload), x)
    assert not state.memory.any()


def test_random_k_rescales_float64_in_float64() -> None:
    x = vector("gaussian", 30).double() / 3
    payload, _ = RandomK(k=7).compress(x, None, Key(0))
    full = RandomK(k=7).decompress(payload)
    kept = full != 0
    torch.testing.assert_close(full[kept], x[kept] * 30 / 7, rtol=1e-15, atol=0)


def test_momentum_of_float64_is_float64() -> None:
    method = LocalMomentum(AllReduce(Identity()), beta=0.75)
    states, average = [method.init([TensorSpec((30,), torch.float64)])], torch.zeros(30, dtype=torch.float64)
    for i in range(5):
        x = vector("gaussian", 30, i).double() / 3
        average = 0.75 * average + 0.25 * x
        means, states = step(method, [[x]], states, Key(i))
        torch.testing.assert_close(means[0][0], average, rtol=0, atol=1e-15)
