"""PowerSGD at the edges: nothing, zeros, the smallest matrices, odd layouts; and every refusal."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from aggregate.power_sgd_oracle import EVERYTHING, FORMS, kept, low_rank, random, started
from samples import step
from thriftgrad import Key, PowerSGD, TensorSpec, simulate

EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


@EVERY_FORM
def test_nothing_to_do(form: dict[str, Any]) -> None:
    method = PowerSGD(**form)
    asked: list[Any] = []
    assert simulate([method.aggregate([], method.init([]), Key(0)) for _ in range(2)], asked.append) == [([], ())] * 2
    assert sum(len(each.traffic) for each in asked) == 0


@EVERY_FORM
def test_vectors_alone_are_averaged_in_one_round(form: dict[str, Any]) -> None:
    method, x = PowerSGD(**form, min_compression_rate=EVERYTHING), random(7)
    with pytest.warns(UserWarning, match="compresses none of the 2 tensors"):
        states = started(method, [x, x], 2)
    for i in range(4):
        asked: list[Any] = []
        means, states = step(method, [[x, -x], [3 * x, x]], states, Key(i), asked.append)
        torch.testing.assert_close(means[0][0], 2 * x)
        assert not means[0][1].any()
        assert [each.kind for each in asked if each.traffic] == ["AllReduce"]


@EVERY_FORM
def test_zeros_are_sent_as_zeros_and_heal(form: dict[str, Any]) -> None:
    method = PowerSGD(**form, min_compression_rate=EVERYTHING)
    zero, x = torch.zeros(5, 6), low_rank(5, 6, 1)
    states = started(method, [zero, x], 2)
    for i in range(4):
        means, states = step(method, [[zero, x]] * 2, states, Key(i))
        assert not means[0][0].any()
        factor = kept(states[0]).factor
        assert factor is None or (factor.isfinite().all() and (factor != 0).any(0).all())
    sent = torch.zeros(5, 6)
    for i in range(4, 10):
        means, states = step(method, [[x, zero]] * 2, states, Key(i))
        sent += means[0][0]
    assert (sent - 6 * x).norm() < 2 * x.norm()


@EVERY_FORM
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 3), (2, 1, 1), (1, 1, 1, 1)], ids=str)
def test_matrices_no_larger_than_the_rank_are_sent_whole(form: dict[str, Any], shape: tuple[int, ...]) -> None:
    """A basis of min(n, m) vectors on the smaller side spans everything, within two steps if it stands on one side."""
    method = PowerSGD(**(form | {"rank": 4}), min_compression_rate=EVERYTHING)
    x = random(*shape)
    states = started(method, [x], 2)
    sent = torch.zeros(shape)
    for i in range(6):
        means, states = step(method, [[x], [3 * x]], states, Key(i))
        sent += means[0][0]
    memory = kept(states[0]).memory
    assert memory.isfinite().all()
    if not method.alternating:
        torch.testing.assert_close(means[0][0], 2 * x, atol=1e-5, rtol=1e-5)
    assert (sent - 12 * x).norm() <= (4 * x.norm() if method.alternating else 1e-4)


@EVERY_FORM
@pytest.mark.parametrize("memory", ["local", "global", "none"])
def test_every_layout_is_the_same_tensor(form: dict[str, Any], memory: Any) -> None:
    """Channels last, a permutation, every other row, an expanded row: what models and DDP hand over."""
    image = random(8, 4, 3, 3)
    tensors = [
        image.to(memory_format=torch.channels_last),
        image.permute(3, 1, 0, 2),
        random(12, 5)[::2],
        random(5, 9).T,
        random(1, 7).expand(6, 7),
    ]
    plain = [x.contiguous() for x in tensors]
    given = [x.clone() for x in tensors]
    method = PowerSGD(**form, memory=memory, min_compression_rate=EVERYTHING)
    ours, theirs = started(method, tensors, 2), started(method, plain, 2)
    for i in range(4):
        means, ours = step(method, [tensors, tensors], ours, Key(i))
        expected, theirs = step(method, [plain, plain], theirs, Key(i))
        for a, b in zip(means[0], expected[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(tensors, given, strict=True))


@EVERY_FORM
@pytest.mark.parametrize("memory", ["local", "global", "none"])
def test_a_step_can_be_taken_back(form: dict[str, Any], memory: Any) -> None:
    """The state that a step was given says the same afterwards, so that it gives the same again."""
    method = PowerSGD(**form, memory=memory, min_compression_rate=EVERYTHING)
    tensors = [[random(6, 8, seed=10 * w), random(6, 8, seed=10 * w + 1)] for w in range(2)]
    states = started(method, tensors[0], 2)
    for i in range(4):
        before = [x.clone() for state in states for x in (kept(state).memory, kept(state).factor) if x is not None]
        means, after = step(method, tensors, states, Key(i))
        same = [x for state in states for x in (kept(state).memory, kept(state).factor) if x is not None]
        assert all(torch.equal(a, b) for a, b in zip(before, same, strict=True))
        again, _ = step(method, tensors, states, Key(i))
        assert all(torch.equal(a, b) for a, b in zip(means[0], again[0], strict=True))
        states = after


@EVERY_FORM
def test_bf16_parameters(form: dict[str, Any]) -> None:
    """As exact as their own type: what is sent and what is owed are what came, to a rounding of each estimate."""
    method = PowerSGD(**form, min_compression_rate=EVERYTHING)
    states, came, sent, largest = (
        started(method, [random(6, 8).bfloat16()], 2),
        torch.zeros(6, 8),
        torch.zeros(6, 8),
        0.0,
    )
    for i in range(8):
        tensors = [[random(6, 8, seed=2 * i + w).bfloat16()] for w in range(2)]
        means, states = step(method, tensors, states, Key(i))
        assert means[0][0].dtype == torch.bfloat16
        came += (tensors[0][0].float() + tensors[1][0].float()) / 2
        sent += means[0][0].float()
        largest = max(largest, means[0][0].abs().max().item())
    owed = (kept(states[0]).memory + kept(states[1]).memory) / 2
    torch.testing.assert_close(sent + owed, came, atol=8 * 2**-8 * largest, rtol=0)


def test_float64_keeps_what_factors_of_float32_cannot_say() -> None:
    """The memory is float64, so 1e-7 of a gradient is late and not lost."""
    method = PowerSGD(rank=2, min_compression_rate=EVERYTHING)
    x = random(6, 8).double() / 3
    states, sent = started(method, [x], 1), torch.zeros(6, 8, dtype=torch.float64)
    for i in range(30):
        means, states = step(method, [[x]], states, Key(i))
        sent += means[0][0]
    assert (sent + kept(states[0]).memory - 30 * x).norm() < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "PowerSGD: rank must be at least 1, got 0."),
        ({"power_iterations": 0}, "PowerSGD: power_iterations must be at least 1, got 0."),
        ({"residual_iterations": -2}, "PowerSGD: residual_iterations must be at least 1, got -2."),
        ({"min_compression_rate": -1.0}, "PowerSGD: min_compression_rate must be at least 0, got -1.0."),
        ({"min_compression_rate": float("nan")}, "PowerSGD: min_compression_rate must be at least 0, got nan."),
        ({"start_after": -1}, "PowerSGD: start_after must be at least 0, got -1."),
        ({"refresh_every": 0}, "PowerSGD: refresh_every must be at least 1, got 0."),
        (
            {"refresh": "exact", "refresh_every": 1},
            'PowerSGD: refresh="exact" with refresh_every=1 sends every tensor as it is in every step; refresh less '
            "often, or use AllReduce.",
        ),
        ({"check_every": 0}, "PowerSGD: check_every must be at least 1, got 0."),
        ({"memory": "mean"}, "PowerSGD: memory must be one of ('local', 'global', 'none'), got 'mean'."),
        ({"refresh": "svd"}, "PowerSGD: refresh must be one of ('random', 'exact'), got 'svd'."),
        (
            {"alternating": True, "power_iterations": 2},
            "PowerSGD: alternating=True is one product a step, so power_iterations=2 has no place in it; use "
            "residual_iterations.",
        ),
        (
            {"warm_start": False, "refresh_every": 10},
            "PowerSGD: refresh_every=10 has no effect with warm_start=False, which draws a new subspace at every step; "
            "leave one of them out.",
        ),
        ({"refresh": "exact"}, 'PowerSGD: refresh="exact" has no effect without refresh_every; give both or neither.'),
    ],
    ids=str,
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PowerSGD(**arguments)


def test_warns_where_nothing_is_compressed() -> None:
    message = (
        "PowerSGD(rank=3) compresses none of the 2 tensors: they are vectors, or too small for their rank to save 2.0 "
        "times; all travel as they are."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        PowerSGD(rank=3).init([TensorSpec((100,)), TensorSpec((4, 4), name="w")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": None}, "PowerSGD: rank must be an integer, got None."),
        ({"rank": 1.5}, "PowerSGD: rank must be an integer, got 1.5."),
        ({"power_iterations": True}, "PowerSGD: power_iterations must be an integer, got True."),
        ({"refresh_every": 2.0}, "PowerSGD: refresh_every must be an integer, got 2.0."),
    ],
)
def test_counts_are_integers(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        PowerSGD(**settings)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15, 1e20, 1e30])
@EVERY_FORM
def test_what_a_steady_gradient_becomes_does_not_depend_on_its_size(form: dict[str, Any], scale: float) -> None:
    """Q' is as long as the gradient; the next product with it must not be as long as its square."""
    method = PowerSGD(**form, min_compression_rate=0)
    shares = {}
    for size in (1.0, scale):
        x = random(20, 30) * size
        states = started(method, [x], 2)
        for i in range(6):
            before = states[0]
            means, states = step(method, [[x], [x]], states, Key(i))
            assert states[0] is not before
        shares[size] = float((means[0][0].double() / size).norm())
    assert shares[scale] == pytest.approx(shares[1.0], rel=0.02)


def test_a_large_step_is_paid_back_and_forgotten() -> None:
    method = PowerSGD(rank=2, min_compression_rate=0)
    states = started(method, [random(20, 30)], 1)
    for i in range(8):
        before = states[0]
        _, states = step(method, [[random(20, 30, seed=i) * (1e20 if i == 2 else 1)]], states, Key(i))
        assert states[0] is not before


@pytest.mark.parametrize("memory", ["local", "none"])
def test_an_exact_refresh_of_what_float32_cannot_hold(memory: Any) -> None:
    method = PowerSGD(rank=2, refresh="exact", refresh_every=2, memory=memory, min_compression_rate=0)
    x = random(6, 5).double() * 1e40
    means, _ = step(method, [[x]], started(method, [x], 1), Key(0))
    torch.testing.assert_close(means[0][0], x)


def test_vectors_that_an_exact_refresh_does_not_have_are_drawn() -> None:
    method = PowerSGD(rank=3, residual_iterations=2, refresh="exact", refresh_every=9, min_compression_rate=0)
    x = random(3, 8)
    _, states = step(method, [[x]], started(method, [x], 1), Key(0))
    factor = kept(states[0]).factor
    assert factor.shape == (8, 6)
    assert (factor != 0).any(0).all()


def test_a_state_keeps_nothing_of_its_neighbours() -> None:
    """The factor is a piece of a buffer in which all that is not compressed travels too."""
    method = PowerSGD(rank=1, alternating=True, memory="none", min_compression_rate=0)
    tensors = [random(4, 5), random(1000)]
    _, states = step(method, [tensors], started(method, tensors, 1), Key(0))
    factor = kept(states[0]).factor
    assert factor.untyped_storage().nbytes() == factor.nbytes
