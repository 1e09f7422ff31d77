"""Where low rank fails, and what helps: python benchmarks/low_rank_failures.py.

Prints the tables of docs/when-low-rank-fails.md, made with thriftgrad's own PowerSGD on problems so small that each
cause stands alone. Everything is seeded and simulated; one thread, about five minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from thriftgrad import Key, PowerSGD, TensorSpec, simulate

EVERYTHING: dict[str, Any] = {"min_compression_rate": 0, "check_every": None}


def random(*shape: int, seed: int) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, columns: int, seed: int) -> Tensor:
    """Orthonormal columns in random directions."""
    return torch.linalg.qr(random(n, columns, seed=seed))[0]


def stepped(method: PowerSGD, tensors: Sequence[Tensor], states: list[Any], i: int) -> tuple[Tensor, list[Any]]:
    """One step of as many workers as there are tensors: the estimate of their mean, and the next states."""
    results = simulate([method.aggregate([x], state, Key(i)) for x, state in zip(tensors, states, strict=True)])
    return results[0][0][0], [state for _, state in results]


def started(method: PowerSGD, shape: tuple[int, ...], workers: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """States before the first step."""
    return [method.init([TensorSpec(shape, dtype, name="w")]) for _ in range(workers)]


def memory(state: Any) -> Tensor:
    """What a worker owes."""
    kept: Tensor = state[0].inner.memory
    return kept


def with_memory(state: Any, kept: Tensor) -> Any:
    """The state with another memory."""
    return (state[0]._replace(inner=state[0].inner._replace(memory=kept)),)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table, its first column to the left."""
    print("\n| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def shown(value: float) -> str:
    """Three figures where they tell something."""
    if value != value or value > 1e4:
        return "explodes"
    return "< 0.001" if value < 5e-4 else f"{value:.3f}" if value < 10 else f"{value:.0f}"


# -- one matrix, again and again: how good is one step? --


def approximation(method: PowerSGD, steps: int) -> list[float]:
    """Relative errors on one 40 x 30 matrix with singular values 0.8^i, without memory."""
    x = orthogonal(40, 30, 0) @ torch.diag(0.8 ** torch.arange(30.0)) @ orthogonal(30, 30, 1).T
    states, found = started(method, (40, 30), 1), []
    for i in range(steps):
        estimate, states = stepped(method, [x], states, i)
        found.append(float((estimate - x).norm() / x.norm()))
    return found


def approximations() -> None:
    """Warm and cold, with one, two and four power iterations."""
    rows = []
    for k in (1, 2, 4):
        for warm in (True, False):
            method = PowerSGD(rank=2, power_iterations=k, warm_start=warm, memory="none", **EVERYTHING)
            found = approximation(method, 8)
            rows.append([k, "warm" if warm else "cold", *(f"{each:.4f}" for each in (*found[:5], found[7]))])
    table(["power iterations", "start", *(f"step {i}" for i in (1, 2, 3, 4, 5, 8))], rows)
    print(f"The best rank 2 leaves {sqrt(0.64**2 - 0.64**30):.4f}.")


# -- which memory: against the own factor, or against the mean --

WORKERS = 4


def iid(worker: int, i: int) -> Tensor:
    """All workers draw from one distribution."""
    return random(8, 6, seed=WORKERS * i + worker)


def heterogeneous(worker: int, i: int) -> Tensor:
    """Each has a gradient of its own beside the noise, twice as large."""
    return 2 * random(8, 6, seed=10**6 + worker) + iid(worker, i)


def largest_memories(kind: Any, gradient: Callable[[int, int], Tensor], marks: Sequence[int]) -> list[float]:
    """The largest memory of four workers after so many steps."""
    method = PowerSGD(rank=1, memory=kind, **EVERYTHING)
    states, found = started(method, (8, 6), WORKERS), []
    for i in range(marks[-1]):
        _, states = stepped(method, [gradient(w, i) for w in range(WORKERS)], states, i)
        if i + 1 in marks:
            found.append(max(float(memory(state).norm()) for state in states))
    return found


def lost(kind: Any, rounded: bool, steps: int) -> float:
    """Of the gradients' sum, the share that neither the estimates nor the memories hold, with bf16 gradients."""
    method = PowerSGD(rank=1, memory=kind, **EVERYTHING)
    states = started(method, (8, 6), WORKERS, torch.bfloat16)
    came, sent = torch.zeros(8, 6, dtype=torch.float64), torch.zeros(8, 6, dtype=torch.float64)
    for i in range(steps):
        tensors = [heterogeneous(w, i).bfloat16() for w in range(WORKERS)]
        estimate, states = stepped(method, tensors, states, i)
        came += torch.stack([x.double() for x in tensors]).mean(0)
        sent += estimate.double()
        if rounded:
            states = [with_memory(state, memory(state).bfloat16().float()) for state in states]
    owed = torch.stack([memory(state).double() for state in states]).mean(0)
    return float((came - sent - owed).norm() / came.norm())


def memories() -> None:
    """Growth, and what half precision would lose."""
    marks = (100, 1000, 4000)
    rows = []
    for name, gradient in (("alike", iid), ("different", heterogeneous)):
        for kind in ("local", "global"):
            rows.append([name, f'"{kind}"', *(f"{each:,.0f}" for each in largest_memories(kind, gradient, marks))])
    table(["workers", "memory", *(f"{mark:,} steps" for mark in marks)], rows)
    rows = []
    for kind in ("local", "global"):
        rows.append([f'"{kind}"', *(f"{lost(kind, rounded, 1000):.5f}" for rounded in (False, True))])
    table(["memory", "float32, as it is", "rounded to bf16 after each step"], rows)


# -- a factor that sees nothing --


def trap() -> None:
    """Every row of the gradient is orthogonal to the first factor."""
    x = torch.zeros(6, 8)
    x[:, :4] = random(6, 1, seed=0) @ random(1, 4, seed=1)
    x /= x.norm()
    q = torch.zeros(8, 2)
    q[4:] = random(4, 2, seed=2)
    rows = []
    for name, redrawn in (("a lost column is drawn anew", True), ("never, by hand", False)):
        method = PowerSGD(rank=2, **EVERYTHING)
        states, found = started(method, (6, 8), 1), []
        for i in range(50):
            if i == 0 or not redrawn:
                states = [(states[0][0]._replace(inner=states[0][0].inner._replace(factor=q)),)]
            _, states = stepped(method, [x], states, i)
            if i in (0, 1, 2, 49):
                found.append(shown(float(memory(states[0]).norm())))
        rows.append([name, *found])
    table(["the memory, in gradients, after step", "1", "2", "3", "50"], rows)


# -- the stability limit of error feedback --


def quadratic(method: PowerSGD, rate: float, steps: int = 400) -> float:
    """|X - X*| relative to its start for f = |X - X*|^2 / 2, 20 x 20, all singular values alike, exact gradients."""
    error = orthogonal(20, 20, 5)
    start, states = error.norm(), started(method, (20, 20), 1)
    for i in range(steps):
        estimate, states = stepped(method, [error], states, i)
        error = error - rate * estimate
        if not error.norm() < 1e6 * start:
            return float("nan")
    return float(error.norm() / start)


def stability() -> None:
    """Ranks and starts against learning rates."""
    rates = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    settings: list[tuple[str, dict[str, Any]]] = [
        ("rank 1", {"rank": 1}),
        ("rank 1, cold", {"rank": 1, "warm_start": False}),
        ("rank 1, without memory", {"rank": 1, "memory": "none"}),
        ("rank 1, cold, without memory", {"rank": 1, "warm_start": False, "memory": "none"}),
        ("rank 2", {"rank": 2}),
        ("rank 2, cold", {"rank": 2, "warm_start": False}),
        ("rank 4", {"rank": 4}),
        ("rank 4, cold", {"rank": 4, "warm_start": False}),
        ("rank 1, alternating", {"rank": 1, "alternating": True}),
        ("rank 1, refresh_every=5", {"rank": 1, "refresh_every": 5}),
        ("rank 1, exact refresh_every=20", {"rank": 1, "refresh": "exact", "refresh_every": 20}),
    ]
    rows = []
    for name, arguments in settings:
        method = PowerSGD(**arguments, **EVERYTHING)
        rows.append([name, *(shown(quadratic(method, rate)) for rate in rates)])
    table(["error after 400 steps at learning rate", *map(str, rates)], rows)


# -- one direction of noise --


def noisy(method: PowerSGD, sigma: float, rate: float = 0.02, steps: int = 3000) -> float:
    """What is left of a rank-3 signal when one direction beside it carries noise of this standard deviation."""
    left, right = orthogonal(20, 4, 7), orthogonal(20, 4, 8)
    signal, noise = left[:, :3] @ right[:, :3].T, left[:, 3:] @ right[:, 3:].T
    luck = random(steps, seed=9)
    x, states = torch.zeros(20, 20), started(method, (20, 20), 1)
    for i in range(steps):
        estimate, states = stepped(method, [x - signal + sigma * luck[i] * noise], states, i)
        x = x - rate * estimate
    seen = left[:, :3] @ (left[:, :3].T @ x @ right[:, :3]) @ right[:, :3].T
    return float((seen - signal).norm() / signal.norm())


def noises() -> None:
    """Feedback and start against the size of the noise."""
    sigmas = (3, 10, 30, 100)
    settings: list[tuple[str, dict[str, Any]]] = [
        ("memory, warm", {}),
        ("memory, cold", {"warm_start": False}),
        ("memory, refresh_every=10", {"refresh_every": 10}),
        ("memory, exact refresh_every=10", {"refresh": "exact", "refresh_every": 10}),
        ("memory, rank 2", {"rank": 2}),
        ("without memory, warm", {"memory": "none"}),
        ("without memory, cold", {"memory": "none", "warm_start": False}),
    ]
    rows = []
    for name, arguments in settings:
        method = PowerSGD(**({"rank": 1} | arguments), **EVERYTHING)
        rows.append([name, *(shown(noisy(method, sigma)) for sigma in sigmas)])
    table(["signal not learned, at noise", *map(str, sigmas)], rows)


def main() -> None:
    """Prints all tables."""
    torch.set_num_threads(1)
    for part in (approximations, memories, trap, stability, noises):
        print(f"## {part.__name__}")
        part()


if __name__ == "__main__":
    main()
