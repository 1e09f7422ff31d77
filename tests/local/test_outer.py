"""Outer optimisers against torch's SGD and their formulas; what inner and outer ones refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from local import oracles
from samples import label
from thriftgrad import AllGather, Identity, TensorSpec
from thriftgrad.local import (
    AsyncServer,
    Average,
    Every,
    InnerAdamW,
    InnerSGD,
    LocalMethod,
    Outer,
    OuterSGD,
    OuterSign,
    SlowMo,
)

SHAPE = (3, 5)
RATES = [0.1, 0.1, 0.1, 0.03, 0.03, 0.2, 0.2, 0.01, 0.01, 0.01]


def drifts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(10)]


def run(outer: Outer[Any]) -> list[Tensor]:
    """The anchors of ten syncs from all ones, at inner learning rates that change; nothing given is changed."""
    anchor = torch.ones(SHAPE, dtype=torch.float64)
    state, anchors = outer.init(TensorSpec.of(anchor)), []
    for drift, rate in zip(drifts(), RATES, strict=True):
        before = [x.clone() for x in (anchor, drift) + ((state,) if state is not None else ())]
        given = (anchor, drift) + ((state,) if state is not None else ())
        anchor, state = outer.step(anchor, drift, state, rate)
        assert all(torch.equal(x, was) for x, was in zip(given, before, strict=True))
        anchors.append(anchor)
    return anchors


@pytest.mark.parametrize(
    "outer",
    [
        OuterSGD(),
        OuterSGD(0.5, 0.6, nesterov=False),
        OuterSGD(1.3, 0.0, nesterov=False),
        OuterSGD(0.2, 0.99, nesterov=True),
    ],
    ids=label,
)
def test_outer_sgd_is_torchs_with_the_drift_for_a_gradient(outer: OuterSGD) -> None:
    parameter = torch.nn.Parameter(torch.ones(SHAPE, dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=outer.learning_rate, momentum=outer.momentum, nesterov=outer.nesterov)
    for anchor, drift in zip(run(outer), drifts(), strict=True):
        parameter.grad = drift.clone()
        sgd.step()
        torch.testing.assert_close(anchor, parameter.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("outer", "rule"),
    [
        (Average(), oracles.average),
        (OuterSGD(0.4, 0.8), oracles.outer_sgd(0.4, 0.8)),
        (SlowMo(), oracles.slow_mo()),
        (SlowMo(learning_rate=0.8, momentum=0.5), oracles.slow_mo(0.8, 0.5)),  # at learning rates that change
    ],
    ids=label,
)
def test_the_formulas(outer: Outer[Any], rule: oracles.Rule) -> None:
    x, state = np.ones(SHAPE), None
    for anchor, drift, rate in zip(run(outer), drifts(), RATES, strict=True):
        x, state = rule(x, drift.numpy(), state, rate)
        np.testing.assert_allclose(anchor.numpy(), x, rtol=0, atol=1e-12)


def test_slow_mo_without_momentum_is_the_average() -> None:
    for one, other in zip(run(SlowMo(1.0, 0.0)), run(Average()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_slow_mo_holds_still_at_a_learning_rate_of_zero() -> None:
    x, velocity = torch.ones(2), torch.tensor([1.0, -2.0])
    moved, after = SlowMo(momentum=0.5).step(x, torch.zeros(2), velocity, 0.0)
    assert torch.equal(moved, x)
    assert torch.equal(after, 0.5 * velocity)


def test_signs_move_every_coordinate_by_the_learning_rate() -> None:
    x, drift = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([1e-20, -7.0, 0.0])
    assert torch.equal(OuterSign().step(x, drift, None, 0.25)[0], torch.tensor([0.75, 2.25, -3.0]))
    # (1 - 0.25 * 0.5) x - 0.25 sign
    assert torch.equal(OuterSign(0.5).step(x, drift, None, 0.25)[0], torch.tensor([0.625, 2.0, -2.625]))


def test_state_has_the_tensors_type() -> None:
    for outer in (OuterSGD(), SlowMo()):
        for dtype in (torch.float32, torch.float64):
            assert outer.init(TensorSpec(SHAPE, dtype)).dtype == dtype
    assert Average().init(TensorSpec(SHAPE)) is OuterSign().init(TensorSpec(SHAPE)) is None


@pytest.mark.parametrize(
    ("inner", "outer", "told"),
    [
        (InnerSGD(), Average(), "none"),
        (InnerSGD(0.9, nesterov=True), Average(), "0.9 Nesterov on each worker"),
        (InnerSGD(0.5), SlowMo(), "0.5 on each worker and 0.7 slow after aggregation"),
        (InnerAdamW(), OuterSGD(), "AdamW's on each worker and 0.9 Nesterov after aggregation"),
        (InnerSGD(), OuterSGD(0.7, 0.4, nesterov=False), "0.4 after aggregation"),
        (InnerSGD(), OuterSGD(0.7, 0.0, nesterov=False), "none"),
        (InnerSGD(), SlowMo(momentum=0.0), "none"),
        (InnerSGD(), OuterSign(), "none"),
    ],
)
def test_where_momentum_sits(inner: Any, outer: Any, told: str) -> None:
    assert LocalMethod(AllGather(Identity()), Every(2), inner, outer).momentum_described == told


def test_inner_optimisers_are_torchs_with_the_same_settings() -> None:
    x = [torch.nn.Parameter(torch.ones(2))]
    sgd = InnerSGD(0.9, nesterov=True, weight_decay=0.1).optimizer(x, 0.3)
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert [group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [0.3, 0.9, True, 0.1]
    adamw = LocalMethod(AllGather(Identity()), inner=InnerAdamW(0.8, 0.95, weight_decay=0.2)).optimizer(x, 0.01)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [adamw.param_groups[0][name] for name in ("lr", "betas", "weight_decay")] == [0.01, (0.8, 0.95), 0.2]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OuterSGD(0.0), "OuterSGD: learning_rate must be positive, got 0.0."),
        (lambda: OuterSGD(float("nan")), "OuterSGD: learning_rate must be positive, got nan."),
        (lambda: OuterSGD(0.7, 1.0), "OuterSGD: momentum must lie in [0, 1), got 1.0."),
        (
            lambda: OuterSGD(0.7, 0.0),
            "OuterSGD: nesterov=True has no effect without momentum; give one or nesterov=False.",
        ),
        (lambda: SlowMo(-1.0), "SlowMo: learning_rate must be positive, got -1.0."),
        (lambda: SlowMo(1.0, -0.1), "SlowMo: momentum must lie in [0, 1), got -0.1."),
        (lambda: OuterSign(-0.5), "OuterSign: weight_decay cannot be negative, got -0.5."),
        (lambda: InnerSGD(1.5), "InnerSGD: momentum must lie in [0, 1), got 1.5."),
        (
            lambda: InnerSGD(nesterov=True),
            "InnerSGD: nesterov=True has no effect without momentum; give one or leave it out.",
        ),
        (lambda: InnerSGD(weight_decay=-1.0), "InnerSGD: weight_decay cannot be negative, got -1.0."),
        (lambda: InnerAdamW(beta1=1.0), "InnerAdamW: beta1 must lie in [0, 1), got 1.0."),
        (lambda: InnerAdamW(beta2=-0.1), "InnerAdamW: beta2 must lie in [0, 1), got -0.1."),
        (lambda: InnerAdamW(weight_decay=float("nan")), "InnerAdamW: weight_decay cannot be negative, got nan."),
        (
            lambda: LocalMethod(AllGather(Identity()), buffers="mean"),  # type: ignore[arg-type]
            'LocalMethod: buffers must be "average" or "local", got \'mean\'.',
        ),
        (
            lambda: LocalMethod(AllGather(Identity()), learning_rate_scale=0.0),
            "LocalMethod: learning_rate_scale must be positive, got 0.0.",
        ),
        (
            lambda: LocalMethod(AsyncServer(Identity()), outer=OuterSGD()),
            f"LocalMethod: an AsyncServer adds what comes when it comes, so {OuterSGD()!r} has no round to act on; "
            "use Average().",
        ),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"aggregator": Identity()},
            "LocalMethod: aggregator must be something like AllGather(ErrorFeedback(TopK(k=1000))), got Identity().",
        ),
        ({"schedule": 8}, "LocalMethod: schedule must be something like Every(8), got 8."),
        ({"inner": "sgd"}, "LocalMethod: inner must be something like InnerSGD(momentum=0.9), got 'sgd'."),
        ({"outer": None}, "LocalMethod: outer must be something like Average(), got None."),
    ],
)
def test_parts_of_a_method_have_their_kinds(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        LocalMethod(**{"aggregator": AllGather(Identity())} | settings)
