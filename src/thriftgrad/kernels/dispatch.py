"""Which backend computes: compiled code where there is any for the device, else the reference."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("thriftgrad")

OLDEST_NUMBA = (0, 62)
OLDEST_TRITON = (3, 6)
SLOW = "quantising, packing and choosing coordinates run uncompiled, many times slower"

Backend = Literal["reference", "cpu", "gpu"]
P = ParamSpec("P")
T = TypeVar("T")

_chosen: Backend | None = None


def use(name: Backend | None) -> None:
    """Compute with this backend from now on; None: the compiled one for each device, where there is one.

    "reference" is plain torch on every device; "cpu" asks for numba on the CPU, "gpu" for triton on the GPU, or, with
    TRITON_INTERPRET=1 in the environment, for triton's interpreter on the CPU. All give the same bits.
    ``ImportError`` without a numba or triton that will do, ``RuntimeError`` for "gpu" without one, ``ValueError`` for
    another name.
    """
    global _chosen  # noqa: PLW0603  # the one setting there is
    if name not in ("reference", "cpu", "gpu", None):
        raise ValueError(f'kernels: the backend must be "reference", "cpu", "gpu" or None, got {name!r}.')
    if name == "gpu" and not _interprets() and not torch.cuda.is_available():
        raise RuntimeError(
            'kernels: backend "gpu" cannot be used: torch sees no GPU here; for a trial on the CPU, which takes some '
            "8 seconds for a million elements, set TRITON_INTERPRET=1 before the program starts."
        )
    if problem := numba_problem() if name == "cpu" else triton_problem() if name == "gpu" else None:
        raise ImportError(f'kernels: backend "{name}" cannot be used: {problem}.')
    _chosen = name


def backend() -> Backend:
    """The backend that computes on CPU tensors: "cpu" or "reference"; "gpu" where triton interprets."""
    if _chosen is None or (_chosen == "gpu" and not _interprets()):
        return "reference" if numba_problem() else "cpu"
    return _chosen


def _interprets() -> bool:
    """Whether triton runs its kernels on the CPU, as the environment tells it to when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@cache
def numba_problem() -> str | None:
    """Why numba cannot be used, with the command that helps; None if it can."""
    try:
        version = metadata.version("numba")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_NUMBA:
            return f"numba {version} is too old; run `pip install 'thriftgrad[fast]'` for 0.62 or later"
        import_module("numba")
    except metadata.PackageNotFoundError:
        return "numba is not installed; run `pip install 'thriftgrad[fast]'`"
    except ImportError as error:
        return f"numba cannot be imported ({error}); run `pip install 'thriftgrad[fast]'`"
    return None


@cache
def triton_problem() -> str | None:
    """Why triton cannot be used, with the command that helps; None if it can."""
    try:
        version: str = import_module("triton").__version__
    except ImportError as error:
        why = "is not installed" if error.name == "triton" else f"cannot be imported ({error})"
        return f"triton {why}; run `pip install 'thriftgrad[gpu]'`"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {version} is too old; run `pip install 'thriftgrad[gpu]'` for 3.6 or later (torch 2.10)"
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
    if problem := triton_problem():
        log.warning("kernels: on the GPU %s: %s.", SLOW, problem)
        return None
    return import_module("thriftgrad.kernels.gpu.compiled")


def _module(device: torch.device) -> ModuleType | None:
    if _chosen == "reference":
        return None
    if device.type == "cpu":
        return _cuda() if _chosen == "gpu" and _interprets() else _cpu()
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
