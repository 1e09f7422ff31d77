"""Local-update methods from their papers, in plain numpy float64: what the engine's answers are compared with.

Nothing here comes from thriftgrad or torch. Workers are rows of arrays and a model is one vector. Steps count from 1, a
worker steps first and then synchronises, and ``gradients[r](x, t)`` is worker r's gradient for step t + 1, t = 0, 1 ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

Array = NDArray[np.float64]
Gradient = Callable[[Array, int], Array]
Compress = Callable[[Array], Array]
Rule = Callable[[Array, Array, Any, float], tuple[Array, Any]]  # (x, gradient or drift, state, eta) -> x, state


def identity(x: Array) -> Array:
    return x.copy()


# Compressors


def kept_by_top_k(x: Array, k: int) -> Array:
    """The positions of the min(k, d) greatest |x_i|; of equals the lowest."""
    return np.argsort(-np.abs(x), kind="stable")[: min(k, x.size)]


def top_k(x: Array, k: int) -> Array:
    sparse, kept = np.zeros_like(x), kept_by_top_k(x, k)
    sparse[kept] = x[kept]
    return sparse


def sign_top_k(x: Array, k: int, m: int = 1) -> Array:
    """||y||_m / k on the kept coordinates, with the sign of y; sgn(0) = +1."""
    sparse, kept = np.zeros_like(x), kept_by_top_k(x, k)
    y = x[kept]
    if y.any():
        sparse[kept] = (np.abs(y) ** m).sum() ** (1 / m) / y.size * np.where(y >= 0, 1.0, -1.0)
    return sparse


def statistics(values: Array, bins: int = 4, sigmas: float = 6.0) -> Array:
    """CCLoco's codebook: bins of sigmas * std / bins around the mean, each decoded as the mean of what fell into it."""
    centred = values - values.mean()
    std = sqrt((centred**2).sum() / (values.size - 1)) if values.size > 1 else 0.0
    width = sigmas * std / bins or 1.0
    symbols = np.clip(np.rint(centred / width + bins // 2), 0, bins - 1).astype(int)
    table = np.array([centred[symbols == b].mean() if (symbols == b).any() else 0.0 for b in range(bins)])
    return table[symbols] + values.mean()


# Inner and outer rules


def sgd(momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    """v = mu v + g; x -= eta v, or with Nesterov eta (g + mu v): torch.optim.SGD, without dampening."""

    def rule(x: Array, g: Array, v: Any, eta: float) -> tuple[Array, Any]:
        g = g + weight_decay * x
        v = momentum * (np.zeros_like(x) if v is None else v) + g
        return x - eta * (g + momentum * v if nesterov else v), v

    return rule


def adamw(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01) -> Rule:
    """torch.optim.AdamW: decoupled decay first, then m^ / (sqrt(v^) + eps)."""

    def rule(x: Array, g: Array, state: Any, eta: float) -> tuple[Array, Any]:
        m, v, n = state or (np.zeros_like(x), np.zeros_like(x), 0)
        m, v, n = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2, n + 1
        step = m / (1 - betas[0] ** n) / (np.sqrt(v / (1 - betas[1] ** n)) + eps)
        return x - eta * weight_decay * x - eta * step, (m, v, n)

    return rule


def average(x: Array, drift: Array, state: Any, eta: float) -> tuple[Array, Any]:
    return x - drift, state


def outer_sgd(learning_rate: float = 0.7, momentum: float = 0.9, nesterov: bool = True) -> Rule:
    """DiLoCo: m = mu m + D; x -= lr (D + mu m) with Nesterov, else lr m."""
    step = sgd(momentum, nesterov)
    return lambda x, drift, m, eta: step(x, drift, m, learning_rate)


def slow_mo(alpha: float = 1.0, beta: float = 0.7) -> Rule:
    """u = beta u + D / eta; x -= alpha eta u, with eta the inner learning rate at the sync."""

    def rule(x: Array, drift: Array, u: Any, eta: float) -> tuple[Array, Any]:
        u = beta * (np.zeros_like(x) if u is None else u) + drift / eta
        return x - alpha * eta * u, u

    return rule


# Training


@dataclass(frozen=True)
class Step:
    """Where everybody stands after a step; ``sent`` holds the messages of the workers that synchronised at it."""

    x: Array  # the shared model, [d]
    local: Array  # [R, d]
    anchor: Array  # what each worker's drift is measured from, [R, d]
    memory: Array  # [R, d]
    sent: dict[int, Array] = field(default_factory=dict)


def synchronous(
    gradients: Sequence[Gradient],
    x0: Array,
    compress: Compress,
    sync_steps: Collection[int],
    learning_rates: Sequence[float],
    steps: int,
    *,
    decay: float = 1.0,
    inner: Rule | None = None,
    outer: Rule = average,
    down: Compress = identity,
    resets: Collection[int] = (),
) -> list[Step]:
    """Qsparse-local-SGD, Algorithm 1; after steps 0 (the start), 1, ..., ``steps``.

    u = decay m + (x - local); q = C(u); m = u - q; the server adds its own memory to mean(q), compresses with ``down``
    and keeps the rest; ``outer`` moves x by what comes out. After a sync in ``resets`` workers forget their memory.
    """
    workers, inner = len(gradients), inner or sgd()
    x, local, memory, server = x0.copy(), _rows(x0, workers), _rows(0 * x0, workers), 0 * x0
    inner_state, outer_state = [None] * workers, None
    trace = [Step(x.copy(), local.copy(), _rows(x, workers), memory.copy())]
    for t in range(steps):
        sent: dict[int, Array] = {}
        for r in range(workers):
            g = gradients[r](local[r].copy(), t)
            local[r], inner_state[r] = inner(local[r], g, inner_state[r], learning_rates[t])
        if t + 1 in sync_steps:
            for r in range(workers):
                u = decay * memory[r] + (x - local[r])
                sent[r] = compress(u)
                memory[r] = u - sent[r]
            v = server + sum(sent.values()) / workers
            drift = down(v)
            server = v - drift
            x, outer_state = outer(x, drift, outer_state, learning_rates[t])
            local = _rows(x, workers)
            if t + 1 in resets:
                memory = 0 * memory
        trace.append(Step(x.copy(), local.copy(), _rows(x, workers), memory.copy(), sent))
    return trace


def asynchronous(
    gradients: Sequence[Gradient],
    x0: Array,
    compress: Compress,
    sync_sets: Sequence[Collection[int]],
    learning_rates: Sequence[float],
    steps: int,
    *,
    decay: float = 1.0,
    inner: Rule | None = None,
    down: Compress = identity,
) -> list[Step]:
    """Qsparse-local-SGD, Algorithm 2: worker r synchronises at ``sync_sets[r]``; the sum is divided by R, not |S|.

    ``x`` of a step is the server's model; it changes by what ``down`` leaves of the mean and of the server's memory,
    and those who synchronise get all of it.
    """
    workers, inner = len(gradients), inner or sgd()
    x, local, memory, server = x0.copy(), _rows(x0, workers), _rows(0 * x0, workers), 0 * x0
    anchor, state = _rows(x0, workers), [None] * workers
    trace = [Step(x.copy(), local.copy(), anchor.copy(), memory.copy())]
    for t in range(steps):
        sent: dict[int, Array] = {}
        for r in range(workers):
            local[r], state[r] = inner(local[r], gradients[r](local[r].copy(), t), state[r], learning_rates[t])
        for r in (r for r in range(workers) if t + 1 in sync_sets[r]):
            u = decay * memory[r] + (anchor[r] - local[r])
            sent[r] = compress(u)
            memory[r] = u - sent[r]
        if sent:
            v = server + sum(sent.values()) / workers
            drift = down(v)
            x, server = x - drift, v - drift
        for r in sent:
            anchor[r] = local[r] = x
        trace.append(Step(x.copy(), local.copy(), anchor.copy(), memory.copy(), sent))
    return trace


def virtual(gradients: Sequence[Gradient], trace: Sequence[Step], learning_rates: Sequence[float]) -> list[Array]:
    """v_t = x_0 - (1/R) sum_r sum_{s<t} eta_s g_s^r, on the gradients that were taken; of plain SGD inside."""
    v = [trace[0].x]
    for t, before in enumerate(trace[:-1]):
        taken = [g(row.copy(), t) for g, row in zip(gradients, before.local, strict=True)]
        v.append(v[-1] - learning_rates[t] * np.mean(taken, axis=0))
    return v


def double_squeeze(
    gradients: Sequence[Gradient], x0: Array, up: Compress, down: Compress, learning_rate: float, steps: int
) -> list[tuple[Array, Array, Array]]:
    """DoubleSqueeze, in units of gradients; x, the workers' memories and the server's after steps 0, 1, ..."""
    x, e, server = x0.copy(), _rows(0 * x0, len(gradients)), 0 * x0
    trace = [(x, e.copy(), server)]
    for t in range(steps):
        v = np.array([g(x.copy(), t) for g in gradients]) + e
        q = np.array([up(row) for row in v])
        e, total = v - q, q.mean(axis=0) + server
        moved = down(total)
        x, server = x - learning_rate * moved, total - moved
        trace.append((x, e.copy(), server))
    return trace


def streaming(
    gradients: Sequence[Gradient],
    x0: Array,
    fragments: Sequence[Sequence[int]],
    sync_every: int,
    delay: int,
    alpha: float,
    learning_rates: Sequence[float],
    steps: int,
    *,
    inner: Rule | None = None,
    outer: Rule | None = None,
    compress: Compress = identity,
) -> list[Step]:
    """Streaming DiLoCo as torchft runs it; ``fragments`` are lists of positions, each with an outer state of its own.

    Turn n = 0, 1, ... is of fragment n mod F and ends after step (n + 1) sync_every / F. ``delay`` steps earlier, after
    the inner step, the drifts (anchor - local) are captured and averaged. At its end, after the inner step: the outer
    step on that mean gives the new anchor, and local becomes anchor + alpha (local - anchor).
    """
    workers, inner, outer = len(gradients), inner or sgd(), outer or outer_sgd()
    turn_steps, x, local = sync_every // len(fragments), x0.copy(), _rows(x0, workers)
    inner_state, outer_state = [None] * workers, [None] * len(fragments)
    trace, captured = [Step(x.copy(), local.copy(), _rows(x, workers), 0 * local)], {}
    for t in range(steps):
        for r in range(workers):
            g = gradients[r](local[r].copy(), t)
            local[r], inner_state[r] = inner(local[r], g, inner_state[r], learning_rates[t])
        sent: dict[int, Array] = {}
        if (t + 1 + delay) % turn_steps == 0:
            captured_of = list(fragments[((t + 1 + delay) // turn_steps - 1) % len(fragments)])
            sent = captured = {r: compress(x[captured_of] - local[r][captured_of]) for r in range(workers)}
        if (t + 1) % turn_steps == 0:
            f = ((t + 1) // turn_steps - 1) % len(fragments)
            own, drift = list(fragments[f]), sum(captured.values()) / workers
            x[own], outer_state[f] = outer(x[own], drift, outer_state[f], learning_rates[t])
            local[:, own] = x[own] + alpha * (local[:, own] - x[own])
        trace.append(Step(x.copy(), local.copy(), _rows(x, workers), 0 * local, sent))
    return trace


# DeMo and SparseLoCo: one tensor, tile by tile


def tiles(shape: tuple[int, ...], most: int = 64) -> list[tuple[slice, ...]]:
    """The tiles of a tensor: along each axis, pieces of its length's greatest divisor up to ``most``."""
    sides = [max(s for s in range(1, min(n, most) + 1) if n % s == 0) for n in shape]
    return [
        tuple(slice(i * side, (i + 1) * side) for i, side in zip(at, sides, strict=True))
        for at in product(*(range(n // side) for n, side in zip(shape, sides, strict=True)))
    ]


def in_tiles(x: Array, f: Callable[[Array], Array], most: int = 64) -> Array:
    out = np.empty_like(x)
    for tile in tiles(x.shape, most):
        out[tile] = f(x[tile])
    return out


def dct(x: Array, most: int = 64) -> Array:
    """The orthonormal DCT-II of each tile, along all its axes."""
    return in_tiles(x, lambda tile: dctn(tile, type=2, norm="ortho"), most)


def inverse_dct(x: Array, most: int = 64) -> Array:
    return in_tiles(x, lambda tile: idctn(tile, type=2, norm="ortho"), most)


def kept_in_tiles(x: Array, k: int, most: int = 64) -> Array:
    """1 where a coordinate is among the k greatest of its tile (ties: the first in row-major order), else 0."""

    def mask(tile: Array) -> Array:
        chosen = np.zeros(tile.size)
        chosen[kept_by_top_k(tile.ravel(), k)] = 1
        return chosen.reshape(tile.shape)

    return in_tiles(x, mask, most)


def mean_of_senders(values: Sequence[Array], masks: Sequence[Array]) -> Array:
    return sum(values) / np.maximum(sum(masks), 1)


def demo_step(
    x: Array,
    gradients: Sequence[Array],
    memories: Sequence[Array],
    learning_rate: float,
    *,
    k: int = 32,
    decay: float = 0.999,
    weight_decay: float = 0.0,
    most: int = 64,
) -> tuple[Array, list[Array], Array]:
    """DeMo: the next x and memories, and the mean whose sign was applied (compare that: signs near zero are noise)."""
    u = [decay * m + learning_rate * g for m, g in zip(memories, gradients, strict=True)]
    spectra = [dct(row, most) for row in u]
    masks = [kept_in_tiles(row, k, most) for row in spectra]
    sent = [row * mask for row, mask in zip(spectra, masks, strict=True)]
    left = [row - inverse_dct(q, most) for row, q in zip(u, sent, strict=True)]
    mean = inverse_dct(mean_of_senders(sent, masks), most)
    return (1 - learning_rate * weight_decay) * x - learning_rate * np.sign(mean), left, mean


def sparse_loco_step(
    anchor: Array,
    locals_: Sequence[Array],
    memories: Sequence[Array],
    *,
    k: int,
    decay: float,
    learning_rate: float = 1.0,
    over_senders: bool = False,
    quantize: Compress = identity,
    most: int = 64,
) -> tuple[Array, list[Array]]:
    """SparseLoCo: e = decay e + drift; q = Q(TopK of each tile of e); e -= q; anchor -= lr mean(q).

    ``quantize`` sees all kept values of a tensor at once, in row-major order; ``learning_rate`` enters here alone.
    """
    u = [decay * m + (anchor - local) for m, local in zip(memories, locals_, strict=True)]
    masks = [kept_in_tiles(row, k, most) for row in u]
    sent = []
    for row, mask in zip(u, masks, strict=True):
        q = np.zeros_like(row)
        q[mask == 1] = quantize(row[mask == 1])
        sent.append(q)
    mean = mean_of_senders(sent, masks) if over_senders else sum(sent) / len(sent)
    return anchor - learning_rate * mean, [row - q for row, q in zip(u, sent, strict=True)]


def _rows(x: Array, workers: int) -> Array:
    return np.tile(x, (workers, 1))


# The golden trace: two workers, f_r = 0.5 (x - c_r)' diag(1, 4, .25) (x - c_r), full gradients, Top_1, eta = 0.1

CURVATURE = np.array([1.0, 4.0, 0.25])
OPTIMA = np.array([[1.0, 0.0, -2.0], [-1.0, 2.0, 4.0]])
START = np.array([2.0, -1.0, 3.0])
ETA = 0.1
SYNC_STEPS = (2, 4, 6)
# step: q_1, q_2, x, m_1, m_2
GOLDEN = {
    2: [(0, -0.64, 0), (0, -1.92, 0), (2, 0.28, 3), (0.19, 0, 0.246875), (0.57, 0, -0.049375)],
    4: [(0, 0, 0.49375), (1.14, 0, 0), (1.43, 0.28, 2.753125), (0.38, 0.1792, 0), (0, -1.1008, -0.09875)],
    6: [(0.4617, 0, 0), (0, -2.2016, 0), (1.19915, 1.3808, 2.753125)],
}


def quadratics(shift: Array | float = 0.0) -> list[Gradient]:
    """The golden workers' gradients, with all optima moved by ``shift``."""
    return [lambda x, t, c=c + shift: CURVATURE * (x - c) for c in OPTIMA]
