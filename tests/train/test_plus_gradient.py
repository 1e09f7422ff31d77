"""PowerSGD's step, gradient plus momentum, against its formula and against SGD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from thriftgrad import AllReduce, GradientPlusMomentum, Identity, recipes
from thriftgrad.train import Method


def test_it_follows_the_formula() -> None:
    x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = GradientPlusMomentum([x], lr=0.3, momentum=0.8, weight_decay=0.1)
    expected, velocity = [1.0, -2.0], [0.0, 0.0]
    for t in range(6):
        gradient = [math.sin(t + 1), math.cos(t)]
        x.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i in range(2):
            move = gradient[i] + 0.1 * expected[i]
            velocity[i] = 0.8 * velocity[i] + move
            expected[i] -= 0.3 * (move + velocity[i])
    torch.testing.assert_close(x.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_steady_gradient_moves_it_by_eleven_where_sgd_moves_by_ten() -> None:
    moved = {}
    for plus in (True, False):
        x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = recipes.power_sgd(plus_gradient=plus).optimizer([x], learning_rate=1.0)
        for _ in range(400):
            before = x.item()
            x.grad = torch.ones(1, dtype=torch.float64)
            optimizer.step()
        moved[plus] = before - x.item()
    assert moved == pytest.approx({True: 11.0, False: 10.0})


def test_what_has_no_gradient_stays_and_a_saved_state_continues() -> None:
    def trained(stop: int | None) -> list[float]:
        x, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
        optimizer = GradientPlusMomentum([{"params": [x], "weight_decay": 0.1}, {"params": [still]}], lr=0.1)
        for t in range(5):
            if t == stop:
                saved = optimizer.state_dict()
                optimizer = GradientPlusMomentum([{"params": [x], "weight_decay": 0.1}, {"params": [still]}], lr=9.0)
                optimizer.load_state_dict(saved)
            loss = optimizer.step(lambda: backward(x))
            assert loss > 0
        assert still.item() == 1
        return x.tolist()

    def backward(x: nn.Parameter) -> float:
        x.grad = None
        loss = x.square().sum()
        loss.backward()
        return loss.item()

    assert trained(None) == trained(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr cannot be negative, got -1.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay cannot be negative, got -0.1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientPlusMomentum([nn.Parameter(torch.ones(1))], **settings)


@pytest.mark.parametrize("settings", [{"momentum": 0.0}, {"nesterov": True}])
def test_it_is_a_form_of_momentum_without_look_ahead(settings: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="plus_gradient=True is a form of momentum without Nesterov's look-ahead; give"
    ):
        Method(AllReduce(Identity()), plus_gradient=True, **settings)


def test_a_method_says_so() -> None:
    assert recipes.power_sgd(plus_gradient=True).momentum_described == "0.9 plus gradient after aggregation"
