"""A block of neighbours from a random start: where it lies, how often, and what it costs."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samples import compressed, vector
from thriftgrad import AllReduce, ErrorFeedback, Key, PayloadError, RandomBlock, TensorSpec, parse, simulate, wire
from thriftgrad.compress import QSGD
from thriftgrad.core import Payload, Shrink


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1000))
def test_neighbours_around_the_end(n: int, k: int, seed: int) -> None:
    x = torch.arange(1.0, n + 1)
    payload, _ = RandomBlock(k=k).compress(x, None, Key(seed))
    start, kept = int(payload.side.start), min(k, n)
    places = [(start + i) % n for i in range(kept)]
    assert payload.carrier.tolist() == [place + 1.0 for place in places]
    expected = [place + 1.0 if place in places else 0.0 for place in range(n)]
    assert RandomBlock(k=k).decompress(payload).tolist() == expected


@pytest.mark.parametrize("start", range(7))
def test_from_every_start(start: int) -> None:
    """Each coordinate is in k of the n blocks, so a uniform start keeps it with probability k / n."""
    spec = TensorSpec((7,))
    compressor = RandomBlock(k=3)
    payload, _ = compressor.compress(torch.arange(7.0), None, Key(0))
    moved = Payload(torch.ones(3), type(payload.side)(torch.tensor([start])), payload.layout)
    kept = compressor.decompress(moved).nonzero().view(-1).tolist()
    assert kept == sorted((start + i) % 7 for i in range(3))
    assert compressor.contraction(spec.numel) == 3 / 7


def test_starts_are_uniform() -> None:
    """2100 keys over 7 starts: 300 each, to within five deviations of a binomial."""
    x = torch.ones(7)
    starts = Counter(int(RandomBlock(k=3).compress(x, None, Key(5).fold(i))[0].side.start) for i in range(2100))
    assert set(starts) == set(range(7))
    assert all(abs(count - 300) < 5 * (2100 / 7 * 6 / 7) ** 0.5 for count in starts.values())


def test_the_mean_error_over_all_starts_is_as_claimed() -> None:
    """Over the n starts exactly (1 - k / n) |x|^2, for every x: no bound could be tighter."""
    x = vector("heavy", 20)
    compressor = RandomBlock(k=6)
    errors: dict[int, float] = {}
    for i in range(2000):
        payload, _ = compressor.compress(x, None, Key(i))
        errors[int(payload.side.start)] = float((x - compressor.decompress(payload)).double().square().sum())
    assert len(errors) == 20
    assert sum(errors.values()) / 20 == pytest.approx((1 - 6 / 20) * float(x.double().square().sum()), rel=1e-9)


@pytest.mark.parametrize(("n", "start_bytes"), [(1, 0), (2, 1), (256, 1), (257, 2), (1_000_000, 3), (1 << 33, 5)])
def test_bytes(n: int, start_bytes: int) -> None:
    assert RandomBlock(k=1).layout(TensorSpec((n,))).nbytes == 4 + start_bytes
    assert RandomBlock(fraction=0.01).layout(TensorSpec((n,))).nbytes == 4 * -(-n // 100) + start_bytes


def test_all_workers_keep_one_block_and_may_add_it() -> None:
    xs = [vector("gaussian", 50, seed) for seed in range(3)]
    aggregator = AllReduce(RandomBlock(k=20))
    workers = [aggregator.aggregate([x], aggregator.init([TensorSpec((50,), name="w")]), Key(3)) for x in xs]
    means = [means[0] for means, _ in simulate(workers)]
    assert all(torch.equal(mean, means[0]) for mean in means)
    kept = means[0] != 0
    assert int(kept.sum()) == 20
    torch.testing.assert_close(means[0][kept], (sum(xs) / 3)[kept])


def test_with_feedback_all_is_sent_in_the_end() -> None:
    """A constant gradient of 12 coordinates, 4 a step: the sum of what was sent follows the sum of what came in."""
    x, feedback = vector("gaussian", 12), ErrorFeedback(RandomBlock(k=4))
    state, sent = feedback.init(TensorSpec((12,))), torch.zeros(12)
    for step in range(60):
        payload, state = feedback.compress(x, state, Key(step))
        sent += feedback.decompress(payload)
    torch.testing.assert_close(sent + state.memory, 60 * x, rtol=1e-5, atol=1e-5)
    assert float(state.memory.norm()) < 15 * float(x.norm())


def test_composition() -> None:
    chain = RandomBlock(k=100) >> Shrink(QSGD(levels=10, bucket=None))
    assert chain.contraction(1000) == pytest.approx(0.1 / 2)
    assert not compressed(chain, torch.zeros(1000)).any()


def test_a_start_beyond_the_end_is_refused() -> None:
    compressor = RandomBlock(k=2)
    payload, _ = compressor.compress(torch.ones(5), None, Key(0))
    payload.side.start[0] = 5
    with pytest.raises(PayloadError, match="symbol 5 outside the alphabet of 5"):
        wire.unpack(wire.pack(payload), compressor, TensorSpec((5,)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "RandomBlock: give one of fraction, k and rank, got fraction=None, k=None and rank=None."),
        (
            {"k": 3, "fraction": 0.1},
            "RandomBlock: give one of fraction, k and rank, got fraction=0.1, k=3 and rank=None.",
        ),
        ({"k": 0}, "RandomBlock: k must be at least 1, got 0."),
        ({"fraction": 0.0}, "RandomBlock: fraction must lie in (0, 1], got 0.0."),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        RandomBlock(**options)


def test_the_text_is_the_value() -> None:
    for compressor in (RandomBlock(k=3), RandomBlock(fraction=0.25) >> QSGD(bits=4)):
        assert parse(repr(compressor)) == compressor
