"""The forms of PowerSGD against numpy, and linearity: many workers are one worker on the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aggregate.power_sgd_oracle import (
    EVERYTHING,
    FORMS,
    Oracle,
    drawn,
    kept,
    low_rank,
    random,
    started,
    wide,
)
from samples import step
from thriftgrad import Key, Ledger, PowerSGD
from thriftgrad.aggregate import TensorState

SHAPES = [(6, 8), (6, 8), (5, 4, 3), (7,)]
COMPRESSED = (0, 1, 2)
MEMORIES = ("local", "global", "none")


def inputs(i: int, workers: int) -> list[list[Tensor]]:
    return [[random(*s, seed=100 * i + 10 * w + at) for at, s in enumerate(SHAPES)] for w in range(workers)]


def on_the_mean(*states: TensorState) -> TensorState:
    """The state of one worker in place of several: the mean of their memories, the factor of them all."""
    spec, inner = states[0]
    if inner.memory is not None:
        inner = inner._replace(memory=torch.stack([each.inner.memory for each in states]).mean(0))
    return TensorState(spec, inner)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_many_workers_are_one_worker_on_the_mean(form: dict[str, Any], memory: Any) -> None:
    method = PowerSGD(**form, memory=memory, min_compression_rate=EVERYTHING)
    many, one = (started(method, inputs(0, 1)[0], n) for n in (4, 1))
    for i in range(5):
        one = [tuple(map(on_the_mean, *many))] if i else one  # so that a step's roundings are not carried into the next
        tensors = inputs(i, 4)
        mean = [torch.stack(each).mean(0) for each in zip(*tensors, strict=True)]
        joint, many = step(method, tensors, many, Key(i))
        alone, one = step(method, [mean], one, Key(i))
        for a, b in zip(joint[0], alone[0], strict=True):
            assert (a - b).norm() <= (1e-6 if i == 0 else 3e-5) * b.norm()
        for at in COMPRESSED:
            if memory == "none":
                assert all(kept(state, at).memory is None for state in [*many, *one])
                continue
            mean_memory = torch.stack([kept(state, at).memory for state in many]).mean(0)
            assert (mean_memory - kept(one[0], at).memory).norm() <= 3e-5 * mean_memory.norm()


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_both_memories_give_one_trajectory(form: dict[str, Any]) -> None:
    """The estimate depends on the mean of the memories alone; each worker's own differ."""
    methods = [PowerSGD(**form, memory=m, min_compression_rate=EVERYTHING) for m in MEMORIES]
    states = [started(method, inputs(0, 1)[0], 3) for method in methods]
    for i in range(20):
        means = []
        for at, method in enumerate(methods):
            found, states[at] = step(method, inputs(i, 3), states[at], Key(i))
            means.append(found[0])
        for mine, theirs, unfed in zip(*means, strict=True):
            # Gradients without any trend carry a rounding far: 1e-6 at once, a hundredth after 20 steps.
            assert (mine - theirs).norm() <= (1e-4 if i < 4 else 0.03) * mine.norm()
            if i == 16 and mine.dim() > 1:
                assert (mine - unfed).norm() > 0.3 * mine.norm()
        if i == 16:
            assert (kept(states[0][0]).memory - kept(states[1][0]).memory).norm() > 1


def test_the_mean_of_independent_one_sided_products_differs_as_soon_as_their_factors_do() -> None:
    """The first product has one factor for all, and the mean of projections on it is the projection of the mean."""
    method = PowerSGD(rank=1, alternating=True, min_compression_rate=EVERYTHING)
    apart = [started(method, [random(6, 8)], 1) for _ in range(4)]
    joint = started(method, [random(6, 8)], 4)
    for i, differs in enumerate((False, True)):
        tensors = [[random(6, 8, seed=10 * i + w)] for w in range(4)]
        means, joint = step(method, tensors, joint, Key(i))
        alone = []
        for w in range(4):
            own, apart[w] = step(method, [tensors[w]], apart[w], Key(i))
            alone.append(own[0][0])
        distance = (torch.stack(alone).mean(0) - means[0][0]).norm() / means[0][0].norm()
        assert distance > 0.3 if differs else distance < 1e-6


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    "form",
    [
        {"power_iterations": 3},
        {"residual_iterations": 2},
        {"residual_iterations": 3, "power_iterations": 2},
        {"alternating": True},
        {"alternating": True, "residual_iterations": 2},
        {"alternating": True, "residual_iterations": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(9, 7), (8, 3, 2, 2)], ids=str)
def test_each_step_is_numpys(form: dict[str, Any], rank: int, shape: tuple[int, ...]) -> None:
    method = PowerSGD(rank=rank, **form, min_compression_rate=EVERYTHING)
    states = started(method, [random(*shape)], 3)
    n, m = wide(random(*shape)).shape
    columns = rank if method.alternating else rank * method.residual_iterations
    oracle = Oracle(3, (n, m), drawn(m, columns, Key(0)), **form)
    for i in range(5):
        tensors = [[random(*shape, seed=10 * i + worker)] for worker in range(3)]
        means, states = step(method, tensors, states, Key(i))
        np.testing.assert_allclose(wide(means[0][0]), oracle.step([wide(x[0]) for x in tensors]), atol=1e-4)
        assert all(torch.equal(means[0][0], other[0]) for other in means)
        for state, memory in zip(states, oracle.memories, strict=True):
            np.testing.assert_allclose(wide(kept(state).memory), memory, atol=1e-4)
        np.testing.assert_allclose(wide(kept(states[0]).factor), oracle.factor, atol=5e-4)


def errors(method: PowerSGD, x: Tensor, steps: int) -> list[float]:
    """Relative errors step by step on one fixed matrix."""
    states, found = started(method, [x], 1), []
    for i in range(steps):
        means, states = step(method, [[x]], states, Key(i))
        found.append(((means[0][0] - x).norm() / x.norm()).item())
    return found


def decaying() -> Tensor:
    left, right = torch.linalg.qr(random(40, 30))[0], torch.linalg.qr(random(30, 30, seed=1))[0]
    return left @ torch.diag(0.8 ** torch.arange(30.0)) @ right.T


def test_power_iterations_are_warm_steps_on_one_matrix() -> None:
    """k refinements in one step from a cold start are what k steps find from a warm one."""
    x = decaying()
    warm = errors(PowerSGD(rank=2, memory="none", min_compression_rate=EVERYTHING), x, 5)
    for k in (1, 2, 3, 5):
        once = errors(PowerSGD(power_iterations=k, memory="none", min_compression_rate=EVERYTHING), x, 1)
        assert once[0] == pytest.approx(warm[k - 1], rel=1e-5)


def test_a_warm_start_is_at_the_optimum_within_a_thousandth_after_five_steps() -> None:
    """Singular values 0.8^i leave sqrt(0.64^2) = 0.64 of a matrix to what is not its best rank 2."""
    optimum = 0.64
    warm = errors(PowerSGD(rank=2, memory="none", min_compression_rate=EVERYTHING), decaying(), 8)
    assert warm == sorted(warm, reverse=True)
    assert warm[0] > 1.05 * optimum
    assert optimum - 1e-4 < warm[4] < 1.01 * optimum
    assert optimum - 1e-4 < warm[7] < 1.001 * optimum


@pytest.mark.parametrize("rank", [1, 2])
def test_blocks_add_their_ranks(rank: int) -> None:
    """Each block takes what the ones before it left: two of rank r find rank 2 r in one step, one does not."""
    x = low_rank(9, 12, 2 * rank)
    method = PowerSGD(rank=rank, residual_iterations=2, min_compression_rate=EVERYTHING)
    assert errors(method, x, 1)[0] < 1e-5
    assert errors(PowerSGD(rank=rank, min_compression_rate=EVERYTHING), x, 1)[0] > 0.1
    refined = PowerSGD(rank=rank, power_iterations=2, min_compression_rate=EVERYTHING)
    assert errors(refined, x, 1)[0] > 0.1


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_left_product_completes_the_right_one_before_it(k: int) -> None:
    """So k products from alternating sides send rank ceil(k / 2), and two are one two-sided block."""
    x = decaying()
    method = PowerSGD(rank=1, alternating=True, residual_iterations=k, min_compression_rate=EVERYTHING)
    means, _ = step(method, [[x]], started(method, [x], 1), Key(0))
    assert np.linalg.matrix_rank(wide(means[0][0]), rtol=1e-5) == -(-k // 2)
    if k == 2:
        both = PowerSGD(rank=1, min_compression_rate=EVERYTHING)
        torch.testing.assert_close(
            means[0][0], step(both, [[x]], started(both, [x], 1), Key(0))[0][0][0], atol=1e-6, rtol=0
        )


def test_four_one_sided_products_of_rank_one_find_rank_two() -> None:
    method = PowerSGD(rank=1, alternating=True, residual_iterations=4, min_compression_rate=EVERYTHING)
    assert max(errors(method, low_rank(9, 12, 2), 10)) < 1e-4


def test_the_one_sided_form_finds_a_low_rank_in_two_steps() -> None:
    """From the left its factor has seen the matrix; from the right, at first, it is random."""
    method = PowerSGD(rank=2, alternating=True, memory="none", min_compression_rate=EVERYTHING)
    first, second, third = errors(method, low_rank(9, 12, 2), 3)
    assert first > 0.5
    assert second < 1e-5
    assert third < 1e-5


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_two_sided_bytes_and_rounds(rank: int, k: int) -> None:
    """r (n + m) floats a block in two all-reduces each; the vector rides with the first."""
    x, vector = random(9, 7), random(5)
    for power_iterations in (1, 2):
        method = PowerSGD(
            rank=rank, residual_iterations=k, power_iterations=power_iterations, min_compression_rate=EVERYTHING
        )
        ledger = Ledger()
        step(method, [[x, vector]] * 2, started(method, [x, vector], 2), Key(0), ledger)
        assert ledger.payload_up_bytes == 4 * (power_iterations * k * rank * (9 + 7) + 5)
        assert dict(ledger.requests) == {"AllReduce": 2 * k * power_iterations}


@pytest.mark.parametrize(("k", "per_step"), [(1, [7, 9, 7]), (2, [16, 16, 16]), (3, [23, 25, 23])])
def test_one_sided_bytes_and_rounds(k: int, per_step: list[int]) -> None:
    """From the right r n floats, from the left r m, one all-reduce each, by turns across steps."""
    x, vector = random(7, 9), random(5)
    method = PowerSGD(rank=2, alternating=True, residual_iterations=k, min_compression_rate=EVERYTHING)
    states = started(method, [x, vector], 2)
    for i, sides in enumerate(per_step):
        ledger = Ledger()
        _, states = step(method, [[x, vector]] * 2, states, Key(i), ledger)
        assert ledger.payload_up_bytes == 4 * (2 * sides + 5)
        assert dict(ledger.requests) == {"AllReduce": k}
    assert method.floats(states[0][0].spec) == k * 2 * (7 + 9) / 2


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_equal_shapes_do_not_meet(form: dict[str, Any]) -> None:
    """Stacks of two and of four, of very different sizes: each tensor's estimate is the one it has alone."""
    method = PowerSGD(**form, min_compression_rate=EVERYTHING)
    for stack in (2, 4):
        sizes = [10.0 ** (4 * at - 6) for at in range(stack)]
        together = started(method, [random(8, 5)] * stack, 2)
        alone = [[(state[at],) for state in together] for at in range(stack)]
        for i in range(4):
            tensors = [[s * random(8, 5, seed=50 * i + 10 * w + at) for at, s in enumerate(sizes)] for w in range(2)]
            means, together = step(method, tensors, together, Key(i))
            for at in range(stack):
                own, alone[at] = step(method, [[mine[at]] for mine in tensors], alone[at], Key(i))
                assert (own[0][0] - means[0][at]).norm() <= 3e-6 * own[0][0].norm()


@pytest.mark.parametrize("stack", [2, 4])
@pytest.mark.parametrize("alternating", [False, True])
def test_stacks_of_rank_one_are_sent_whole(stack: int, alternating: bool) -> None:
    """One norm over a whole stack would keep a fraction of each: 0.024 and 0.976 of two."""
    tensors = [low_rank(6, 8, 1, seed=at) for at in range(stack)]
    method = PowerSGD(rank=1, alternating=alternating, memory="none", min_compression_rate=EVERYTHING)
    states = started(method, tensors, 1)
    for i in range(2):
        means, states = step(method, [tensors], states, Key(i))
        if alternating and i == 0:
            continue  # its factor is still random
        for mean, x in zip(means[0], tensors, strict=True):
            assert (mean - x).norm() <= 1e-5 * x.norm()
