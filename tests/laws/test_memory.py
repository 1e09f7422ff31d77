"""Error feedback: nothing is lost, nothing bad enters, and the state is a value."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import zoo
from samples import compressed, gradients, same_bits, same_leaf, specs, step, vector
from thriftgrad import QSGD, Cast, ErrorFeedback, Identity, Key, RandomK, Shrink, Sign, TensorSpec, TopK
from thriftgrad.compress import Vote
from thriftgrad.core import Compressor
from thriftgrad.core.feedback import Memory
from thriftgrad.core.tree import leaves

EVERY_FEEDBACK = pytest.mark.parametrize(
    "feedback", [each for each in zoo.COMPRESSORS if isinstance(each, ErrorFeedback)], ids=repr
)
EVERY = pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)


@EVERY_FEEDBACK
def test_sent_plus_memory_is_the_input(feedback: ErrorFeedback) -> None:
    """Exactly: memory = y - sent in float32, so that sent + memory misses y by no more than a rounding."""
    before = torch.zeros(4, 15)
    state = feedback.init(TensorSpec((4, 15)))
    for i, kind in enumerate(("gaussian", "heavy", "flat", "one-hot")):
        x = vector(kind, 60, i).view(4, 15)
        y = x + feedback.decay * before
        payload, state = feedback.compress(x, state, Key(i))
        sent = feedback.decompress(payload)
        assert same_bits(state.memory, y - sent)
        torch.testing.assert_close(sent + state.memory, y, rtol=2e-7, atol=2e-7 * y.abs().max().item())
        before = state.memory


@EVERY_FEEDBACK
def test_it_sends_what_the_inner_compressor_makes_of_input_plus_memory(feedback: ErrorFeedback) -> None:
    x, memory, key = vector("gaussian", 60), vector("heavy", 60), Key(8)
    payload, _ = feedback.compress(x, Memory(memory, feedback.compressor.init(TensorSpec.of(x))), key)
    expected = compressed(feedback.compressor, x + feedback.decay * memory, key)
    assert same_bits(feedback.decompress(payload), expected)


@EVERY_FEEDBACK
def test_memory_stays_bounded(feedback: ErrorFeedback) -> None:
    """|e| <= 2 sqrt(1 - delta) / delta max|x|, here with the delta claimed for this length."""
    n = 30
    delta = feedback.compressor.contraction(n)
    assert delta is not None
    state, largest = feedback.init(TensorSpec((n,))), 0.0
    for i in range(60):
        x = vector("gaussian", n, i)
        largest = max(largest, x.norm().item())
        _, state = feedback.compress(x, state, Key(i))
        assert state.memory.norm() <= 2 * (1 - delta) ** 0.5 / delta * largest


def test_without_a_contraction_the_memory_would_explode() -> None:
    """Why the constructor refuses: the same recursion around an unbiased rescaling."""
    compressor, memory = RandomK(k=3), torch.zeros(30)
    for i in range(60):
        y = vector("gaussian", 30, i) + memory
        memory = y - compressed(compressor, y, Key(i))
    assert memory.norm() > 1e6


@EVERY_FEEDBACK
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_memory_is_float32_or_float64_whatever_the_gradient_is(feedback: ErrorFeedback, dtype: torch.dtype) -> None:
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    x = vector("gaussian", 40).to(dtype)
    payload, state = feedback.compress(x, feedback.init(TensorSpec.of(x)), Key(0))
    assert state.memory.dtype == kept
    assert feedback.decompress(payload).dtype == dtype
    sent = compressed(feedback.compressor, x.to(kept), Key(0))
    assert same_bits(state.memory, x.to(kept) - sent)


@EVERY_FEEDBACK
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nothing_bad_enters_the_memory(feedback: ErrorFeedback, bad: float) -> None:
    _, state = feedback.compress(vector("gaussian", 40), feedback.init(TensorSpec((40,))), Key(0))
    x = vector("gaussian", 40, 1)
    x[11] = bad
    _, after = feedback.compress(x, state, Key(1))
    assert all(same_leaf(a, b) for a, b in zip(leaves(after), leaves(state), strict=True))


def test_a_sum_beyond_float32_does_not_enter_the_memory() -> None:
    feedback = ErrorFeedback(TopK(k=1))
    huge = torch.full((3,), 3e38)
    _, state = feedback.compress(huge, feedback.init(TensorSpec((3,))), Key(0))
    payload, after = feedback.compress(huge, state, Key(1))
    assert not feedback.decompress(payload).isfinite().all()
    assert torch.equal(after.memory, state.memory)


@EVERY
def test_a_saved_state_continues_as_if_it_had_not_been_saved(compressor: Compressor[Any, Any]) -> None:
    state = compressor.init(TensorSpec((40,)))
    for i in range(2):
        _, state = compressor.compress(vector("gaussian", 40, i), state, Key(i))
    loaded = pickle.loads(pickle.dumps(state))
    x = vector("gaussian", 40, 9)
    (one, state_one), (two, state_two) = compressor.compress(x, loaded, Key(9)), compressor.compress(x, state, Key(9))
    assert same_bits(compressor.decompress(one), compressor.decompress(two))
    assert all(same_leaf(a, b) for a, b in zip(leaves(state_one), leaves(state_two), strict=True))


def test_decay_forgets() -> None:
    kept, state = 0.0, ErrorFeedback(TopK(k=1), decay=0.5).init(TensorSpec((2,)))
    for _ in range(3):
        _, state = ErrorFeedback(TopK(k=1), decay=0.5).compress(torch.tensor([8.0, 1.0]), state, Key(0))
        kept = 1.0 + 0.5 * kept
        assert state.memory.tolist() == [0.0, kept]


@pytest.mark.parametrize(
    "compressor",
    [
        RandomK(k=3),
        RandomK(fraction=0.25),
        QSGD(bits=4),
        Vote(),
        Sign(scaled=False),
        Cast("fp16"),
        ErrorFeedback(TopK(k=1)),
    ],
    ids=repr,
)
def test_feedback_needs_a_contraction(compressor: Compressor[Any, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"needs a contraction, .* claims none, so its memory could grow .* use Shrink"
    ):
        ErrorFeedback(compressor)


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.5, float("nan")])
def test_decay_must_lie_in_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay must lie in \(0, 1\], got {decay}"):
        ErrorFeedback(TopK(k=1), decay=decay)


@pytest.mark.parametrize(
    "compressor", [TopK(k=1), Sign(), ErrorFeedback(TopK(k=1)), TopK(k=3) >> QSGD(bits=4)], ids=repr
)
def test_shrink_needs_an_unbiased_compressor(compressor: Compressor[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"Shrink needs an unbiased compressor .* shrink the unbiased stage alone"):
        Shrink(compressor)


def test_a_lossless_compressor_leaves_no_memory() -> None:
    _, state = ErrorFeedback(Identity()).compress(
        vector("heavy"), ErrorFeedback(Identity()).init(TensorSpec((400,))), Key(0)
    )
    assert not state.memory.any()


@pytest.mark.parametrize("aggregator", zoo.AGGREGATORS, ids=repr)
def test_the_state_that_was_given_stays_as_it_was(aggregator: Any) -> None:
    """A step can be taken back: the same state, given again, gives the same estimates and the same next state."""
    states = [aggregator.init(specs()) for _ in range(2)]
    _, states = step(aggregator, gradients(2, 0), states, Key(0))
    kept = pickle.dumps(states)
    first, after = step(aggregator, gradients(2, 1), states, Key(1))
    assert pickle.dumps(states) == kept
    again, after_again = step(aggregator, gradients(2, 1), states, Key(1))
    assert all(same_bits(a, b) for a, b in zip(first[0], again[0], strict=True))
    for one, other in zip(leaves(tuple(after)), leaves(tuple(after_again)), strict=True):
        assert same_bits(one, other) if isinstance(one, torch.Tensor) else one == other
