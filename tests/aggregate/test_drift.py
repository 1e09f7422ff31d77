"""Shared factors that differ between workers: found by a digest, told, and made equal again."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from aggregate.power_sgd_oracle import EVERYTHING, apart, changed, kept, random, started
from samples import step
from thriftgrad import Key, Ledger, PowerSGD, simulate
from thriftgrad.aggregate.drift import digest, settled

TWO_SIDED = {"rank": 2}
ALTERNATING = {"rank": 2, "alternating": True}

MESSAGE = (
    "PowerSGD: the factors of workers 1, 2 had drifted from worker 0's, whose are taken now; what they made of the "
    "parameters before is not undone, so compare the replicas"
)


def alone(
    method: PowerSGD, tensors: list[list[Tensor]], states: list[Any], key: Key, tamper: Any = None
) -> tuple[list[list[Tensor]], list[Any]]:
    """One step in which every worker orthonormalises and multiplies for itself; worker 1 by a ``tamper``."""
    workers = [
        apart(method.aggregate(x, state, key), tamper if rank == 1 else None)
        for rank, (x, state) in enumerate(zip(tensors, states, strict=True))
    ]
    results = simulate(workers)
    return [means for means, _ in results], [state for _, state in results]


@pytest.mark.parametrize("form", [TWO_SIDED, ALTERNATING], ids=["two-sided", "alternating"])
@pytest.mark.parametrize("check_every", [1, 3, None])
def test_tampered_factors_agree_again_at_the_next_check(
    form: dict[str, Any], check_every: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the two-sided form all see the sum of the first products, and differ in nothing but what it stands for."""
    method = PowerSGD(**form, check_every=check_every, min_compression_rate=EVERYTHING)
    tensors = [[random(6, 8, seed=w), random(5, 4, seed=10 + w)] for w in range(3)]
    states = started(method, tensors[0], 3)
    _, states = alone(method, tensors, states, Key(0))
    states[1] = changed(states[1], factor=kept(states[1]).factor + 0.5)
    states[2] = changed(states[2], factor=kept(states[2]).factor * 1.5 + 0.1)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="thriftgrad"):
        means, after = alone(method, tensors, states, Key(1))
    checked = check_every == 1
    agree = torch.equal(means[0][0], means[1][0]) and torch.equal(means[0][0], means[2][0])
    assert agree == (checked or not method.alternating)
    assert torch.equal(means[0][1], means[1][1])
    assert [record.getMessage() for record in caplog.records] == ([MESSAGE] if checked else [])
    means, after = alone(method, tensors, after, Key(2))  # the check of check_every=3
    if check_every is not None:
        assert torch.equal(means[0][0], means[1][0])
        assert torch.equal(kept(after[0]).factor, kept(after[1]).factor)


@pytest.mark.parametrize("form", [TWO_SIDED, ALTERNATING], ids=["two-sided", "alternating"])
def test_a_basis_that_one_worker_rounds_otherwise_is_replaced(
    form: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Another processor's last bits: unseen for a step, and then worker 0's for all."""
    method = PowerSGD(**form, check_every=2, min_compression_rate=EVERYTHING)
    tensors = [[random(6, 8, seed=w)] for w in range(3)]
    states = started(method, tensors[0], 3)

    def other_last_bits(found: Any) -> Any:
        return [x * (1 + 1e-6) if torch.is_tensor(x) else x for x in found] if isinstance(found, list) else found

    seen = []
    for i in range(4):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="thriftgrad"):
            _, states = alone(method, tensors, states, Key(i), other_last_bits)
        seen.append([record.getMessage() for record in caplog.records])
    told = [MESSAGE.replace("workers 1, 2", "workers 1")]
    assert seen == [[], told, [], told]


@pytest.mark.parametrize("form", [TWO_SIDED, ALTERNATING], ids=["two-sided", "alternating"])
def test_bytes_of_a_check(form: dict[str, Any]) -> None:
    """Eight bytes for each set of factors, of all matrices together; nothing at other steps."""
    tensors = [random(6, 8), random(6, 8, seed=1), random(5, 4, seed=2), random(9)]
    method = PowerSGD(**form, check_every=3, min_compression_rate=EVERYTHING)
    without = PowerSGD(**form, check_every=None, min_compression_rate=EVERYTHING)
    states, plain = started(method, tensors, 2), started(without, tensors, 2)
    sets = 1 if method.alternating else 2  # the factor that a step starts from; and the basis that it makes of it
    for i in range(6):
        ledger, bare = Ledger(), Ledger()
        means, states = step(method, [tensors] * 2, states, Key(i), ledger)
        same, plain = step(without, [tensors] * 2, plain, Key(i), bare)
        assert all(torch.equal(a, b) for a, b in zip(means[0], same[0], strict=True))
        due = i % 3 == 2
        assert ledger.payload_up_bytes - bare.payload_up_bytes == (8 * sets if due else 0)
        assert dict(ledger.requests) == dict(bare.requests) | ({"AllGather": sets} if due else {})


def test_bytes_where_one_has_drifted(caplog: pytest.LogCaptureFixture) -> None:
    """Worker 0 sends all factors once more: here 2 (m = 8) floats, and the bases agree then."""
    method = PowerSGD(rank=2, check_every=1, min_compression_rate=EVERYTHING)
    tensors = [[random(6, 8, seed=w)] for w in range(2)]
    _, states = step(method, tensors, started(method, tensors[0], 2), Key(0))
    states[1] = changed(states[1], factor=kept(states[1]).factor + 0.5)
    ledger = Ledger()
    step(method, tensors, states, Key(1), ledger)
    assert dict(ledger.requests) == {"AllReduce": 2, "AllGather": 2, "Broadcast": 1}
    factors, digests = 4 * 2 * (6 + 8), 2 * 8
    assert [ledger.per_worker[rank].payload_up_bytes for rank in (0, 1)] == [
        factors + digests + 4 * 2 * 8,
        factors + digests,
    ]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("form", [TWO_SIDED, ALTERNATING], ids=["two-sided", "alternating"])
def test_nan_is_no_drift(form: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    method = PowerSGD(**form, check_every=1, min_compression_rate=EVERYTHING)
    tensors = [[random(6, 8, seed=w)] for w in range(3)]
    states = started(method, tensors[0], 3)
    _, states = step(method, tensors, states, Key(0))
    broken = [[tensors[0][0] * torch.nan], *tensors[1:]]
    means, after = step(method, broken, states, Key(1))
    assert all(mean[0].isnan().any() for mean in means)
    assert all(a is b for a, b in zip(after, states, strict=True))
    assert not caplog.records


def test_equal_tensors_are_handed_on_as_they_are() -> None:
    mine = [[random(3, 4), random(2, 2, seed=1)] for _ in range(3)]
    found = simulate([settled("somebody", each) for each in mine])
    assert all(a is b for a, b in zip(found, mine, strict=True))


def test_all_shapes_come_back(caplog: pytest.LogCaptureFixture) -> None:
    mine = [[random(3, 4, seed=w), random(2, 2, 2, seed=10 + w).mT, torch.tensor(float(w))] for w in range(3)]
    found = simulate([settled("somebody", each) for each in mine])
    for theirs in found:
        for x, own in zip(theirs, mine[0], strict=True):
            assert torch.equal(x, own)
    assert caplog.records[0].getMessage().startswith("somebody: the factors of workers 1, 2 had drifted")


def test_a_digest_sees_one_bit_an_exchange_and_a_move() -> None:
    x = random(50)
    flipped, exchanged = x.clone(), x.clone()
    flipped.view(torch.int32)[17] ^= 1
    exchanged[[3, 4]] = exchanged[[4, 3]]
    seen = {int(digest(each)) for each in (x, flipped, exchanged, x.roll(1), -x)}
    assert len(seen) == 5
    assert digest(x.clone()) == digest(x)
    assert digest(x.view(10, 5).T.contiguous().T) == digest(x)
    one, another = torch.tensor([float("nan")]), torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert digest(one) == digest(another)
