"""Synchronous workers in one process: golden trace, the papers' algorithms, invariants, and what equals what."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from local import oracles
from local.oracles import Array, Step, quadratics, top_k
from local.workers import Workers, vector
from samples import label, same_bits, step
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    BinMeans,
    ChunkedTopK,
    ErrorFeedback,
    Identity,
    Key,
    Nonzeros,
    ParameterServer,
    RandomK,
    Shrink,
    Sign,
    TensorSpec,
    Tile,
    TopK,
    recipes,
)
from thriftgrad.aggregate import Aggregator
from thriftgrad.core import memories
from thriftgrad.local import (
    At,
    Every,
    InnerAdamW,
    InnerSGD,
    LocalMethod,
    OuterSGD,
    PostLocal,
    Replica,
    SlowMo,
    Streaming,
)

EXACT = {"rtol": 0, "atol": 1e-12}
SHAPES = {"0.weight": (6, 7), "0.bias": (6,), "1.weight": (3, 6), "1.bias": (3,)}
SIZE = 69
RATES = [0.1 / (1 + 0.05 * t) for t in range(24)]
TOP = ErrorFeedback(TopK(k=3))


def noisy(workers: int = 3, size: int = SIZE, seed: int = 3) -> tuple[list[oracles.Gradient], Array]:
    """Quadratics with noise that depends on worker and step, and a start that is not zero."""
    optima = np.random.default_rng(seed).normal(size=(workers, size))

    def gradient(x: Array, t: int, r: int) -> Array:
        return np.linspace(0.5, 4, size) * (x - optima[r]) + np.random.default_rng([seed, r, t]).normal(size=size)

    return [partial(gradient, r=r) for r in range(workers)], np.random.default_rng(seed + 1).normal(size=size)


def named(x: Array, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A vector as the tensors of SHAPES."""
    pieces = torch.from_numpy(x).to(dtype).split([int(np.prod(shape)) for shape in SHAPES.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)}


def one(x: Array, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A vector as one tensor, which a compressor sees whole, as in the oracles."""
    return {"x": torch.from_numpy(x).to(dtype)}


def assert_same_trace(ours: list[Step], theirs: list[Step], memory: bool = True) -> None:
    assert len(ours) == len(theirs)
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in ("x", "local", "anchor", *(["memory"] if memory else [])):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), **EXACT, err_msg=f"{name} at {t}")


def assert_same_bits(ours: list[Step], theirs: list[Step]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.x, b.x)
        assert np.array_equal(a.local, b.local)


# The algorithm


def test_golden_trace() -> None:
    method = LocalMethod(AllGather(ErrorFeedback(TopK(k=1))), At(oracles.SYNC_STEPS), InnerSGD())
    workers = Workers(method, one(oracles.START), quadratics())
    before = workers.now()
    for t in range(1, 7):
        workers.step(oracles.ETA)
        if t not in oracles.GOLDEN:
            assert np.array_equal(workers.now().memory, before.memory)
            continue
        q1, q2, x, *kept = map(np.array, oracles.GOLDEN[t])
        np.testing.assert_allclose(workers.now().x, x, **EXACT)
        np.testing.assert_allclose(before.x - workers.now().x, (q1 + q2) / 2, **EXACT)
        for memory, golden in zip(workers.now().memory, kept, strict=False):
            np.testing.assert_allclose(memory, golden, **EXACT)
        before = workers.now()
    assert workers.replicas[0].syncs == 3


def sign_top_k(x: Array, k: int) -> Array:
    """Magnitudes are measured of and travel as float32, so that is what the memory must know was sent."""
    kept = top_k(x, k)
    return single(oracles.sign_top_k(single(kept), k))


def single(x: Array) -> Array:
    """Rounded to float32."""
    return x.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("compressor", "compress"),
    [
        (TopK(k=5), partial(top_k, k=5)),
        (TopK(k=9) >> Sign(), partial(sign_top_k, k=9)),
        (Identity(), oracles.identity),
    ],
    ids=label,
)
@pytest.mark.parametrize(
    ("settings", "decay", "inner", "outer"),
    [
        ({}, 1.0, None, oracles.average),
        ({"inner": InnerSGD(0.9, nesterov=True, weight_decay=1e-2)}, 1.0, oracles.sgd(0.9, True, 1e-2), None),
        ({"inner": InnerSGD(0.5)}, 0.8, oracles.sgd(0.5), None),
        ({"inner": InnerAdamW(0.9, 0.95, 0.1)}, 0.95, oracles.adamw((0.9, 0.95), weight_decay=0.1), None),
        ({"outer": OuterSGD(0.6, 0.5)}, 1.0, None, oracles.outer_sgd(0.6, 0.5)),
        ({"outer": SlowMo(0.9, 0.4)}, 1.0, None, oracles.slow_mo(0.9, 0.4)),
    ],
    ids=["plain", "local momentum", "decay", "adamw", "outer sgd", "slow momentum"],
)
def test_algorithm_one(
    compressor: Any, compress: oracles.Compress, settings: Any, decay: float, inner: Any, outer: Any
) -> None:
    gradients, x0 = noisy()
    fed_back = ErrorFeedback(compressor, decay=decay)
    method = LocalMethod(AllGather(fed_back), Every(4), **settings)
    ours = Workers(method, one(x0), gradients).run(RATES)
    syncs, outer = range(4, 25, 4), outer or oracles.average
    theirs = oracles.synchronous(
        gradients, x0, compress, syncs, RATES, len(RATES), decay=decay, inner=inner, outer=outer
    )
    assert_same_trace(ours, theirs)


@pytest.mark.parametrize("reset", [True, False])
def test_memory_is_reset_where_the_learning_rate_has_dropped(reset: bool) -> None:
    gradients, x0 = noisy()
    rates = [0.05] * 6 + [0.1] * 6 + [0.02] * 8 + [0.01] * 4  # lower than at the last sync at steps 16 and 24
    method = LocalMethod(AllGather(TOP), Every(4), reset_memory_on_lr_drop=reset)
    ours = Workers(method, one(x0), gradients).run(rates)
    resets = (16, 24) if reset else ()
    theirs = oracles.synchronous(gradients, x0, partial(top_k, k=3), range(4, 25, 4), rates, 24, resets=resets)
    assert_same_trace(ours, theirs)
    assert ours[4].memory.any()  # the first sync is no drop
    assert ours[16].memory.any() == (not reset)


def test_memory_is_touched_at_syncs_alone() -> None:
    gradients, x0 = noisy()
    workers = Workers(LocalMethod(AllGather(TOP), Every(4)), named(x0), gradients)
    for t, rate in enumerate(RATES, 1):
        states = [list(replica.parts) for replica in workers.replicas]
        workers.step(rate)
        for replica, before in zip(workers.replicas, states, strict=True):
            assert (replica.parts[0] is before[0]) == (t % 4 != 0)
            if t % 4 == 0:
                old, new = (next(memories(part.exchange)) for part in (before[0], replica.parts[0]))
                assert not torch.equal(old, new)
    assert workers.replicas[0].memory_norm() == pytest.approx(np.linalg.norm(workers.memory(0)))


# Invariants

FED_BACK: tuple[Aggregator[Any], ...] = (
    AllGather(TOP),
    AllGather(ErrorFeedback(TopK(fraction=0.2) >> Sign())),
    AllGather(ErrorFeedback(TopK(k=4) >> Shrink(QSGD(bits=3)))),
    AllReduce(ErrorFeedback(RandomK(fraction=0.2, rescale=False))),
    ParameterServer(TOP, Nonzeros()),
    ParameterServer(TOP, Identity()),
    ParameterServer(TOP, ErrorFeedback(TopK(fraction=0.3))),
)


@pytest.mark.parametrize("aggregator", FED_BACK, ids=label)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_shared_model_is_off_by_the_mean_memory(aggregator: Any, dtype: torch.dtype, tolerance: float) -> None:
    # x - v = (1/R) sum m, with v = x_0 less all workers' steps, and the server's memory where it has one.
    gradients, x0 = noisy(workers=2)
    start = {"a": torch.from_numpy(x0[:50]).to(dtype), "b": torch.from_numpy(x0[50:]).to(dtype)}
    workers = Workers(LocalMethod(aggregator, Every(2), InnerSGD()), start, gradients)
    v = vector(start.values())
    for t in range(200):
        taken = [gradient(row, t) for gradient, row in zip(gradients, workers.now().local, strict=True)]
        v = v - 0.05 * np.mean(taken, axis=0)
        workers.step(0.05)
        if t % 2:
            now = workers.now()
            owed = now.memory.mean(axis=0)
            server = [memory for part in workers.replicas[0].parts for s in part.exchange for memory in _down(s.inner)]
            owed = owed + (vector(server) if server else 0.0)
            assert np.abs(now.x - v - owed).max() <= tolerance * np.abs(now.x).max()
            assert t < 3 or np.abs(now.x - v).max() > 1e-3  # memories matter here
            assert np.array_equal(now.anchor, np.array([now.x, now.x]))
            assert np.array_equal(now.local, now.anchor)
    assert workers.replicas[0].syncs == 100


def _down(state: Any) -> list[Tensor]:
    return list(memories(getattr(state, "down", None)))


def test_identity_leaves_no_memory() -> None:
    gradients, x0 = noisy()
    workers = Workers(LocalMethod(AllGather(ErrorFeedback(Identity())), Every(3)), named(x0), gradients)
    assert not any(now.memory.any() for now in workers.run(RATES))
    assert workers.replicas[0].memory_norm() == 0


@pytest.mark.parametrize("aggregator", [AllGather(TOP), AllReduce(Identity())], ids=label)
def test_a_shift_of_start_and_optima_shifts_the_run(aggregator: Any) -> None:
    shift = 1.5
    gradients, x0 = noisy()
    moved = [lambda x, t, g=g: g(x - shift, t) for g in gradients]
    here = Workers(LocalMethod(aggregator, Every(4)), named(x0), gradients).run(RATES)
    there = Workers(LocalMethod(aggregator, Every(4)), named(x0 + shift), moved).run(RATES)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(b.x, a.x + shift, **EXACT)
        np.testing.assert_allclose(b.memory, a.memory, **EXACT)


# Equivalences


@pytest.mark.parametrize("inner", [InnerSGD(), InnerSGD(momentum=0.9)])
def test_identity_at_every_step_is_minibatch_sgd(inner: InnerSGD) -> None:
    # With momentum too: velocities are linear in the gradients, and so is their mean.
    gradients, x0 = noisy()
    ours = Workers(LocalMethod(AllReduce(Identity()), Every(1), inner), named(x0), gradients).run(RATES)
    parameter = torch.nn.Parameter(torch.from_numpy(x0))
    sgd = inner.optimizer([parameter], 1.0)
    for t, rate in enumerate(RATES):
        sgd.param_groups[0]["lr"] = rate
        x = parameter.detach().numpy()
        parameter.grad = torch.from_numpy(np.mean([g(x, t) for g in gradients], axis=0))
        sgd.step()
        np.testing.assert_allclose(ours[t + 1].x, parameter.detach().numpy(), **EXACT)


def test_one_worker_at_every_step_is_memory_sgd() -> None:
    # Stich et al. 2018: g = TopK(m + eta grad); x -= g; m += eta grad - g.
    (gradient,), x0 = noisy(workers=1)
    method = recipes.mem_sgd(fraction=0.07)
    ours = Workers(method, one(x0), [gradient]).run(RATES)
    x, m = x0, np.zeros(SIZE)
    for t, rate in enumerate(RATES):
        step = m + rate * gradient(x, t)
        sent = top_k(step, 5)
        x, m = x - sent, step - sent
        np.testing.assert_allclose(ours[t + 1].x, x, **EXACT)
        np.testing.assert_allclose(ours[t + 1].memory[0], m, **EXACT)


@pytest.mark.parametrize(
    ("local", "gradient"),
    [
        (recipes.mem_sgd(fraction=0.1), recipes.top_k(fraction=0.1, momentum=0.0)),
        (recipes.ef_sgd(momentum=0.0), recipes.ef_sign_sgd()),
    ],
    ids=["mem_sgd", "ef_sgd"],
)
def test_memory_in_parameters_is_memory_in_gradients_while_the_learning_rate_stays(local: Any, gradient: Any) -> None:
    # The gradient method's own aggregator, on the same gradients; a power of two scales without rounding.
    gradients, x0 = noisy()
    ours = Workers(local, one(x0), gradients).run([0.125] * 20)
    x, spec = torch.from_numpy(x0), TensorSpec((SIZE,), torch.float64, name="x")
    states = [gradient.aggregator.init([spec]) for _ in gradients]
    for t in range(20):
        taken = [[torch.from_numpy(g(x.numpy(), t))] for g in gradients]
        means, states = step(gradient.aggregator, taken, states, Key(0).fold(t))
        x = x - 0.125 * means[0][0]
        np.testing.assert_allclose(ours[t + 1].x, x.numpy(), **EXACT)
        kept = np.array([vector(memories(state)) for state in states])
        np.testing.assert_allclose(ours[t + 1].memory, 0.125 * kept, **EXACT)


def _sign(x: Array) -> Array:
    return np.where(x >= 0, 1.0, -1.0) * float(np.float32(single(np.abs(x)).mean()))


def test_double_error_feedback_is_rescaled_when_the_learning_rate_changes() -> None:
    # Zheng et al.: in gradient units, both memories are multiplied by eta_{t-1} / eta_t before each step.
    gradients, x0 = noisy()
    rates = [0.1] * 6 + [0.03] * 6 + [0.3] * 6
    ours = Workers(recipes.dist_ef_sgd(momentum=0.0), one(x0), gradients).run(rates)
    x, e, server = x0, np.zeros((3, SIZE)), np.zeros(SIZE)
    last = rates[0]
    for t, rate in enumerate(rates):
        e, server, last = e * last / rate, server * last / rate, rate
        p = e + np.array([g(x, t) for g in gradients])
        sent = np.array([_sign(row) for row in p])
        total = server + sent.mean(axis=0)
        moved = _sign(total)
        e, server, x = p - sent, total - moved, x - rate * moved
        # Magnitudes are rounded to float32 in other units, and signs of what is nearly zero do not come up here.
        np.testing.assert_allclose(ours[t + 1].x, x, rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours[t + 1].memory, rate * e, rtol=0, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_diloco_at_rate_one_without_momentum_is_local_sgd_bit_for_bit(momentum: float) -> None:
    gradients, x0 = noisy()
    inner = InnerSGD(momentum=momentum)
    loco = LocalMethod(AllReduce(Identity()), Every(4), inner, OuterSGD(1.0, 0.0, nesterov=False))
    starts = named(x0, torch.float32)
    assert_same_bits(
        Workers(loco, starts, gradients).run(RATES),
        Workers(recipes.local_sgd(h=4, momentum=momentum), starts, gradients).run(RATES),
    )


def test_streaming_of_one_fragment_without_delay_is_diloco_bit_for_bit() -> None:
    gradients, x0 = noisy()
    common = (InnerAdamW(), OuterSGD())
    streamed = LocalMethod(AllReduce(Identity()), Streaming(4, 1), *common)
    whole = LocalMethod(AllReduce(Identity()), Every(4), *common)
    starts = named(x0, torch.float32)
    assert_same_bits(Workers(streamed, starts, gradients).run(RATES), Workers(whole, starts, gradients).run(RATES))


def test_sparse_loco_and_qsparse_agree_where_their_settings_do() -> None:
    # In one tile, a tenth of it is top-k of the tensor; no values' bins, no decay, and SGD inside.
    gradients, x0 = noisy(size=60)
    tiles = AllGather(ErrorFeedback(Tile(64) >> ChunkedTopK(fraction=0.1, chunk=None)))
    recipe = recipes.sparse_loco(h=4, fraction=0.1, bits=2, decay=1.0)
    assert recipe.aggregator == AllGather(ErrorFeedback(tiles.compressor.compressor >> BinMeans(bits=2)))
    loco = replace(recipe, aggregator=tiles, inner=InnerSGD(0.9, nesterov=True))
    qsparse = recipes.qsparse_local_sgd(k=6, quantizer=None, h=4, momentum=0.9)
    starts = {"x": torch.from_numpy(x0).view(6, 10)}
    assert_same_bits(Workers(loco, starts, gradients).run(RATES), Workers(qsparse, starts, gradients).run(RATES))


def test_post_local_sgd_is_minibatch_sgd_and_then_local_sgd() -> None:
    gradients, x0 = noisy()
    method = recipes.post_local_sgd(switch=6, h=5, momentum=0.9)
    assert method.schedule == PostLocal(6, 5)
    ours = Workers(method, one(x0), gradients).run(RATES)
    syncs = [*range(1, 7), 11, 16, 21]
    inner = oracles.sgd(0.9, nesterov=True)
    theirs = oracles.synchronous(gradients, x0, oracles.identity, syncs, RATES, len(RATES), inner=inner)
    assert_same_trace(ours, theirs)


def test_slow_momentum() -> None:
    gradients, x0 = noisy()
    rates = [0.1] * 8 + [0.02] * 16  # where slow momentum keeps its units
    method = recipes.slow_mo(h=4, momentum=0.5, slow_momentum=0.6)
    ours = Workers(method, one(x0), gradients).run(rates)
    settings = {"inner": oracles.sgd(0.5), "outer": oracles.slow_mo(1.0, 0.6)}
    theirs = oracles.synchronous(gradients, x0, oracles.identity, range(4, 25, 4), rates, 24, **settings)
    assert_same_trace(ours, theirs)


def test_diloco() -> None:
    gradients, x0 = noisy()
    method = recipes.diloco(h=6, outer_learning_rate=0.5, outer_momentum=0.8, weight_decay=0.2)
    ours = Workers(method, one(x0), gradients).run(RATES)
    settings = {"inner": oracles.adamw(weight_decay=0.2), "outer": oracles.outer_sgd(0.5, 0.8)}
    theirs = oracles.synchronous(gradients, x0, oracles.identity, range(6, 25, 6), RATES, 24, **settings)
    assert_same_trace(ours, theirs)


@pytest.mark.parametrize(("delay", "mixing"), [(0, 0.0), (2, 0.0), (1, 0.5), (3, 0.25)])
def test_streaming(delay: int, mixing: float) -> None:
    gradients, x0 = noisy()
    method = LocalMethod(AllReduce(Identity()), Streaming(8, 2, delay, mixing), InnerSGD(0.5), OuterSGD(0.7))
    ours = Workers(method, named(x0), gradients).run(RATES)
    fragments = [range(48), range(48, SIZE)]  # two modules
    settings = {"inner": oracles.sgd(0.5), "outer": oracles.outer_sgd(0.7)}
    theirs = oracles.streaming(gradients, x0, fragments, 8, delay, mixing, RATES, len(RATES), **settings)
    assert_same_trace(ours, theirs, memory=False)


def test_streaming_with_a_memory_keeps_it_fragment_by_fragment() -> None:
    gradients, x0 = noisy()
    method = LocalMethod(AllGather(TOP), Streaming(8, 2, delay=1), InnerSGD())
    workers = Workers(method, named(x0), gradients)
    for t in range(1, 9):
        before = [part.exchange for part in workers.replicas[1].parts]
        workers.step(0.1)
        after = [part.exchange for part in workers.replicas[1].parts]
        landed = {4: 0, 8: 1}.get(t)
        assert [a is b for a, b in zip(before, after, strict=True)] == [part != landed for part in (0, 1)]


# DeMo and SparseLoCo


def test_demo() -> None:
    shape, k, decay = (6, 10), 4, 0.9
    gradients, x0 = noisy(size=60)
    method = recipes.demo(k=k, chunk=64, decay=decay)
    workers = Workers(method, {"x": torch.from_numpy(x0).view(shape)}, gradients)
    x, memory = x0.reshape(shape), [np.zeros(shape) for _ in gradients]
    for t, rate in enumerate(RATES):
        taken = [g(x.ravel(), t).reshape(shape) for g in gradients]
        x, memory, mean = oracles.demo_step(x, taken, memory, rate, k=k, decay=decay)
        workers.step(rate)
        assert np.abs(mean).min() > 1e-9  # so that no sign is a matter of rounding
        np.testing.assert_allclose(workers.now().x, x.ravel(), **EXACT)
        for ours, theirs in zip(workers.now().memory, memory, strict=True):  # ours is kept as coefficients
            np.testing.assert_allclose(ours.reshape(shape), oracles.dct(theirs), rtol=0, atol=1e-12)


def bin_means(values: Array, bins: int = 4) -> Array:
    """BinMeans: edges at the mean and every 6 sigma / bins, sigma the biased one, means sent as float32."""
    values = single(values)
    centred = values - values.mean()
    width = 6 * np.sqrt((centred**2).mean()) / bins
    symbols = np.clip(np.floor(centred / width) + bins // 2, 0, bins - 1).astype(int)
    table = np.array([values[symbols == b].mean() if (symbols == b).any() else 0.0 for b in range(bins)])
    return single(table)[symbols]


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("over_senders", [False, True])
def test_sparse_loco(quantised: bool, over_senders: bool) -> None:
    shape, h = (8, 70), 3  # two tiles of 8 x 35
    gradients, x0 = noisy(size=560)
    recipe = recipes.sparse_loco(h=h, fraction=0.05, bits=2, decay=0.9)
    feedback = recipe.aggregator.compressor
    sent = feedback.compressor if quantised else Tile(64) >> ChunkedTopK(fraction=0.05, chunk=None)
    aggregator = AllGather(ErrorFeedback(sent, decay=0.9), mean="senders" if over_senders else "workers")
    method = LocalMethod(aggregator, recipe.schedule, recipe.inner, recipe.outer)
    if quantised and not over_senders:
        assert method.aggregator == recipe.aggregator
    workers = Workers(method, {"x": torch.from_numpy(x0).view(shape)}, gradients)
    inner = oracles.adamw(weight_decay=0.1)
    x, memory, state = x0.reshape(shape), [np.zeros(shape) for _ in gradients], [None] * 3
    local = [x0.copy() for _ in gradients]
    for t in range(12):
        for r, gradient in enumerate(gradients):
            local[r], state[r] = inner(local[r], gradient(local[r], t), state[r], 0.05)
        if (t + 1) % h == 0:
            rows = [row.reshape(shape) for row in local]
            x, memory = oracles.sparse_loco_step(
                x,
                rows,
                memory,
                k=14,
                decay=0.9,
                over_senders=over_senders,
                quantize=bin_means if quantised else oracles.identity,
            )
            local = [x.ravel().copy() for _ in gradients]
        workers.step(0.05)
        np.testing.assert_allclose(workers.now().local, np.array(local), rtol=0, atol=1e-9)
        np.testing.assert_allclose(workers.now().memory, np.array([m.ravel() for m in memory]), rtol=0, atol=1e-9)


# The way back


def bytes_of(aggregator: Any, workers: int, syncs: int = 3) -> tuple[dict[int, tuple[int, ...]], list[Step]]:
    gradients, x0 = noisy(workers=workers, size=1000)
    method = LocalMethod(aggregator, Every(4), InnerSGD())
    crew = Workers(method, one(x0, torch.float32), gradients)
    trace = crew.run([0.05] * 4 * syncs)
    return {rank: tuple(traffic[:4]) for rank, traffic in crew.ledger.per_worker.items()}, trace


HEADER, LENGTH = 20, 8
UP = HEADER + 50 + 40 * 4  # 40 of 1000 coordinates: ten bits for each index, a float32 for each value
UP_40 = ErrorFeedback(TopK(k=40))


def test_four_channels_back_and_their_bytes() -> None:
    n, syncs = 4, 3
    forwarded, a = bytes_of(AllGather(UP_40), n)
    assert forwarded == dict.fromkeys(range(n), (syncs * UP, *[syncs * 3 * UP] * 3))
    dense, b = bytes_of(ParameterServer(UP_40, Identity()), n)
    down = HEADER + 4000
    for rank, (_, _, up_bytes, down_bytes) in dense.items():
        links = (3 * down, 3 * UP) if rank == 0 else (UP, down)
        assert (up_bytes, down_bytes) == tuple(syncs * each for each in links)
    union, c = bytes_of(ParameterServer(UP_40, Nonzeros()), n)
    again, d = bytes_of(ParameterServer(UP_40, ErrorFeedback(TopK(k=60))), n)
    assert again[1][2:] == (syncs * UP, syncs * (HEADER + 75 + 240))
    # The first three bring the same model back, bit for bit; the last has a memory of its own.
    for other in (b, c):
        assert_same_bits(a, other)
    assert not np.array_equal(a[4].x, d[4].x)
    # Of the union, from the supports that really occurred: its length in front, a form, indices or a map, and values.
    expected = 0
    for sync in (4, 8, 12):
        moved = int(np.count_nonzero(a[sync].x != a[sync - 1].x))
        assert 40 < moved <= n * 40
        expected += HEADER + 4 + 1 + min(4 + -(-moved * 10 // 8), 125) + 4 * moved
    lengths = syncs * LENGTH
    assert union[1][2:] == (syncs * UP, expected + lengths)
    down = {"forwarded": forwarded[1][3], "dense": dense[1][3], "union": union[1][3], "compressed again": again[1][3]}
    assert sorted(down, key=down.__getitem__) == ["compressed again", "union", "forwarded", "dense"]


def test_bytes_with_a_dense_way_back_are_bounded_by_it() -> None:
    # Spec 1.10: however few bytes go up, the sum is at least what comes down.
    books, _ = bytes_of(ParameterServer(ErrorFeedback(TopK(k=1)), Identity()), 2)
    up, down = books[1][2:]
    assert (up, down) == (3 * (20 + 2 + 4), 3 * (20 + 4000))


# What is not finite, buffers, types


@pytest.mark.parametrize("aggregator", FED_BACK, ids=label)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_drift_that_is_not_finite_takes_all_back_and_changes_nothing(aggregator: Any, poison: float) -> None:
    gradients, x0 = noisy()
    workers = Workers(LocalMethod(aggregator, Every(2), outer=OuterSGD()), named(x0, torch.float32), gradients)
    workers.run([0.05] * 4)
    before, parts = workers.now(), [list(replica.parts) for replica in workers.replicas]
    healthy = workers.gradients
    workers.gradients = [healthy[0], lambda x, t: np.where(np.arange(SIZE) == 50, poison, 1.0), healthy[2]]
    workers.run([0.05] * 2)
    after = workers.now()
    assert np.array_equal(after.x, before.x)
    assert np.array_equal(after.local, before.anchor)
    assert all(r.parts[0] is p[0] for r, p in zip(workers.replicas, parts, strict=True))
    assert [(r.syncs, r.skipped_syncs) for r in workers.replicas] == [(2, 1)] * 3
    workers.gradients = healthy
    trace = workers.run([0.05] * 2)
    assert np.isfinite(trace[-1].local).all()
    assert not np.array_equal(trace[-1].x, before.x)
    assert [(r.syncs, r.skipped_syncs) for r in workers.replicas] == [(3, 1)] * 3


def test_a_poisoned_fragment_leaves_the_others_alone() -> None:
    gradients, x0 = noisy()
    method = LocalMethod(AllGather(TOP), Streaming(8, 2, delay=1, mixing=0.5), InnerSGD())
    workers = Workers(method, named(x0), gradients)
    healthy = workers.gradients
    # A NaN in the first module at step 2, before its exchange at step 3; back at the anchor with step 4.
    for t in range(1, 9):
        workers.gradients = healthy
        if t == 2:
            workers.gradients = [lambda x, t: np.where(np.arange(SIZE) == 50, 0.0, np.nan), *healthy[1:]]
            workers.gradients[0] = lambda x, t: np.where(np.arange(SIZE) == 5, np.nan, 1.0)
        workers.step(0.05)
        if t == 4:
            now = workers.now()
            assert np.array_equal(now.local[:, :48], np.tile(x0[:48], (3, 1)))
            assert np.isfinite(now.local).all()
    assert (workers.replicas[0].syncs, workers.replicas[0].skipped_syncs) == (1, 1)
    assert not np.array_equal(workers.now().x[48:], x0[48:])


@pytest.mark.parametrize("policy", ["average", "local"])
@pytest.mark.parametrize("schedule", [Every(2), Streaming(4, 2, delay=1)], ids=label)
def test_buffers_are_averaged_or_left_alone(policy: Any, schedule: Any) -> None:
    gradients, x0 = noisy()
    owned = [
        {"0.running_mean": torch.full((3,), float(r)), "1.var": torch.tensor([2.0 * r]), "n": torch.tensor(r)}
        for r in range(3)
    ]
    kept = [{name: buffer.clone() for name, buffer in mine.items()} for mine in owned]
    method = LocalMethod(AllGather(TOP), schedule, buffers=policy)
    Workers(method, named(x0), gradients, buffers=owned).run([0.05] * 4)
    for rank, (mine, was) in enumerate(zip(owned, kept, strict=True)):
        if policy == "local":
            assert all(same_bits(mine[name], was[name]) for name in mine), rank
        else:
            assert torch.equal(mine["0.running_mean"], torch.ones(3))  # the mean of 0, 1 and 2
            assert torch.equal(mine["1.var"], torch.tensor([2.0]))
        assert mine["n"] == rank  # a counter is no average


def test_buffers_stay_as_they_are_where_a_drift_was_not_finite() -> None:
    _, x0 = noisy()
    owned = [{"0.mean": torch.tensor([float(r)])} for r in range(3)]
    bad = [lambda x, t: np.full(SIZE, np.nan), *noisy()[0][1:]]
    Workers(LocalMethod(AllGather(TOP), Every(1)), named(x0), bad, buffers=owned).run([0.05])
    assert [float(mine["0.mean"]) for mine in owned] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_parameters_have_wide_anchors(dtype: torch.dtype) -> None:
    # Ten drifts of 2^-12 are lost in bfloat16 at 1, one by one; the anchor keeps them.
    method = LocalMethod(AllReduce(Identity()), Every(1))
    parameters = {"x": torch.ones(4, dtype=dtype)}
    replica = Replica(method, parameters)
    assert replica.anchors()["x"].dtype == torch.float32
    drift = torch.full((4,), 2.0**-4, dtype=torch.float32)
    parameters["x"].sub_(drift.to(dtype))
    assert torch.equal(replica.drifts(0)[0], drift)


def test_keys_are_those_of_a_gradients_steps() -> None:
    replica = Replica(LocalMethod(AllGather(TOP), Every(4)), {"x": torch.ones(3)}, seed=8)
    for _ in range(4):
        replica.advance()
    assert replica.key() == Key(8).fold(3)
