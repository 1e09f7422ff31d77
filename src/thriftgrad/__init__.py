"""Train PyTorch models over links too slow for their gradients.

The public names load on first use, so that the command line answers before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thriftgrad import recipes, wire
    from thriftgrad.aggregate import AllGather, AllReduce, ParameterServer, Partition, PowerSGD, ScatterReduce
    from thriftgrad.comm import Ledger, LinkModel, run, simulate
    from thriftgrad.compress import QSGD, Cast, Identity, RandomK, Sign, TopK
    from thriftgrad.core import ErrorFeedback, Key, Payload, PayloadError, Shrink, TensorSpec
    from thriftgrad.train import attach
    from thriftgrad.vocabulary import parse

__version__ = "0.1.0"

__all__ = [
    "QSGD",
    "AllGather",
    "AllReduce",
    "Cast",
    "ErrorFeedback",
    "Identity",
    "Key",
    "Ledger",
    "LinkModel",
    "ParameterServer",
    "Partition",
    "Payload",
    "PayloadError",
    "PowerSGD",
    "RandomK",
    "ScatterReduce",
    "Shrink",
    "Sign",
    "TensorSpec",
    "TopK",
    "attach",
    "parse",
    "recipes",
    "run",
    "simulate",
    "wire",
]

_HOMES = {
    "thriftgrad.core": ("ErrorFeedback", "Key", "Payload", "PayloadError", "Shrink", "TensorSpec"),
    "thriftgrad.compress": ("QSGD", "Cast", "Identity", "RandomK", "Sign", "TopK"),
    "thriftgrad.aggregate": ("AllGather", "AllReduce", "ParameterServer", "Partition", "PowerSGD", "ScatterReduce"),
    "thriftgrad.comm": ("Ledger", "LinkModel", "run", "simulate"),
    "thriftgrad.train": ("attach",),
    "thriftgrad.vocabulary": ("parse",),
}


def __getattr__(name: str) -> Any:
    if name in ("recipes", "wire"):
        return importlib.import_module(f"thriftgrad.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'thriftgrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
