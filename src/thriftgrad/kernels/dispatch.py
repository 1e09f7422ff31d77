"""Which backend computes: compiled code where there is any for the device, else the reference."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("thriftgrad")

OLDEST_NUMBA = (0, 62)
SLOW = "quantising, packing and choosing coordinates run uncompiled, some 20 times slower"

Backend = Literal["reference", "cpu"]
P = ParamSpec("P")
T = TypeVar("T")

_chosen: Backend | None = None


def use(name: Backend | None) -> None:
    """Compute with this backend from now on; None: the compiled one where numba is installed, else the reference.

    "reference" is plain torch on every device; "cpu" is numba for tensors on the CPU. All give the same bits.
    ``ImportError`` for "cpu" without a numba that will do, ``ValueError`` for another name.
    """
    global _chosen  # noqa: PLW0603  # the one setting there is
    if name not in ("reference", "cpu", None):
        raise ValueError(f'kernels: the backend must be "reference", "cpu" or None, got {name!r}.')
    if name == "cpu" and (problem := numba_problem()):
        raise ImportError(f'kernels: backend "cpu" cannot be used: {problem}.')
    _chosen = name


def backend() -> Backend:
    """The backend that computes on CPU tensors: "cpu" or "reference"."""
    return _chosen or ("reference" if numba_problem() else "cpu")


@cache
def numba_problem() -> str | None:
    """Why numba cannot be used, with the command that helps; None if it can."""
    try:
        version = metadata.version("numba")
        import_module("numba")
    except metadata.PackageNotFoundError:
        return "numba is not installed; run `pip install 'thriftgrad[fast]'`"
    except ImportError as error:
        return f"numba cannot be imported ({error}); run `pip install 'thriftgrad[fast]'`"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_NUMBA:
        return f"numba {version} is too old; run `pip install 'thriftgrad[fast]'` for 0.62 or later"
    return None


@cache
def _cpu() -> ModuleType | None:
    """The compiled functions, or None, which is said once."""
    if problem := numba_problem():
        log.warning("kernels: %s: %s.", SLOW, problem)
        return None
    return import_module("thriftgrad.kernels.cpu.compiled")


@cache
def _cuda() -> ModuleType | None:
    """The functions for the GPU, or None, which is said once."""
    log.warning("kernels: on the GPU %s: there are no kernels for it.", SLOW)
    return None


def _module(device: torch.device) -> ModuleType | None:
    if _chosen == "reference":
        return None
    if device.type == "cpu":
        return _cpu()
    return _cuda() if device.type == "cuda" else None


def dispatched(function: Callable[P, T]) -> Callable[P, T]:
    """The function, computed by the backend of its first tensor's device, or of its argument ``device``."""
    parameters = list(inspect.signature(function).parameters)
    name = "device" if "device" in parameters else parameters[0]
    place = parameters.index(name)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        where: Any = args[place] if len(args) > place else kwargs.get(name, "cpu")
        module = _module(where.device if isinstance(where, Tensor) else torch.device(where))
        compiled: Callable[P, T] = getattr(module, function.__name__, function)
        return compiled(*args, **kwargs)

    return call
