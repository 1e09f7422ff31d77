"""What every aggregator promises: one estimate everywhere, whoever is asked and however tensors are grouped."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from samples import SHAPES, estimates, gradients, same_bits, specs, step
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    Identity,
    Key,
    ParameterServer,
    Partition,
    PowerSGD,
    ScatterReduce,
    Sign,
    TensorSpec,
    TopK,
)
from thriftgrad.aggregate import AsSquare, GradiVeQ, InBasis, LocalClip, LocalMomentum
from thriftgrad.core.feedback import LARGE
from thriftgrad.core.tree import leaves

EVERY = pytest.mark.parametrize("aggregator", zoo.AGGREGATORS, ids=repr)
WORLDS = (1, 2, 3, 5)
EXACT = [
    AllReduce(Identity()),
    AllGather(Identity()),
    ScatterReduce(Identity(), Identity()),
    ParameterServer(Identity(), Identity()),
    PowerSGD(rank=100, min_compression_rate=0),
    PowerSGD(rank=1, start_after=9),
    AsSquare(PowerSGD(rank=100, min_compression_rate=0)),
    GradiVeQ(slice_elements=8, components=1),
    LocalMomentum(AllGather(Identity()), beta=0.0),
    LocalClip(AllGather(Identity()), threshold=1e6),
    InBasis(Identity(), AllGather(Identity())),
    Partition({"numel<10": AllReduce(Identity()), "rest": AllGather(Identity())}),
]


def first_step(aggregator: Any, tensors: list[list[Tensor]], key: Key = Key(0)) -> list[list[Tensor]]:  # noqa: B008
    """Every worker's estimates from fresh states."""
    return step(aggregator, tensors, [aggregator.init(specs()) for _ in tensors], key)[0]


def assert_same(one: Any, two: Any) -> None:
    assert len(one) == len(two)
    assert all(same_bits(a, b) for a, b in zip(one, two, strict=True))


def assert_same_state(one: Any, two: Any) -> None:
    """Equal bits in every tensor, equal values in everything else."""
    one, two = list(leaves(one)), list(leaves(two))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert same_bits(a, b) if isinstance(a, Tensor) else a == b


@EVERY
@pytest.mark.parametrize(
    ("world", "dtype"), [(1, torch.float32), (2, torch.bfloat16), (3, torch.float32), (5, torch.bfloat16)]
)
def test_all_workers_get_the_same_bits_in_the_shapes_they_gave(aggregator: Any, world: int, dtype: torch.dtype) -> None:
    states = [aggregator.init(specs(dtype)) for _ in range(world)]
    for i in range(2):
        tensors = gradients(world, i, dtype)
        before = [[x.clone() for x in mine] for mine in tensors]
        means, states = step(aggregator, tensors, states, Key(i))
        for mine in means:
            assert_same(mine, means[0])
        assert [(tuple(x.shape), x.dtype) for x in means[0]] == [(shape, dtype) for shape in SHAPES.values()]
        assert all(x.isfinite().all() for x in means[0])
        for mine, was in zip(tensors, before, strict=True):
            assert_same(mine, was)


@pytest.mark.parametrize("aggregator", EXACT, ids=repr)
@pytest.mark.parametrize("world", WORLDS)
def test_without_loss_the_estimate_is_the_mean(aggregator: Any, world: int) -> None:
    tensors = gradients(world)
    expected = [torch.stack([mine[i].double() for mine in tensors]).mean(0) for i in range(len(SHAPES))]
    for mean, oracle in zip(first_step(aggregator, tensors)[0], expected, strict=True):
        torch.testing.assert_close(mean.double(), oracle, rtol=1e-5, atol=2e-6)


@EVERY
def test_the_estimate_follows_the_mean(aggregator: Any) -> None:
    """Doubling all gradients doubles the estimate, and turning them round turns it; votes and what is clipped have no
    length."""
    tensors = gradients(2)
    once = first_step(aggregator, tensors)[0]
    twice = first_step(aggregator, [[-2 * x for x in mine] for mine in tensors])[0]
    factor = -1 if any(name in repr(aggregator) for name in ("Vote", "LocalClip")) else -2
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(factor * a, b, rtol=1e-5, atol=1e-6)


def pieces(aggregator: Any, groups: list[list[int]], world: int, rounds: int) -> tuple[list[Tensor], list[Any]]:
    """Worker 0's last estimates and all workers' states, the tensors handed over in these groups."""
    all_specs, means, states = specs(), {}, {}
    for group in groups:
        some = [aggregator.init([all_specs[i] for i in group]) for _ in range(world)]
        for at in range(rounds):
            results, some = step(aggregator, [[g[i] for i in group] for g in gradients(world, at)], some, Key(at))
        means |= dict(zip(group, results[0], strict=True))
        for at, i in enumerate(group):
            states[i] = [state[at] for state in some]
    return [means[i] for i in range(len(SHAPES))], [states[i] for i in range(len(SHAPES))]


@EVERY
@pytest.mark.filterwarnings(
    "ignore:Partition. the rule", "ignore:.*compresses none of the", "ignore:Budgeted. bytes_per_step"
)
def test_grouping_changes_nothing(aggregator: Any) -> None:
    together = pieces(aggregator, [[0, 1, 2, 3, 4, 5]], world=3, rounds=2)
    apart = pieces(aggregator, [[4, 1], [0], [3, 2, 5]], world=3, rounds=2)
    if any(word in repr(aggregator) for word in ("per_tensor=False", "AsSquare", "Budgeted")):
        # There a group is one vector, with buckets across its tensors, one square, or has one budget.
        assert any(not same_bits(a, b) for a, b in zip(together[0], apart[0], strict=True))
        return
    if "PowerSGD" not in repr(aggregator):
        assert_same(together[0], apart[0])
        assert_same_state(tuple(map(tuple, together[1])), tuple(map(tuple, apart[1])))
        return
    # Equal shapes are multiplied in one batch, which may sum in another order.
    for a, b in zip(together[0], apart[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@EVERY
@pytest.mark.parametrize(("bad", "worker", "tensor"), [(torch.nan, 0, 0), (torch.inf, 1, 2), (-torch.inf, 1, 3)])
def test_one_bad_number_is_seen_by_all_and_kept_by_none(aggregator: Any, bad: float, worker: int, tensor: int) -> None:
    """Whoever has it and wherever: every estimate is non-finite everywhere and every state is as it was."""
    states = [aggregator.init(specs()) for _ in range(2)]
    _, states = step(aggregator, gradients(2), states, Key(1))
    tensors = gradients(2, 1)
    tensors[worker][tensor].view(-1)[-1] = bad
    means, after = step(aggregator, tensors, states, Key(2))
    assert all(not x.isfinite().all() for mine in means for x in mine)
    for kept, was in zip(after, states, strict=True):
        assert_same_state(kept, was)
    continued, _ = step(aggregator, gradients(2, 2), after, Key(3))
    assert all(x.isfinite().all() for x in continued[0])


@EVERY
def test_what_float32_cannot_hold_never_enters_a_state(aggregator: Any) -> None:
    all_specs = specs(torch.float64)
    states = [aggregator.init(all_specs) for _ in range(2)]
    tensors = gradients(2, dtype=torch.float64)
    tensors[1][0][0, 0] = 1e300
    _, states = step(aggregator, tensors, states, Key(0))
    for leaf in leaves(tuple(states)):
        assert not isinstance(leaf, Tensor) or leaf.isfinite().all()


@EVERY
def test_continuing_from_a_saved_state_is_continuing(aggregator: Any) -> None:
    states = [aggregator.init(specs()) for _ in range(2)]
    for i in range(2):
        _, states = step(aggregator, gradients(2, i), states, Key(i))
    loaded = pickle.loads(pickle.dumps(states))
    one, states = step(aggregator, gradients(2, 2), states, Key(2))
    two, loaded = step(aggregator, gradients(2, 2), loaded, Key(2))
    assert_same(one[0], two[0])
    assert_same_state(tuple(states), tuple(loaded))


@EVERY
def test_autograd_ends_here(aggregator: Any) -> None:
    tensors = [[x.requires_grad_() for x in mine] for mine in gradients(2)]
    means, states = step(aggregator, tensors, [aggregator.init(specs()) for _ in range(2)], Key(0))
    tensors = [leaf for leaf in (*means[0], *leaves(tuple(states))) if isinstance(leaf, Tensor)]
    assert not any(x.requires_grad for x in tensors)


@EVERY
def test_equal_keys_equal_estimates(aggregator: Any) -> None:
    one, two = (first_step(aggregator, gradients(2), Key(4)) for _ in range(2))
    assert_same(one[0], two[0])


@pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)
def test_a_world_of_one_is_the_compressor_itself(compressor: Any) -> None:
    """Locally and by the keys as documented: folded with the tensor's name, and with the rank where private."""
    x, key = gradients(1)[0][3], Key(6)
    spec = TensorSpec.of(x, "w")
    named = key.fold("w")

    def local(c: Any, value: Tensor, k: Key) -> Tensor:
        state = c.init(TensorSpec.of(value))
        if c.due(state):  # one worker agrees with itself
            peaks = c.peaks(value, state, k)
            state = c.adapt(state, peaks, c.counts(value, state, k, peaks))
        return c.decompress(c.compress(value, state, k)[0])

    def alone(aggregator: Any) -> Tensor:
        return step(aggregator, [[x]], [aggregator.init([spec])], key)[0][0][0]

    assert same_bits(alone(AllGather(compressor)), local(compressor, x, named.private(0)))
    if compressor in zoo.LINEAR:
        assert same_bits(alone(AllReduce(compressor)), local(compressor, x, named))
    if compressor.shares_scale:
        return  # among several workers alone
    up = local(compressor, x, named.private(0))
    assert same_bits(alone(ParameterServer(compressor, compressor)), local(compressor, up, named.fold("down")))
    if compressor.leaves_alone(TensorSpec((LARGE,))):
        return  # it would leave shards alone, which are flat
    shard = local(compressor, x.view(-1), named.fold("up", 0).private(0))
    both = local(compressor, shard, named.fold("down").private(0)).view(x.shape)
    assert same_bits(alone(ScatterReduce(compressor, compressor)), both + 0.0)  # added to zeros, -0.0 is 0.0


@pytest.mark.parametrize("world", WORLDS)
def test_the_gathered_mean_is_the_mean_of_local_estimates(world: int) -> None:
    for compressor in (QSGD(bits=4), TopK(k=3), Sign()):
        tensors = gradients(world)
        result = estimates(AllGather(compressor), tensors, Key(2))[0]
        for i, mean in enumerate(result):
            key = Key(2).fold(str(i))
            parts = [
                compressor.decompress(compressor.compress(mine[i], None, key.private(rank))[0]).double()
                for rank, mine in enumerate(tensors)
            ]
            torch.testing.assert_close(mean.double(), torch.stack(parts).mean(0), rtol=1e-6, atol=1e-6)


def test_private_roundings_are_independent() -> None:
    """The mean of n workers' roundings of one gradient has an n-th of the variance."""
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    error = {}
    for world in (1, 8):
        mean = estimates(AllGather(QSGD(bits=2)), [[x] for _ in range(world)])[0][0]
        error[world] = (mean - x).square().sum().item()
    assert error[1] / error[8] == pytest.approx(8, rel=0.15)


def test_an_unnamed_tensor_is_named_by_its_position() -> None:
    state = AllGather(Sign()).init([TensorSpec((2,)), TensorSpec((2,), name="w"), TensorSpec((2,))])
    assert [entry.spec.name for entry in state] == ["0", "w", "2"]


def test_names_key_the_randomness() -> None:
    x = torch.randn(100)
    a, b = estimates(AllGather(QSGD(bits=2)), [[x, x]])[0]
    assert not torch.equal(a, b)


@pytest.mark.parametrize("make", zoo.METHODS, ids=repr)
@pytest.mark.filterwarnings("ignore:.*compresses none of the")
def test_every_method_runs(make: Any) -> None:
    states = [make.aggregator.init(specs()) for _ in range(2)]
    means, _ = step(make.aggregator, gradients(2), states, Key(0))
    assert_same(means[0], means[1])
    assert sum(float(x.square().sum()) for x in means[0]) > 0


def test_cast_sums_within_its_precision() -> None:
    tensors = gradients(5)
    mean = estimates(AllReduce(Cast("bf16")), tensors)[0][0]
    exact = torch.stack([mine[0] for mine in tensors]).mean(0)
    assert (mean - exact).abs().max() <= 5 * 2**-8 * torch.stack([m[0] for m in tensors]).abs().mean(0).max()
