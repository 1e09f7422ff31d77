"""The model to advise on: one that comes with the library, or a function of the user's that builds one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from thriftgrad.core.expression import nearest
from thriftgrad.lab.advise.errors import AdviseError
from thriftgrad.tasks.models import GPT, initialised, resnet18

Loss = Callable[[nn.Module], Tensor]
"""From the model, wrapped in DDP or not, to the scalar loss of one batch of one worker; each call may take another."""

CONTRACT = "it must return (module, loss): a torch.nn.Module, and a function from that module to the loss of a batch"


@dataclass(frozen=True)
class Subject:
    """A model and its loss."""

    name: str
    module: nn.Module
    loss: Loss


def gpt_small() -> tuple[nn.Module, Loss]:
    """A byte-level GPT of 10.9 million parameters, four sequences of 128 tokens a worker."""
    model = initialised(partial(GPT, context=128, width=384, depth=6, heads=6), seed=0)
    generator = torch.Generator().manual_seed(0)

    def loss(module: nn.Module) -> Tensor:
        tokens = torch.randint(256, (4, 129), generator=generator)
        return F.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return model, loss


def residual() -> tuple[nn.Module, Loss]:
    """ResNet-18 for images of 32 x 32 pixels, 11.2 million parameters, sixteen images a worker."""
    model = initialised(resnet18, seed=0)
    generator = torch.Generator().manual_seed(0)

    def loss(module: nn.Module) -> Tensor:
        images = torch.randn(16, 3, 32, 32, generator=generator)
        return F.cross_entropy(module(images), torch.randint(10, (16,), generator=generator))

    return model, loss


BUILT_IN = {"gpt-small": gpt_small, "resnet18": residual}


def load(text: str) -> Subject:
    """The model of this name, or the one that ``my_module:build`` returns. Raises ``AdviseError`` if there is none."""
    if ":" not in text:
        if text not in BUILT_IN:
            raise AdviseError(
                f"advise: there is no model {text!r}; {nearest(text, tuple(BUILT_IN))}, or name a function of yours "
                "that builds one, as in my_module:build."
            )
        return Subject(text, *BUILT_IN[text]())
    return Subject(text, *_built(text, _function(text)))


def _function(text: str) -> Callable[[], Any]:
    name, _, attribute = text.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m has it, and a console script does not
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise AdviseError(
            f"advise: {name!r} cannot be imported ({_said(error)}); start where it lies, or add its folder to "
            "PYTHONPATH."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise AdviseError(
            f"advise: {name!r} has no function {attribute!r}; name one that builds the model, as in {name}:build."
        )
    return function  # type: ignore[no-any-return]


def _built(text: str, function: Callable[[], Any]) -> tuple[nn.Module, Loss]:
    try:
        built = function()
    except Exception as error:
        raise AdviseError(f"advise: {text} failed ({_said(error)}); {CONTRACT}.") from error
    match built:
        case (nn.Module() as module, loss) if callable(loss):
            return module, loss
    shown = f"({', '.join(type(each).__name__ for each in built)})" if isinstance(built, tuple) else repr(built)
    raise AdviseError(f"advise: {text} returned {shown:.80}; {CONTRACT}.")


def gradients_of(subject: Subject) -> dict[str, Tensor]:
    """The gradients of one batch by parameter name: what everything here is measured on.

    Raises ``AdviseError`` for a loss that fails or is no scalar with a gradient, a model that is not trained, does not
    use a parameter, lives on another device than the processor, or has a gradient that is not finite.
    """
    parameters = {name: p for name, p in subject.module.named_parameters() if p.requires_grad}
    if not parameters:
        raise AdviseError(
            f"advise: {subject.name} has no parameter that requires a gradient, so there is nothing to send."
        )
    for name, parameter in parameters.items():
        if parameter.device.type != "cpu":
            raise AdviseError(
                f"advise: it measures on processors, and parameter {name!r} of {subject.name} is on "
                f"{parameter.device}; build the model on the CPU."
            )
    found = torch.autograd.grad(loss_of(subject, subject.module), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is None:
            raise AdviseError(
                f"advise: the loss of {subject.name} does not depend on parameter {name!r}, which DDP would wait for; "
                "freeze it with requires_grad_(False)."
            )
        if gradient.is_sparse:
            raise AdviseError(
                f"advise: the gradient of {name!r} is sparse, which cannot be compressed; use sparse=False."
            )
        if not gradient.isfinite().all():
            raise AdviseError(f"advise: the gradient of {name!r} is not finite; build the model so that it trains.")
    return dict(zip(parameters, found, strict=True))


def loss_of(subject: Subject, model: nn.Module) -> Tensor:
    """The loss of one batch. Raises ``AdviseError`` if it fails or is no scalar with a gradient."""
    try:
        loss = subject.loss(model)
    except Exception as error:
        raise AdviseError(f"advise: the loss of {subject.name} failed ({_said(error)}); {CONTRACT}.") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise AdviseError(
            f"advise: the loss of {subject.name} must be a scalar with a gradient, got {shown}; {CONTRACT}."
        )
    return loss


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")
