"""A warm-up is its stages one after the other, and both ends know which."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samples import gradients, label, same_bits, specs, step, vector
from thriftgrad import (
    ALQ,
    QSGD,
    AllGather,
    ErrorFeedback,
    Key,
    ParameterServer,
    PayloadError,
    RandomK,
    Shrink,
    Sign,
    TensorSpec,
    TopK,
    WarmUp,
    wire,
)
from thriftgrad.compress.adaptive import adapted_levels

STAGES = (TopK(fraction=0.5), TopK(k=9) >> Sign(), TopK(k=2))
N = 60


@pytest.mark.parametrize("every", [1, 3])
def test_each_stage_has_its_steps_and_its_own_bytes(every: int) -> None:
    compressor = WarmUp(STAGES, every)
    state = compressor.init(TensorSpec((N,)))
    for i in range(5 * every):
        x, stage = vector("heavy", N, i), STAGES[min(i // every, 2)]
        shared = compressor.shared(state)
        payload, state = compressor.compress(x, state, Key(i))
        expected, _ = stage.compress(x, stage.init(TensorSpec((N,))), Key(i))
        assert same_bits(compressor.decompress(payload), stage.decompress(expected))
        assert payload.nbytes == expected.nbytes == compressor.layout(TensorSpec((N,)), shared).nbytes
        message = wire.pack(payload)
        assert int(message[3]) == 1 + min(i // every, 2)
        again = wire.unpack(message, compressor, TensorSpec((N,)), shared)
        assert same_bits(compressor.decompress(again), compressor.decompress(payload))


def test_a_message_of_another_stage_is_refused() -> None:
    compressor = WarmUp((TopK(k=3), Sign(), TopK(k=3)), every=1)
    state, spec = compressor.init(TensorSpec((N,))), TensorSpec((N,))
    first, state = compressor.compress(vector("gaussian", N), state, Key(0))
    with pytest.raises(PayloadError, match="packed with levels of version 1, and version 2 is held here; bring all"):
        wire.unpack(wire.pack(first), compressor, spec, compressor.shared(state))
    _, state = compressor.compress(vector("gaussian", N), state, Key(1))
    with pytest.raises(PayloadError, match="packed with levels of version 1, and version 3 is held here"):
        wire.unpack(wire.pack(first), compressor, spec, compressor.shared(state))  # of the same size


@pytest.mark.parametrize(
    "make", [AllGather, lambda c: ParameterServer(c, TopK(k=1)), lambda c: ParameterServer(c, c)], ids=label
)
def test_a_worker_that_has_fallen_behind_is_told(make: Any) -> None:
    method = make(WarmUp((TopK(k=3), TopK(k=2)), every=1))
    start = [method.init(specs()) for _ in range(2)]
    _, ahead = step(method, gradients(2), start, Key(0))
    with pytest.raises((PayloadError, RuntimeError), match=r"levels of version|workers disagree"):
        step(method, gradients(2, 1), [ahead[0], start[1]], Key(1))


@pytest.mark.parametrize("world", [1, 3])
def test_both_directions_of_a_server_change_at_the_same_step(world: int) -> None:
    down = WarmUp((TopK(fraction=1.0), TopK(k=1)), every=2)
    method = ParameterServer(ErrorFeedback(WarmUp(STAGES, every=1)), down)
    states = [method.init(specs()) for _ in range(world)]
    for i in range(4):
        means, states = step(method, gradients(world, i), states, Key(i))
        assert {int((x != 0).sum()) for mine in means for x in mine} == {1} or i < 2
        assert [entry.inner.down.step for mine in states for entry in mine] == [i + 1] * 6 * world


def test_levels_are_fitted_in_the_stage_that_has_them() -> None:
    stages = (TopK(k=9), Shrink(ALQ(bits=3, bucket=16, update_at=(0,), update_every=None)))
    method = AllGather(WarmUp(stages, every=2))
    states = [method.init(specs()) for _ in range(2)]
    versions = []
    for i in range(4):
        _, states = step(method, gradients(2, i), states, Key(i))
        versions.append([levels.version for levels in adapted_levels(tuple(states[0]))])
    assert versions == [[1] * 6, [1] * 6, [2] * 6, [2] * 6]


def test_it_claims_the_least_of_its_stages() -> None:
    compressor = WarmUp(STAGES, every=1)
    assert compressor.contraction(100) == pytest.approx(min(0.5, 0.09 / 9, 0.02))
    assert compressor.contraction(2) == 0.5
    assert not compressor.unbiased
    assert compressor.variance_bound(100) is None
    assert compressor.per_tensor
    assert not WarmUp((TopK(k=1), Shrink(QSGD(bits=4, per_tensor=False))), every=1).per_tensor
    assert isinstance(WarmUp([TopK(k=1)], every=1).stages, tuple)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stages", "every", "error", "words"),
    [
        ((), 1, ValueError, "WarmUp: no stages given; begin with a gentle one"),
        ((TopK(k=1), RandomK(k=3)), 1, ValueError, r"every stage must claim a contraction, and RandomK\(k=3\) claims"),
        (
            (ErrorFeedback(TopK(k=1)),),
            1,
            ValueError,
            "claims none; put a memory around the whole, as in",
        ),
        ((TopK(k=1), 3), 1, TypeError, "WarmUp needs a compressor such as .*, got 3"),
        (TopK(k=1), 1, TypeError, r"WarmUp: stages must be a tuple of compressors, got TopK\(k=1\)"),
        ((TopK(k=1),), 0, ValueError, "WarmUp: every must be at least 1 step, got 0"),
        ((TopK(k=1),), 1.5, TypeError, "WarmUp: every must be an integer, got 1.5"),
    ],
)
def test_messages(stages: Any, every: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        WarmUp(stages, every)


def test_a_saved_state_is_of_its_stage() -> None:
    """The step is in the state, so a checkpoint goes on in the stage where it was taken."""
    compressor = ErrorFeedback(WarmUp(STAGES, every=2))
    state = compressor.init(TensorSpec((N,)))
    for i in range(3):
        _, state = compressor.compress(vector("gaussian", N, i), state, Key(i))
    assert state.inner.step == 3
    bad = torch.full((N,), torch.nan)
    payload, after = compressor.compress(bad, state, Key(3))
    assert after is state
    assert int(wire.pack(payload)[3]) == 2
