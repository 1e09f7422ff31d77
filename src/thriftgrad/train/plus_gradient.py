"""PowerSGD's step: the gradient and its momentum, both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class GradientPlusMomentum(Optimizer):
    """d = gradient + weight_decay x; m' = momentum m + d, at first m = 0; x' = x - lr (d + m').

    Not Nesterov's momentum, which is d + momentum m': a steady gradient moves x by 1 + 1 / (1 - momentum) of it, 11
    times at 0.9 where SGD with momentum moves it by 10. Weight decay is taken after the gradients are exchanged, equal
    on all workers, so no memory ever holds it. Sparse gradients are not taken.

    Raises ``ValueError`` for a negative learning rate or weight decay, or momentum outside [0, 1).
    Algorithm 2 of Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727, as the authors' code has it.

    >>> x = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = GradientPlusMomentum([x], lr=1.0, momentum=0.5)
    >>> for _ in range(2):
    ...     x.grad = torch.ones(1)
    ...     optimizer.step()
    >>> x.item()  # -(1 + 1) - (1 + 1.5)
    -4.5
    """

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        if not lr >= 0:
            raise ValueError(f"GradientPlusMomentum: lr cannot be negative, got {lr}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"GradientPlusMomentum: momentum must lie in [0, 1), got {momentum}.")
        if not weight_decay >= 0:
            raise ValueError(f"GradientPlusMomentum: weight_decay cannot be negative, got {weight_decay}.")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what ``closure`` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                move = x.grad.add(x, alpha=group["weight_decay"]) if group["weight_decay"] else x.grad
                state = self.state[x]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(x)
                state["momentum_buffer"].mul_(group["momentum"]).add_(move)
                x.add_(move + state["momentum_buffer"], alpha=-group["lr"])
        return loss
