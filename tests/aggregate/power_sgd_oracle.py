"""PowerSGD of one matrix in numpy and float64, worker by worker, and what its tests have in common."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad import Key, PowerSGD, TensorSpec, kernels
from thriftgrad.aggregate import TensorState
from thriftgrad.comm.requests import ReplicatedRequest

Matrix = NDArray[np.float64]

EVERYTHING = 0.0
"""``min_compression_rate``: compress every matrix."""

FORMS: dict[str, dict[str, Any]] = {
    "rank 1": {"rank": 1},
    "rank 3": {"rank": 3},
    "cold": {"warm_start": False},
    "two power iterations": {"rank": 1, "power_iterations": 2},
    "two blocks": {"rank": 1, "residual_iterations": 2},
    "two blocks, each refined": {"rank": 1, "residual_iterations": 2, "power_iterations": 2},
    "alternating": {"alternating": True},
    "alternating, cold": {"alternating": True, "warm_start": False},
    "alternating, three products": {"rank": 1, "alternating": True, "residual_iterations": 3},
    "refresh": {"refresh_every": 2},
    "exact refresh": {"refresh": "exact", "refresh_every": 3},
    "alternating, exact refresh": {"rank": 1, "alternating": True, "refresh": "exact", "refresh_every": 3},
    "later": {"start_after": 2},
}
"""Settings under which PowerSGD takes other ways through its code."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(n: int, m: int, rank: int, seed: int = 0) -> Tensor:
    return random(n, rank, seed=seed) @ random(rank, m, seed=seed + 1000)


def wide(x: Tensor) -> Matrix:
    array: Matrix = x.detach().double().numpy()
    return array.reshape(array.shape[0], -1)


def started(method: PowerSGD, tensors: Sequence[Tensor], workers: int) -> list[Any]:
    """Every worker's state; the tensors are named w0, w1, ..."""
    names = [TensorSpec.of(x, f"w{i}") for i, x in enumerate(tensors)]
    return [method.init(names) for _ in range(workers)]


def kept(state: Any, at: int = 0) -> Any:
    """The ``LowRank`` of one tensor."""
    return state[at].inner


def changed(state: Any, at: int = 0, **fields: Any) -> Any:
    """The state with some fields of one tensor's ``LowRank`` replaced."""
    entry = state[at]
    return (*state[:at], TensorState(entry.spec, entry.inner._replace(**fields)), *state[at + 1 :])


def drawn(rows: int, columns: int, key: Key, name: str = "w0") -> Matrix:
    """The random factor that a tensor of this name starts from."""
    return wide(kernels.normal(rows * columns, key.fold("PowerSGD", name).seed).view(rows, columns))


def apart(worker: Generator[Any, Any, Any], tamper: Any = None) -> Generator[Any, Any, Any]:
    """A worker that computes for itself what a simulation computes once for all, as on a real group.

    ``tamper`` may change what it finds: a processor that rounds in another way.
    """
    answer = None
    while True:
        try:
            request = worker.send(answer)
        except StopIteration as stop:
            return stop.value
        if isinstance(request, ReplicatedRequest):
            answer = request.compute() if tamper is None else tamper(request.compute())
        else:
            answer = yield request


def basis_of(x: Matrix) -> Matrix:
    """Numpy's Q of a QR, with the signs of Gram-Schmidt."""
    q, r = np.linalg.qr(x)
    signed: Matrix = q * np.sign(np.diag(r))
    return signed


class Oracle:
    """By the papers' formulas. A step takes every worker's matrix and returns the estimate of their mean."""

    def __init__(
        self,
        workers: int,
        shape: tuple[int, int],
        start: Matrix,
        *,
        power_iterations: int = 1,
        residual_iterations: int = 1,
        alternating: bool = False,
    ) -> None:
        self.memories = [np.zeros(shape) for _ in range(workers)]
        self.factor = start
        self.power_iterations = power_iterations
        self.residual_iterations = residual_iterations
        self.alternating = alternating
        self.products = 0

    def step(self, matrices: Sequence[Matrix]) -> Matrix:
        rests = [m + e for m, e in zip(matrices, self.memories, strict=True)]
        estimate = np.zeros_like(rests[0])
        blocks = [self.factor] if self.alternating else np.split(self.factor, self.residual_iterations, 1)
        ended: list[Matrix] = []
        for at in range(self.residual_iterations):
            if self.alternating:
                found, basis_left, basis_right = self._one_product(rests)
            else:
                found, basis_left, basis_right = self._both_products(rests, blocks[at], ended)
            estimate = estimate + found
            rests = [basis_left @ r @ basis_right for r in rests]
        if not self.alternating:
            self.factor = np.concatenate(ended, 1)
        self.memories = rests
        return estimate

    def _both_products(self, rests: list[Matrix], q: Matrix, ended: list[Matrix]) -> tuple[Matrix, Matrix, Matrix]:
        mean = np.mean(rests, axis=0)
        for _ in range(self.power_iterations):
            p = basis_of(mean @ q)
            q = mean.T @ p
        ended.append(q)
        n, m = mean.shape
        return p @ q.T, np.eye(n) - p @ p.T, np.eye(m)

    def _one_product(self, rests: list[Matrix]) -> tuple[Matrix, Matrix, Matrix]:
        mean = np.mean(rests, axis=0)
        n, m = mean.shape
        basis = basis_of(self.factor)
        self.products += 1
        if self.products % 2:
            self.factor = mean @ basis
            return mean @ basis @ basis.T, np.eye(n), np.eye(m) - basis @ basis.T
        self.factor = mean.T @ basis
        return basis @ basis.T @ mean, np.eye(n) - basis @ basis.T, np.eye(m)
