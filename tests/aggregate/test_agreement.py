"""Workers agree on levels before they compress: bit for bit, at the right steps, at the stated cost, or not at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import same_bits, step, vector
from thriftgrad import AllGather, ErrorFeedback, Key, Ledger, PayloadError, TensorSpec, TopK, simulate, wire
from thriftgrad.aggregate import ParameterServer, ScatterReduce
from thriftgrad.comm.simulate import CollectiveMismatchError
from thriftgrad.compress import ALQ, ALQ_N, AMQ, QSGD, Lloyd, magnitudes
from thriftgrad.compress.adaptive import AdaptedLevels
from thriftgrad.core import Shrink
from thriftgrad.wire.coders import Huffman

SHAPES = {"conv": (9, 20), "bias": (7,), "matrix": (33, 4)}
SPECS = [TensorSpec(shape, name=name) for name, shape in SHAPES.items()]
QUANTIZER = ALQ(bits=3, bucket=16, update_at=(0, 2), update_every=None)


def tensors(workers: int, at: int = 0) -> list[list[Tensor]]:
    """Each worker's, heavy-tailed, of another length for every worker."""
    return [
        [
            (1 + rank) * vector("heavy", spec.numel, 100 * at + 10 * rank + i).view(spec.shape)
            for i, spec in enumerate(SPECS)
        ]
        for rank in range(workers)
    ]


def adapted(tree: Any) -> list[AdaptedLevels]:
    """All levels in a state."""
    if isinstance(tree, AdaptedLevels):
        return [tree]
    return [found for branch in tree for found in adapted(branch)] if isinstance(tree, tuple) else []


def fresh(aggregator: Any, workers: int) -> list[Any]:
    return [aggregator.init(SPECS) for _ in range(workers)]


AGGREGATORS = [
    AllGather(QUANTIZER),
    AllGather(QUANTIZER >> Huffman()),
    AllGather(AMQ(bits=3, bucket=16, update_at=(0, 2), update_every=None, per_tensor=False)),
    AllGather(ErrorFeedback(Lloyd(bits=2, bucket=16, update_at=(0, 2), update_every=None))),
    AllGather(TopK(fraction=0.5) >> QUANTIZER),
    AllGather(Shrink(QUANTIZER)),
    ScatterReduce(QUANTIZER, ALQ_N(bits=4, bucket=16, update_at=(1,), update_every=None)),
    ParameterServer(QUANTIZER, AMQ(bits=4, bucket=16, update_at=(0, 2), update_every=None)),
]
EVERY = pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)


@EVERY
def test_all_workers_hold_the_same_levels_after_every_step(aggregator: Any) -> None:
    """On the server and off it, of their own shard and of others'."""
    states = fresh(aggregator, 3)
    for t in range(4):
        _, states = step(aggregator, tensors(3, t), states, Key(t))
        mine = [adapted(tuple(entry.inner for entry in state)) for state in states]
        for worker in mine:
            assert [each[:3] for each in worker] == [each[:3] for each in mine[0]]
            for one, other in zip(worker, mine[0], strict=True):
                assert same_bits(one.levels, other.levels)
                assert same_bits(one.probabilities, other.probabilities)
                assert same_bits(one.counts, other.counts)
        assert all(each.step == t + 1 for each in mine[0])
    versions = {(each.updated, each.version) for each in mine[0]}
    assert versions <= {(2, 3), (1, 2)}


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (2, 1, 0)])
@EVERY
def test_the_order_of_the_workers_changes_no_bit(aggregator: Any, order: tuple[int, ...]) -> None:
    """Of what they agree on from their own tensors; the mean that a server holds has an order of its own."""
    one, other = fresh(aggregator, 3), fresh(aggregator, 3)
    xs = tensors(3)
    _, one = step(aggregator, xs, one, Key(0))
    _, other = step(aggregator, [xs[i] for i in order], other, Key(0))
    up = slice(None) if isinstance(aggregator, AllGather) else slice(0, 1)
    for a, b in zip(one[0], other[0], strict=True):
        for before, after in zip(adapted(a.inner)[up], adapted(b.inner)[up], strict=True):
            assert same_bits(before.levels, after.levels)
            assert same_bits(before.counts, after.counts)


def test_the_counts_are_those_of_everybodys_gradients() -> None:
    """A numpy histogram of all workers' |x| / |bucket|, weighed by norm^2 over the largest norm of any worker."""
    xs = tensors(3)
    _, states = step(AllGather(QUANTIZER), xs, fresh(AllGather(QUANTIZER), 3), Key(0))
    for i, entry in enumerate(states[1]):
        rows = []
        for mine in xs:
            v = mine[i].numpy().ravel()
            rows += [v[at : at + 16] for at in range(0, len(v), 16)]
        scales = [np.float32(np.sqrt((row.astype(np.float64) ** 2).sum())) for row in rows]
        plain, weighted = np.zeros(magnitudes.BINS, np.int64), np.zeros(magnitudes.BINS, np.int64)
        for row, scale in zip(rows, scales, strict=True):
            found = np.histogram(np.abs(row / scale), magnitudes.EDGES)[0]
            plain += found
            weighted += found * int(np.round((float(scale) / float(max(scales))) ** 2 * 2**24))
        assert np.array_equal(entry.inner.counts.numpy(), np.stack([weighted, plain]))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_what_an_agreement_costs(world: int) -> None:
    """Two rounds for all tensors together: 4 bytes each to everybody, then 2 x 513 counts of 8 bytes, summed."""
    aggregator, ledger = AllGather(QUANTIZER), Ledger()
    states, payload = fresh(aggregator, world), wire.HEADER_BYTES
    for spec in SPECS:
        payload += math.ceil(spec.numel * 3 / 8) + 4 * math.ceil(spec.numel / 16)
    for t in range(3):
        _, states = step(aggregator, tensors(world, t), states, Key(t), ledger)
    assert ledger.requests == {"AllGather": 3 + 2, "AllReduce": 2}  # steps 0 and 2
    agreed = 2 * len(SPECS) * (4 + 2 * magnitudes.BINS * 8)
    assert ledger.payload_up_bytes == 3 * payload + agreed
    ring = math.ceil(2 * (world - 1) * len(SPECS) * 2 * magnitudes.BINS * 8 / world)
    assert ledger.up_bytes == (world - 1) * (3 * payload + 2 * 4 * len(SPECS)) + 2 * ring


def test_without_weights_there_is_one_round() -> None:
    aggregator, ledger = AllGather(ALQ_N(bits=3, bucket=16)), Ledger()
    step(aggregator, tensors(2), fresh(aggregator, 2), Key(0), ledger)
    assert ledger.requests == {"AllReduce": 1, "AllGather": 1}


def test_an_all_zero_gradient_leaves_the_levels_and_is_tried_again() -> None:
    aggregator = AllGather(QUANTIZER)
    states = fresh(aggregator, 2)
    before = states[0]
    zeros = [[torch.zeros(spec.shape) for spec in SPECS] for _ in range(2)]
    for t in range(2):
        means, states = step(aggregator, zeros, states, Key(t))
        assert all(torch.equal(mean, torch.zeros(mean.shape)) for mean in means[0])
        for entry, was in zip(states[0], before, strict=True):
            assert (entry.inner.step, entry.inner.updated, entry.inner.version) == (t + 1, -1, 1)
            assert entry.inner.levels is was.inner.levels
    _, states = step(aggregator, tensors(2), states, Key(2))
    assert {(e.inner.updated, e.inner.version) for e in states[0]} == {(2, 2)}  # steps 0 and 2 in one fit
    # One tensor of zeros beside others: it alone stays, and is tried again by itself.
    states = fresh(aggregator, 2)
    some = [[mine[0], torch.zeros(SPECS[1].shape), mine[2]] for mine in tensors(2)]
    _, states = step(aggregator, some, states, Key(0))
    assert [e.inner.version for e in states[0]] == [2, 1, 2]
    ledger = Ledger()
    _, states = step(aggregator, tensors(2, 1), states, Key(1), ledger)
    assert [e.inner.version for e in states[0]] == [2, 2, 2]
    assert ledger.payload_up_bytes < 2 * magnitudes.BINS * 8 + 500  # of one tensor's counts


def test_one_worker_of_zeros_fits_to_the_others() -> None:
    aggregator = AllGather(QUANTIZER)
    (other,) = tensors(1)
    zeros = [torch.zeros(spec.shape) for spec in SPECS]
    _, alone = step(aggregator, [other], fresh(aggregator, 1), Key(0))
    _, both = step(aggregator, [zeros, other], fresh(aggregator, 2), Key(0))
    for one, two in zip(alone[0], both[0], strict=True):
        assert same_bits(one.inner.levels, two.inner.levels)


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_number_on_one_worker_leaves_everything_as_it_was(aggregator: Any, bad: float) -> None:
    """Before the first fit, and at a step on which one is due again; the next step makes up for it."""
    states = fresh(aggregator, 2)
    for t in range(3):
        broken = tensors(2, t)
        broken[1][2][5, 1] = bad
        means, after = step(aggregator, broken, states, Key(t))
        assert not any(mean.isfinite().all() for mine in means for mean in mine)
        assert all(kept is was for kept, was in zip(after, states, strict=True))
        means, states = step(aggregator, tensors(2, t), states, Key(t))
        assert all(mean.isfinite().all() for mine in means for mean in mine)
    assert all(each.version > 1 for each in adapted(tuple(entry.inner for entry in states[0])))


def test_the_schedule_is_followed() -> None:
    aggregator = AllGather(ALQ(bits=2, bucket=16, update_at=(1, 2), update_every=4))
    states, versions = fresh(aggregator, 2), []
    for t in range(9):
        _, states = step(aggregator, tensors(2, t), states, Key(t))
        versions.append(states[0][0].inner.version)
    assert versions == [2, 3, 4, 4, 5, 5, 5, 5, 6]  # at 0, 1, 2, 4 and 8


def differing(aggregator: Any, change: Any) -> None:
    """Two workers, past the last fit, the second one's levels changed."""
    states = fresh(aggregator, 2)
    for t in range(3):
        _, states = step(aggregator, tensors(2, t), states, Key(t))
    states[1] = tuple(entry._replace(inner=change(entry.inner)) for entry in states[1])
    step(aggregator, tensors(2, 3), states, Key(3))


def test_levels_of_another_version_are_refused() -> None:
    with pytest.raises(
        PayloadError, match=r"packed with levels of version \d, and version \d is held here; bring"
    ) as e:
        differing(AllGather(QUANTIZER), lambda inner: inner._replace(version=inner.version + 1))
    assert str(e.value).count(".") == 1
    assert sorted(word for word in str(e.value).replace(",", "").split() if word.isdigit()) == ["3", "4"]


@pytest.mark.parametrize(
    "change",
    [
        lambda inner: inner._replace(levels=inner.levels + torch.tensor([0, 0, 1e-12, 0, 0, 0, 0])),
        lambda inner: inner._replace(probabilities=inner.probabilities.flip(0) * 0.999),
        lambda inner: inner._replace(version=inner.version + 255),
    ],
)
def test_other_levels_of_the_same_version_are_refused(change: Any) -> None:
    """By the digest, whatever differs: a level in its last bits, what a coder would use, a version 255 further."""
    with pytest.raises(PayloadError, match=r", or with other levels of the same version\.$"):
        differing(AllGather(QUANTIZER), change)


def test_workers_that_are_not_due_together_are_told_so_in_a_simulation() -> None:
    with pytest.raises(CollectiveMismatchError, match="the workers disagree on the next collective"):
        differing(AllGather(QUANTIZER), lambda inner: inner._replace(updated=-1))


@pytest.mark.parametrize(
    "aggregator", [ScatterReduce(QUANTIZER, QSGD(bits=4)), ParameterServer(QUANTIZER, QSGD(bits=4))]
)
def test_every_exchange_refuses_them(aggregator: Any) -> None:
    def change(inner: Any) -> Any:
        if isinstance(inner, AdaptedLevels):
            return inner._replace(version=9)
        branches = [change(each) for each in inner] if isinstance(inner, tuple) else None
        if branches is None:
            return inner
        return type(inner)(*branches) if hasattr(inner, "_fields") else tuple(branches)

    with pytest.raises(PayloadError, match="packed with levels of version"):
        differing(aggregator, change)


class TestAllTensorsAsOne:
    """per_tensor=False: one vector, one set of levels, however the tensors are grouped."""

    quantizer = ALQ(bits=3, bucket=16, per_tensor=False, update_at=(0, 2), update_every=None)
    aggregator = AllGather(quantizer)

    def test_it_is_the_concatenation(self) -> None:
        flat = [torch.cat([x.reshape(-1) for x in mine]) for mine in tensors(2)]
        spec = TensorSpec.of(flat[0], SPECS[0].name)
        means, states = step(self.aggregator, tensors(2), fresh(self.aggregator, 2), Key(0))
        whole, after = step(self.aggregator, [[x] for x in flat], [self.aggregator.init([spec])] * 2, Key(0))
        assert same_bits(torch.cat([mean.reshape(-1) for mean in means[0]]), whole[0][0])
        for entry in states[0]:
            assert same_bits(entry.inner.levels, after[0][0].inner.levels)
            assert same_bits(entry.inner.counts, after[0][0].inner.counts)

    def test_its_bytes_are_those_of_one_vector(self) -> None:
        """Buckets run across tensors: one short bucket and not three."""
        n = sum(spec.numel for spec in SPECS)
        ledger, states = Ledger(), fresh(self.aggregator, 2)
        _, states = step(self.aggregator, tensors(2), states, Key(0))
        step(self.aggregator, tensors(2, 1), states, Key(1), ledger)
        assert ledger.payload_up_bytes == wire.HEADER_BYTES + math.ceil(3 * n / 8) + 4 * math.ceil(n / 16)

    def test_regrouped_tensors_stay_in_agreement(self) -> None:
        """All together, then apart, then apart otherwise, then together: as DDP regroups its buckets."""
        states = fresh(self.aggregator, 3)
        groups: list[list[list[int]]] = [[[0, 1, 2]], [[2, 1], [0]], [[2], [0, 1]], [[2], [1], [0]], [[2, 1, 0]]]
        for t, grouping in enumerate(groups):
            for group in grouping:
                xs = [[mine[i] for i in group] for mine in tensors(3, t)]
                some = [tuple(state[i] for i in group) for state in states]
                means, after = step(self.aggregator, xs, some, Key(t))
                assert all(same_bits(a, b) for mine in means for a, b in zip(mine, means[0], strict=True))
                states = [
                    tuple(new[group.index(i)] if i in group else old for i, old in enumerate(state))
                    for new, state in zip(after, states, strict=True)
                ]
                for worker in states:  # and each worker's tensors of this call share their levels
                    for i in group:
                        assert same_bits(worker[i].inner.levels, states[0][group[0]].inner.levels)
        assert {entry.inner.version for entry in states[0]} == {3}

    @pytest.mark.parametrize(
        "aggregator", [ScatterReduce(quantizer, QSGD(bits=4)), ParameterServer(QSGD(bits=4), quantizer)]
    )
    def test_other_exchanges_take_it_as_one_too(self, aggregator: Any) -> None:
        ledger, states = Ledger(), fresh(aggregator, 2)
        for t in range(2):
            means, states = step(aggregator, tensors(2, t), states, Key(t), ledger)
            assert [tuple(mean.shape) for mean in means[0]] == list(SHAPES.values())
        assert ledger.requests["AllReduce"] == 1  # one fit, of one vector

    @pytest.mark.parametrize("gap", [0, 1], ids=["adjacent", "apart"])
    def test_views_of_one_buffer_are_as_good_as_tensors_of_their_own(self, gap: int) -> None:
        """Gradients of a DDP bucket lie end to end; those of several do not."""
        own = tensors(2, 0)
        sizes = [x.numel() for x in own[0]]
        views = []
        for mine in own:
            pieces = [piece for x in mine for piece in (x.reshape(-1), torch.full((gap,), torch.nan))]
            buffer = torch.cat(pieces)
            starts = [sum(sizes[:i]) + gap * i for i in range(len(sizes))]
            views.append([buffer[at : at + x.numel()].view(x.shape) for at, x in zip(starts, mine, strict=True)])
        (means, _), (same, _) = (step(self.aggregator, xs, fresh(self.aggregator, 2), Key(0)) for xs in (own, views))
        assert all(same_bits(a, b) for a, b in zip(means[0], same[0], strict=True))

    def test_types_that_differ_meet_in_float32(self) -> None:
        specs = [TensorSpec((20,), torch.bfloat16), TensorSpec((20,), torch.float32)]
        xs = [[vector("gaussian", 20, rank).bfloat16(), vector("gaussian", 20, rank + 5)] for rank in range(2)]
        means, _ = step(self.aggregator, xs, [self.aggregator.init(specs) for _ in range(2)], Key(0))
        assert [mean.dtype for mean in means[0]] == [torch.bfloat16, torch.float32]
        assert all(mean.isfinite().all() for mean in means[0])


def test_a_tensor_left_behind_does_not_make_the_others_fit_again() -> None:
    """DDP keeps the state of a parameter that no rank used; as one vector, the furthest state counts."""
    method = AllGather(ALQ(bits=3, bucket=16, per_tensor=False, update_at=(0,), update_every=None))
    tensors = [[torch.randn(20), torch.randn(30)] for _ in range(2)]
    states = [method.init([TensorSpec.of(x) for x in mine]) for mine in tensors]
    for at in range(3):
        ledger = Ledger()
        results = simulate(
            [method.aggregate(x, state, Key(at)) for x, state in zip(tensors, states, strict=True)], ledger
        )
        states = [(before[0], after[1]) for before, (_, after) in zip(states, results, strict=True)]
        assert ledger.requests == ({"AllGather": 2, "AllReduce": 1} if at == 0 else {"AllGather": 1})
