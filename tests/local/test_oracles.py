"""The oracles themselves: the golden trace, invariants and closed forms, torch's optimisers, scipy's transform."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dct

from local import oracles
from local.oracles import (
    CURVATURE,
    ETA,
    GOLDEN,
    OPTIMA,
    START,
    SYNC_STEPS,
    Array,
    Step,
    adamw,
    asynchronous,
    double_squeeze,
    identity,
    outer_sgd,
    quadratics,
    sgd,
    sign_top_k,
    slow_mo,
    sparse_loco_step,
    streaming,
    synchronous,
    top_k,
    virtual,
)

TOP_1 = partial(top_k, k=1)
RATES = [ETA / (1 + 0.05 * t) for t in range(30)]
SETS = [{2, 5, 6, 11, 20, 30}, {1, 5, 13, 14, 29}]
EXACT = {"rtol": 0, "atol": 1e-12}


def noisy(seed: int, workers: int = 3, dimension: int = 7) -> tuple[list[oracles.Gradient], Array]:
    """Quadratics with gradient noise that depends on worker and step, and a start that is not zero."""
    optima = np.random.default_rng(seed).normal(size=(workers, dimension))

    def gradient(x: Array, t: int, r: int) -> Array:
        noise = np.random.default_rng([seed, r, t]).normal(size=x.size)
        return np.linspace(0.5, 4, x.size) * (x - optima[r]) + noise

    start = np.random.default_rng(seed + 1).normal(size=dimension)
    return [partial(gradient, r=r) for r in range(workers)], start


def equal(a: list[Step], b: list[Step]) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(a, b, strict=True)
        for name in ("x", "local", "anchor", "memory")
    )


def test_golden_operator_values() -> None:
    x = np.array([3, -1, 0.5, -2, 0])
    np.testing.assert_allclose(top_k(x, 2), [3, 0, 0, -2, 0], **EXACT)
    np.testing.assert_allclose(sign_top_k(x, 2), [2.5, 0, 0, -2.5, 0], **EXACT)
    assert ((x - sign_top_k(x, 2)) ** 2).sum() == pytest.approx(1.75, abs=1e-12)
    np.testing.assert_allclose(sign_top_k(x, 2, m=2), np.sqrt(13) / 2 * np.array([1, 0, 0, -1, 0]), **EXACT)
    np.testing.assert_allclose(sign_top_k(x, 5), 1.3 * np.array([1, -1, 1, -1, 1]), **EXACT)


def test_ties_go_to_the_lowest_index_and_zero_stays_zero() -> None:
    np.testing.assert_array_equal(top_k(np.array([1.0, -2, 2, -2]), 2), [0, -2, 2, 0])
    np.testing.assert_array_equal(sign_top_k(np.zeros(4), 2), np.zeros(4))
    np.testing.assert_array_equal(top_k(np.array([1.0, 2]), 5), [1, 2])


def test_golden_trace() -> None:
    trace = synchronous(quadratics(), START, TOP_1, SYNC_STEPS, [ETA] * 6, 6)
    for step, (q1, q2, x, *memory) in GOLDEN.items():
        np.testing.assert_allclose([trace[step].sent[0], trace[step].sent[1], trace[step].x], [q1, q2, x], **EXACT)
        np.testing.assert_allclose(trace[step].local, [x, x], **EXACT)
        if memory:
            np.testing.assert_allclose(trace[step].memory, memory, **EXACT)
    assert [step for step, after in enumerate(trace) if after.sent] == list(SYNC_STEPS)


@pytest.mark.parametrize("compress", [TOP_1, partial(sign_top_k, k=3)])
def test_virtual_sequence_of_both_algorithms(compress: Any) -> None:
    """Sync: x - v = mean m after each sync. Async, at any step: xbar - v = mean of m + anchor - local."""
    gradients, start = noisy(3)
    sync = synchronous(gradients, start, compress, range(4, 31, 4), RATES, 30)
    v = virtual(gradients, sync, RATES)
    for step in range(4, 31, 4):
        np.testing.assert_allclose(sync[step].x - v[step], sync[step].memory.mean(axis=0), **EXACT)
    uneven = asynchronous(gradients, start, compress, [*SETS, {30}], RATES, 30)
    for after, u in zip(uneven, virtual(gradients, uneven, RATES), strict=True):
        unsent = after.memory + after.anchor - after.local
        np.testing.assert_allclose(after.x - u, unsent.mean(axis=0), **EXACT)


def test_equal_sets_make_the_algorithms_one() -> None:
    gradients, start = noisy(5)
    for down in (identity, TOP_1):
        sync = synchronous(gradients, start, TOP_1, range(3, 31, 3), RATES, 30, down=down)
        assert equal(sync, asynchronous(gradients, start, TOP_1, [range(3, 31, 3)] * 3, RATES, 30, down=down))


def test_the_asynchronous_server_divides_by_all_workers() -> None:
    (one, *_) = trace = asynchronous(quadratics(), START, identity, [{1}, {2}], [ETA] * 2, 2)
    g = [CURVATURE * (START - c) for c in OPTIMA]
    np.testing.assert_allclose(trace[1].x, START - ETA * g[0] / 2, **EXACT)
    np.testing.assert_array_equal(trace[1].anchor, [trace[1].x, one.x])
    np.testing.assert_array_equal(trace[1].local[0], trace[1].x)
    np.testing.assert_allclose(trace[1].local[1], START - ETA * g[1], **EXACT)


def test_identity_has_no_memory_and_every_step_is_minibatch_sgd() -> None:
    gradients, x = noisy(7)
    for t, after in enumerate(synchronous(gradients, x, identity, range(1, 31), RATES, 30)[1:]):
        x = x - RATES[t] * np.mean([g(x, t) for g in gradients], axis=0)
        np.testing.assert_allclose(after.x, x, **EXACT)
        assert not after.memory.any()


def test_one_worker_syncing_always_is_memory_sgd() -> None:
    (gradient, *_), x = noisy(9)
    m = 0 * x
    for t, after in enumerate(synchronous([gradient], x, TOP_1, range(1, 31), RATES, 30)[1:]):
        u = m + RATES[t] * gradient(x, t)
        x, m = x - top_k(u, 1), u - top_k(u, 1)
        np.testing.assert_allclose([after.x, after.memory[0]], [x, m], **EXACT)


def test_a_shift_of_start_and_optima_shifts_the_run() -> None:
    shift = np.array([5.0, -3, 100])
    here = synchronous(quadratics(), START, TOP_1, SYNC_STEPS, [ETA] * 6, 6)
    there = synchronous(quadratics(shift), START + shift, TOP_1, SYNC_STEPS, [ETA] * 6, 6)
    np.testing.assert_allclose(there[-1].x, here[-1].x + shift, rtol=0, atol=1e-12)


def test_decay_and_resets_of_the_memory() -> None:
    """One worker at H = 1 with gradient 1 everywhere: u, what is kept of it and what a reset forgets, by hand."""
    ones = [lambda x, t: np.array([1.0, 2.0])]
    trace = synchronous(ones, np.zeros(2), TOP_1, {1, 2, 3}, [1.0] * 3, 3, decay=0.5, resets={2})
    # u = (1, 2); (.5 + 1, 2); (1, 2) again, as step 2 forgot its (1.5, 0)
    np.testing.assert_array_equal([after.sent[0] for after in trace[1:]], [[0, 2], [0, 2], [0, 2]])
    np.testing.assert_array_equal([after.memory[0] for after in trace[1:]], [[1, 0], [0, 0], [1, 0]])
    kept = synchronous(ones, np.zeros(2), TOP_1, {1, 2, 3}, [1.0] * 3, 3, decay=0.5)
    np.testing.assert_array_equal([after.memory[0] for after in kept[1:]], [[1, 0], [1.5, 0], [1.75, 0]])


def torch_run(make: Any, gradient: oracles.Gradient, start: Array, steps: int) -> Array:
    x = torch.tensor(start, requires_grad=True)
    optimizer = make([x])
    for t in range(steps):
        x.grad = torch.from_numpy(gradient(x.detach().numpy().copy(), t))
        optimizer.step()
    return x.detach().numpy()


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (sgd(0.9), lambda p: torch.optim.SGD(p, lr=ETA, momentum=0.9)),
        (sgd(0.9, nesterov=True), lambda p: torch.optim.SGD(p, lr=ETA, momentum=0.9, nesterov=True)),
        (sgd(0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=ETA, momentum=0.9, weight_decay=0.1)),
        (adamw((0.9, 0.95), weight_decay=0.1), lambda p: torch.optim.AdamW(p, ETA, (0.9, 0.95), weight_decay=0.1)),
    ],
)
def test_inner_rules_are_those_of_torch(rule: oracles.Rule, make: Any) -> None:
    (gradient, *_), start = noisy(11)
    ours = synchronous([gradient], start, identity, (), [ETA] * 12, 12, inner=rule)[-1].local[0]
    np.testing.assert_allclose(ours, torch_run(make, gradient, start, 12), **EXACT)


def test_outer_rules() -> None:
    """DiLoCo's is torch's Nesterov SGD on the drift; SlowMo is heavy ball in units of gradients, so eta cancels."""
    gradients, start = noisy(13)
    rate = [ETA] * 12
    for outer, make in (
        (outer_sgd(), lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)),
        (slow_mo(alpha=0.5, beta=0.6), lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.6)),
    ):
        trace = synchronous(gradients, start, identity, {4, 8, 12}, rate, 12, outer=outer)
        drifts = {}
        for n, step in enumerate((4, 8, 12)):
            drifts[n] = np.mean(list(trace[step].sent.values()), axis=0)
        by_torch = torch_run(make, lambda x, n, drifts=drifts: drifts[n], start, 3)
        np.testing.assert_allclose(trace[-1].x, by_torch, **EXACT)


def test_slow_mo_keeps_velocity_in_gradients_when_the_rate_drops() -> None:
    trace = synchronous([lambda x, t: np.ones(1)], np.zeros(1), identity, {1, 2}, [1.0, 0.1], 2, outer=slow_mo(1, 0.5))
    np.testing.assert_allclose([after.x[0] for after in trace], [0, -1, -1 - 0.1 * 1.5], **EXACT)


def test_outer_rate_one_without_momentum_is_local_sgd() -> None:
    gradients, start = noisy(15)
    plain = synchronous(gradients, start, identity, {5, 10}, RATES, 10)
    np.testing.assert_allclose(
        synchronous(gradients, start, identity, {5, 10}, RATES, 10, outer=outer_sgd(1, 0, False))[-1].x,
        plain[-1].x,
        **EXACT,
    )


def test_double_squeeze_is_the_engine_at_one_step_with_a_compressing_server() -> None:
    """With a fixed eta and compressors that commute with scaling, one memory is eta times the other."""
    gradients, start = noisy(17)
    up, down = partial(top_k, k=2), partial(sign_top_k, k=3)
    trace = synchronous(gradients, start, up, range(1, 21), [ETA] * 20, 20, down=down)
    for after, (x, e, _) in zip(trace, double_squeeze(gradients, start, up, down, ETA, 20), strict=True):
        np.testing.assert_allclose(after.x, x, **EXACT)
        np.testing.assert_allclose(after.memory, ETA * e, **EXACT)


def test_streaming_by_hand() -> None:
    """One worker, gradient -1, eta = 1, plain averaging, H = 4, two fragments, delay 1, alpha = .5."""
    trace = streaming(
        [lambda x, t: -np.ones(2)], np.zeros(2), [[0], [1]], 4, 1, 0.5, [1.0] * 6, 6, outer=oracles.average
    )
    # Fragment 0: captured after step 1 (drift -1), lands after step 2 at anchor 1; local 2 becomes 1.5.
    # Again captured after step 5 (1 - 4.5 = -3.5), lands after step 6 at anchor 4.5; local 5.5 becomes 5.
    assert [after.x[0] for after in trace] == [0, 0, 1, 1, 1, 1, 4.5]
    assert [after.local[0, 0] for after in trace] == [0, 1, 1.5, 2.5, 3.5, 4.5, 5]
    # Fragment 1: captured after step 3 (drift -3), lands after step 4 at anchor 3; local 4 becomes 3.5.
    assert [after.x[1] for after in trace] == [0, 0, 0, 0, 3, 3, 3]
    assert [after.local[0, 1] for after in trace] == [0, 1, 2, 3, 3.5, 4.5, 5.5]


def test_streaming_of_one_fragment_without_delay_is_diloco() -> None:
    gradients, start = noisy(19)
    whole = streaming(gradients, start, [range(7)], 5, 0, 0.0, RATES, 20, inner=adamw())
    assert equal(
        whole, synchronous(gradients, start, identity, range(5, 21, 5), RATES, 20, inner=adamw(), outer=outer_sgd())
    )


def test_tiles_and_their_transform() -> None:
    assert [tuple(s.stop - s.start for s in oracles.tiles(shape)[0]) for shape in ((64, 130), (7,), (128,), (67,))] == [
        (64, 26),
        (7,),
        (64,),
        (1,),
    ]
    x = np.random.default_rng(0).normal(size=(64, 130))
    y = oracles.dct(x)
    np.testing.assert_allclose(
        y[:64, 26:52], dct(dct(x[:64, 26:52], norm="ortho", axis=0), norm="ortho", axis=1), **EXACT
    )
    np.testing.assert_allclose(oracles.inverse_dct(y), x, **EXACT)
    np.testing.assert_allclose((y**2).sum(), (x**2).sum(), rtol=1e-12)
    assert oracles.kept_in_tiles(x, 3).sum() == 3 * 5


def test_demo_takes_the_mean_over_senders_and_drops_all_that_it_sent() -> None:
    """Two tiles of four; each worker's gradient is one basis vector per tile, so one coefficient says all."""
    basis = np.array([oracles.inverse_dct(np.eye(4)[i], 4) for i in range(4)])
    g = [np.concatenate([3 * basis[0], 5 * basis[1]]), np.concatenate([-1 * basis[0], 2 * basis[2]])]
    x, left, mean = oracles.demo_step(np.ones(8), g, [np.zeros(8)] * 2, 0.1, k=1, weight_decay=0.5, most=4)
    np.testing.assert_allclose(mean, 0.1 * np.concatenate([1 * basis[0], 5 * basis[1] + 2 * basis[2]]), **EXACT)
    np.testing.assert_allclose(left, np.zeros((2, 8)), **EXACT)
    np.testing.assert_allclose(x, 0.95 * np.ones(8) - 0.1 * np.sign(mean), **EXACT)
    _, left, _ = oracles.demo_step(x, g, [np.concatenate([np.zeros(4), basis[3]])] * 2, 0.1, k=1, decay=0.25, most=4)
    # In the second tile 0.25 from the memory meets 0.1 * 5 and 0.1 * 2 from the gradients; the greater one is sent.
    np.testing.assert_allclose(left[0], np.concatenate([np.zeros(4), 0.25 * basis[3]]), **EXACT)
    np.testing.assert_allclose(left[1], np.concatenate([np.zeros(4), 0.2 * basis[2]]), **EXACT)


def test_sparse_loco_over_workers_is_qsparse_with_a_decayed_memory() -> None:
    gradients, start = noisy(21, dimension=8)
    trace = synchronous(gradients, start, partial(top_k, k=2), {3, 6, 9}, RATES, 9, decay=0.95)
    memory = list(trace[0].memory)
    for step in (3, 6, 9):
        before = [
            row - RATES[step - 1] * g(row, step - 1) for g, row in zip(gradients, trace[step - 1].local, strict=True)
        ]
        x, memory = sparse_loco_step(trace[step - 1].x, before, memory, k=2, decay=0.95)
        np.testing.assert_allclose(x, trace[step].x, **EXACT)
        np.testing.assert_allclose(memory, trace[step].memory, **EXACT)


def test_sparse_loco_over_senders_by_hand() -> None:
    drifts = [np.array([-4.0, -1, 0]), np.array([-2.0, 0, -3])]
    x, memory = sparse_loco_step(np.zeros(3), drifts, [np.zeros(3)] * 2, k=1, decay=0.9, over_senders=True)
    np.testing.assert_array_equal(x, [-4, 0, -3])
    np.testing.assert_array_equal(memory, [[0, 1, 0], [2, 0, 0]])
    x, _ = sparse_loco_step(np.zeros(3), drifts, [np.zeros(3)] * 2, k=1, decay=0.9, learning_rate=0.5)
    np.testing.assert_array_equal(x, [-1, 0, -0.75])


def test_statistics_by_hand() -> None:
    """Mean 2, std 2: bins of width 3, so -2, 0 and 2 fall into 1, 2 and 3 and each is its bin's mean."""
    np.testing.assert_allclose(oracles.statistics(np.array([0.0, 2, 4])), [0, 2, 4], **EXACT)
    # Mean 2.5, variance 5/3: bins of 1.936; (-1.5, -.5, .5, 1.5) fall into 1, 2, 2, 3.
    np.testing.assert_allclose(oracles.statistics(np.array([1.0, 2, 3, 4])), [1, 2.5, 2.5, 4], **EXACT)
    # Variance 2, over n - 1: bins of 2.12, so both fall into 2; over n they would be 1.5 and keep them apart.
    np.testing.assert_allclose(oracles.statistics(np.array([-1.0, 1])), [0, 0], **EXACT)
    np.testing.assert_array_equal(oracles.statistics(np.full(3, 7.0)), [7, 7, 7])
    np.testing.assert_array_equal(oracles.statistics(np.array([7.0])), [7])
