"""What PowerSGD remembers: which rest, in which type, how large it grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aggregate.power_sgd_oracle import EVERYTHING, FORMS, changed, kept, low_rank, random, started
from samples import step
from thriftgrad import Key, PowerSGD

WORKERS = 4


@pytest.mark.parametrize(
    ("memory", "norms"), [("local", (2.840188, 2.581989)), ("global", (3.0, 2.756810))], ids=["local", "global"]
)
def test_golden_trace(memory: Any, norms: tuple[float, float]) -> None:
    """Two workers, rank 1, worked by hand: the estimate is one, the rests are two."""
    one = torch.tensor([[2.0, 0, 1], [0, 1, 0], [1, 0, 3], [0, 2, 0]])
    two = torch.tensor([[0.0, 1, 1], [2, 1, 0], [1, 2, 1], [0, 0, 2]])
    method = PowerSGD(rank=1, memory=memory, min_compression_rate=EVERYTHING)
    q = torch.tensor([[1.0], [0], [1]])
    states = [changed(state, factor=q) for state in started(method, [one], 2)]
    means, after = step(method, [[one], [two]], states, Key(0))
    p = torch.tensor([[2.0], [1], [3], [1]]) / 15**0.5
    torch.testing.assert_close(p.T, torch.tensor([[0.516398, 0.258199, 0.774597, 0.258199]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept(after[0]).factor, torch.tensor([[6.0], [6], [9]]) / 15**0.5, atol=2e-6, rtol=0)
    torch.testing.assert_close(means[0][0], p @ torch.tensor([[6.0, 6, 9]]) / 15**0.5, atol=2e-6, rtol=0)
    assert ((one + two) / 2 - means[0][0]).norm().item() == pytest.approx(1.431782, abs=1e-5)
    assert [kept(state).memory.norm().item() for state in after] == pytest.approx(norms, abs=1e-5)


def iid(worker: int, i: int) -> Tensor:
    return random(8, 6, seed=WORKERS * i + worker)


def heterogeneous(worker: int, i: int) -> Tensor:
    """Each worker's own gradient, twice as large as its noise."""
    return 2 * random(8, 6, seed=10**6 + worker) + iid(worker, i)


def largest(memory: Any, gradient: Callable[[int, int], Tensor], marks: tuple[int, ...]) -> list[float]:
    """The largest memory of a worker after so many steps."""
    method = PowerSGD(rank=1, memory=memory, min_compression_rate=EVERYTHING, check_every=None)
    states, found = started(method, [random(8, 6)], WORKERS), []
    for i in range(marks[-1]):
        _, states = step(method, [[gradient(w, i)] for w in range(WORKERS)], states, Key(i))
        if i + 1 in marks:
            found.append(max(kept(state).memory.norm().item() for state in states))
    return found


def test_memories_against_the_mean_walk_at_random() -> None:
    """Four times the steps: a random walk is twice as far, a memory of what was really not sent stays."""
    early, late = largest("global", iid, (50, 200))
    assert 1.6 < late / early < 2.5
    early, late = largest("local", iid, (50, 200))
    assert 0.6 < late / early < 1.5


def test_memories_against_the_mean_grow_without_bound_where_workers_differ() -> None:
    """Four times the steps: four times as far."""
    early, late = largest("global", heterogeneous, (50, 200))
    assert 3.6 < late / early < 4.1
    early, late = largest("local", heterogeneous, (50, 200))
    assert 0.4 < late / early < 2.2


def unsent(memory: Any, rounded: bool) -> float:
    """How far the estimates of 200 steps are from the gradients' sum, beyond what memories say they owe."""
    method = PowerSGD(rank=1, memory=memory, min_compression_rate=EVERYTHING, check_every=None)
    states, came, sent = started(method, [random(8, 6).bfloat16()], WORKERS), torch.zeros(8, 6), torch.zeros(8, 6)
    for i in range(200):
        tensors = [[heterogeneous(w, i).bfloat16()] for w in range(WORKERS)]
        means, states = step(method, tensors, states, Key(i))
        came += torch.stack([mine[0].float() for mine in tensors]).mean(0)
        sent += means[0][0].float()
        if rounded:
            states = [changed(each, memory=kept(each).memory.bfloat16().float()) for each in states]
    owed = torch.stack([kept(state).memory for state in states]).mean(0)
    return float((came - sent - owed).norm() / came.norm())


def test_memories_of_bf16_gradients_are_float32_so_both_lose_nothing() -> None:
    """Rounded to bf16, memories that grow lose what is small beside them; ours do not round."""
    for memory in ("local", "global"):
        assert unsent(memory, rounded=False) < 0.003  # the estimates' own bf16
    assert unsent("local", rounded=True) < 0.01
    assert unsent("global", rounded=True) > 3 * unsent("local", rounded=True)


@pytest.mark.parametrize("memory", ["local", "global"])
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_sent_and_mean_memory_are_all_that_came(form: dict[str, Any], memory: Any) -> None:
    method = PowerSGD(**form, memory=memory, min_compression_rate=EVERYTHING)
    states, came, sent = started(method, [random(6, 5)], 3), torch.zeros(6, 5), torch.zeros(6, 5)
    for i in range(12):
        tensors = [[random(6, 5, seed=3 * i + w)] for w in range(3)]
        means, states = step(method, tensors, states, Key(i))
        came += torch.stack([mine[0] for mine in tensors]).mean(0)
        sent += means[0][0]
    owed = torch.stack([kept(state).memory for state in states]).mean(0)
    torch.testing.assert_close(sent + owed, came, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_without_memory_a_cold_step_knows_nothing_of_others(form: dict[str, Any]) -> None:
    method = PowerSGD(**(form | {"refresh_every": None, "refresh": "random"}), memory="none", min_compression_rate=0)
    x = random(6, 5)
    states = started(method, [x], 2)
    for i in range(5):
        _, states = step(method, [[random(6, 5, seed=2 * i + w)] for w in range(2)], states, Key(i))
    assert kept(states[0]).memory is None
    drawn_anew = [changed(state, factor=None) for state in states]
    later, _ = step(method, [[x], [x]], drawn_anew, Key(9))
    fresh = [changed(state, step=5) for state in started(method, [x], 2)]
    first, _ = step(method, [[x], [x]], fresh, Key(9))
    assert torch.equal(later[0][0], first[0][0])
    if not method.warm_start:
        assert kept(states[0]).factor is None


@pytest.mark.parametrize("memory", ["local", "global", "none"])
def test_what_is_not_compressed_has_no_memory(memory: Any) -> None:
    """PyTorch's hook keeps one of vectors too, which walks away: 7 after 400 steps."""
    method = PowerSGD(rank=1, memory=memory)
    tensors = [random(20, 20), random(30), random(3, 3)]
    states = started(method, tensors, 2)
    for i in range(3):
        given = [[x + random(*x.shape, seed=10 * i + w) for x in tensors] for w in range(2)]
        means, states = step(method, given, states, Key(i))
        for at in (1, 2):
            torch.testing.assert_close(means[0][at], (given[0][at] + given[1][at]) / 2, atol=1e-6, rtol=0)
            assert kept(states[0], at)[1:] == (None, None)
    assert (kept(states[0]).memory is None) == (memory == "none")


@pytest.mark.parametrize("memory", ["local", "global", "none"])
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_before_it_starts_nothing_is_owed(form: dict[str, Any], memory: Any) -> None:
    """And the first step that compresses is the first step of a run without ``start_after``."""
    later = PowerSGD(**(form | {"start_after": 6}), memory=memory, min_compression_rate=EVERYTHING)
    states = started(later, [random(6, 5)], 2)
    for i in range(6):
        tensors = [[random(6, 5, seed=2 * i + w)] for w in range(2)]
        means, states = step(later, tensors, states, Key(i))
        torch.testing.assert_close(means[0][0], (tensors[0][0] + tensors[1][0]) / 2, atol=1e-6, rtol=0)
        assert kept(states[0]).memory is None or not kept(states[0]).memory.any()
        assert kept(states[0]).factor is None
        assert kept(states[0]).step == i + 1
    x = random(6, 5, seed=77)
    at_once = PowerSGD(**(form | {"start_after": 0}), memory=memory, min_compression_rate=EVERYTHING)
    ours, _ = step(later, [[x], [-2 * x]], states, Key(7))
    theirs, _ = step(at_once, [[x], [-2 * x]], started(at_once, [x], 2), Key(7))
    torch.testing.assert_close(ours[0][0], theirs[0][0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory", ["local", "global", "none"])
@pytest.mark.parametrize("alternating", [False, True])
def test_types(dtype: torch.dtype, memory: Any, alternating: bool) -> None:
    """Factors are float32, memories float32 or, of float64, float64; products are never made in half precision."""
    x = low_rank(30, 20, 2).to(dtype)
    method = PowerSGD(rank=2, memory=memory, alternating=alternating, min_compression_rate=EVERYTHING)
    states = started(method, [x], 2)
    for i in range(2):
        means, states = step(method, [[x], [x]], states, Key(i))
    inner = kept(states[0])
    assert means[0][0].dtype == dtype
    assert inner.factor.dtype == torch.float32
    assert memory == "none" or inner.memory.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if memory == "none":
        # Rank 2 but for the rounding of x itself, and one more for the estimate's: 2^-9 each, at most.
        own = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 2e-6)
        assert (means[0][0] - x).double().norm() <= 1.5 * own * x.double().norm()


def test_a_tensor_does_not_meet_one_of_another_type() -> None:
    """Equal shapes of two types are not one batch: each estimate is the one it has alone."""
    half, single = random(8, 6).bfloat16(), random(8, 6, seed=1)
    method = PowerSGD(rank=2, memory="none", min_compression_rate=EVERYTHING)
    states = started(method, [half, single], 2)
    both, _ = step(method, [[half, single]] * 2, states, Key(0))
    alone, _ = step(method, [[half]] * 2, [state[:1] for state in states], Key(0))
    assert both[0][0].dtype == torch.bfloat16
    assert both[0][1].dtype == torch.float32
    assert torch.equal(both[0][0], alone[0][0])
