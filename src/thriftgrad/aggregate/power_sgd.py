"""Low rank: one step of subspace iteration on the mean of the workers' matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.aggregator import Aggregator, warn_of_none
from thriftgrad.aggregate.drift import settled
from thriftgrad.aggregate.subspace import Fit, Fits, one_sided, two_sided
from thriftgrad.comm import Comm, place, replicated
from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Key, TensorSpec, wide
from thriftgrad.core.matrices import matrix_shape


class LowRank(NamedTuple):
    """State of one tensor."""

    step: int
    memory: Tensor | None  # float32 or float64, [n, m]: what was not sent; None where nothing is remembered
    factor: Tensor | None  # float32[m or n, r]: where the next step starts, equal on all workers; None to draw one


@dataclass(frozen=True, repr=False)
class PowerSGD(Aggregator[LowRank]):
    r"""Rank-r approximation P Q^T of the mean gradient, with error feedback.

    A tensor is viewed as M = gradient + memory, n x m with n its first dimension. With Q shared by all workers:
    P = orthonormalise(mean(M Q)), Q' = mean(M^T P), estimate P Q'^T; memory' = M - P (M^T P)^T. Both means are
    all-reduces, so the estimate equals that of one worker holding the mean matrix.

    Wire per step: r (n + m) floats for each compressed tensor; the others (vectors, and matrices with
    n m <= min_compression_rate r (n + m)) travel as they are, in one buffer with the P factors.

    ``warm_start``: go on from the last Q; else draw a new one each step. ``power_iterations``: refine the same rank
    with more rounds. ``residual_iterations``: do it all again on what is left, so that k of them send rank k r; with
    both sides in a step that is rank k r itself, in more rounds, so it is meant for ``alternating``.
    ``alternating``: one product and one all-reduce a step, from the right and from the left by turns; half the floats.
    ``residual_iterations=k`` is then k products of rank ceil(k / 2) r: a left one completes the right one before it.
    ``start_after``: all-reduce as it is for so many steps first.
    ``refresh_every``: so often leave the subspace, for a random one, or ("exact") for the leading singular vectors of
    the mean, which travels as it is in that step, memory included.
    ``memory``: "local", against the worker's own factor; "global", against the estimate, as the paper's code and
    PyTorch's hook do: the mean over workers is the same, but each memory grows with the difference between workers;
    "none".
    ``check_every``: so often compare a digest of the shared factors; worker 0's are taken where one has drifted, and
    the log "thriftgrad" says so.

    Exact on means of rank r or less. Equal shapes are batched, each matrix orthonormalised by itself. A column that is
    lost (a zero gradient, a rank below r, a subspace that the gradient has left) sends nothing and is drawn anew.

    Raises ``ValueError`` for numbers below their least and for settings that exclude each other, ``TypeError`` for a
    count that is no integer.
    Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727; alternating: Zhang et al., ACP-SGD, 2023, arXiv:2306.08881;
    exact refresh: Xie et al., PowerSGD+, 2025, arXiv:2509.11254. Differs from the paper: the memory is local, and
    small matrices travel as they are. Factors are float32 whatever the gradient's type.

    >>> PowerSGD(rank=2)
    PowerSGD()
    """

    rank: int = 2
    warm_start: bool = True
    power_iterations: int = 1
    residual_iterations: int = 1
    alternating: bool = False
    min_compression_rate: float = 2.0
    start_after: int = 0
    memory: Literal["local", "global", "none"] = "local"
    refresh: Literal["random", "exact"] = "random"
    refresh_every: int | None = None
    check_every: int | None = 100

    def __post_init__(self) -> None:
        least = {"rank": 1, "power_iterations": 1, "residual_iterations": 1, "start_after": 0}
        for name, low in (least | {"refresh_every": 1, "check_every": 1}).items():
            value = getattr(self, name)
            if name in least or value is not None:
                check_integer("PowerSGD", name, value)
                self._check_least(name, low)
        self._check_least("min_compression_rate", 0)
        for name, known in (("memory", ("local", "global", "none")), ("refresh", ("random", "exact"))):
            if getattr(self, name) not in known:
                raise ValueError(f"PowerSGD: {name} must be one of {known}, got {getattr(self, name)!r}.")
        if self.alternating and self.power_iterations > 1:
            raise ValueError(
                f"PowerSGD: alternating=True is one product a step, so power_iterations={self.power_iterations} has no "
                "place in it; use residual_iterations."
            )
        if self.refresh_every is not None and not self.warm_start:
            raise ValueError(
                f"PowerSGD: refresh_every={self.refresh_every} has no effect with warm_start=False, which draws a new "
                "subspace at every step; leave one of them out."
            )
        if self.refresh_every is None and self.refresh == "exact":
            raise ValueError('PowerSGD: refresh="exact" has no effect without refresh_every; give both or neither.')
        if self.refresh_every == 1 and self.refresh == "exact":
            raise ValueError(
                'PowerSGD: refresh="exact" with refresh_every=1 sends every tensor as it is in every step; refresh '
                "less often, or use AllReduce."
            )

    def _check_least(self, name: str, low: int) -> None:
        if not getattr(self, name) >= low:
            raise ValueError(f"PowerSGD: {name} must be at least {low}, got {getattr(self, name)}.")

    def compresses(self, spec: TensorSpec) -> bool:
        """Whether a tensor of this shape is worth factors."""
        if len(spec.shape) < 2:
            return False
        n, m = matrix_shape(spec)
        return self.min_compression_rate * self.floats(spec) < n * m

    def floats(self, spec: TensorSpec) -> float:
        """Floats of its factors in a step; the mean of two steps where the sides alternate."""
        n, m = matrix_shape(spec)
        return self.residual_iterations * min(self.rank, n, m) * (n + m) / (2 if self.alternating else 1)

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return tuple(spec.name for spec in specs if not self.compresses(spec))

    def check(self, specs: Sequence[TensorSpec]) -> None:
        why = f"they are vectors, or too small for their rank to save {self.min_compression_rate} times"
        warn_of_none(repr(self), specs, self.uncompressed(specs), why)

    def init_tensor(self, spec: TensorSpec) -> LowRank:
        if not self.compresses(spec) or self.memory == "none":
            return LowRank(0, None, None)
        return LowRank(0, TensorSpec(matrix_shape(spec), wide(spec.dtype), spec.device).zeros(), None)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[LowRank], key: Key
    ) -> Comm[tuple[list[Tensor], list[LowRank]]]:
        me = yield from place()
        batches: dict[tuple[object, ...], list[int]] = {}
        plain: list[int] = []
        for i, (spec, state) in enumerate(zip(specs, states, strict=True)):
            if self.compresses(spec) and not self._sends_all(state.step):
                kind = matrix_shape(spec), wide(spec.dtype), spec.device, self._from_left(state.step)
                batches.setdefault(kind, []).append(i)
            else:
                plain.append(i)

        matrices = [self._owed([tensors[i] for i in batch], [states[i] for i in batch]) for batch in batches.values()]
        given = [m.clone() for m in matrices] if self.memory == "global" else []
        starts = [torch.stack([self._start(specs[i], states[i], key) for i in batch]) for batch in batches.values()]
        lefts = [self._from_left(states[batch[0]].step) for batch in batches.values()]
        waiting = [self._whole(tensors[i], states[i]) / me.world for i in plain]
        due = any(self._due(state.step) for state in states)
        fits, plain_means = yield from self._fit(matrices, starts, lefts, waiting, me.world, due)

        means = dict(zip(plain, plain_means, strict=True))
        after = {}
        for i in plain:
            after[i] = yield from self._after_all(specs[i], states[i], means[i], key)
        for batch, fit, memories in zip(batches.values(), fits, self._memories(fits, given), strict=True):
            any_lost = self.warm_start and bool((fit.factors == 0).all(1).any())
            for at, i in enumerate(batch):
                means[i] = fit.estimate[at].view(specs[i].shape)
                factor = fit.factors[at].clone() if self.warm_start else None  # else it would keep a whole buffer
                if factor is not None and any_lost:
                    factor = self._renewed(factor, specs[i], states[i].step + 1, key)
                after[i] = LowRank(states[i].step + 1, None if memories is None else memories[at], factor)
        order = range(len(tensors))
        return [means[i].to(tensors[i].dtype) for i in order], [after[i] for i in order]

    def _fit(
        self,
        matrices: Sequence[Tensor],
        starts: Sequence[Tensor],
        lefts: Sequence[bool],
        waiting: Sequence[Tensor],
        world: int,
        due: bool,
    ) -> Comm[Fits]:
        """All iterations of one step; ``lefts``: which batches start from a left factor, only where sides alternate."""

        def settle(factors: Sequence[Tensor]) -> Comm[Sequence[Tensor]]:
            return (yield from settled("PowerSGD", factors)) if due and factors else factors

        rests, factors = list(matrices), list(starts)
        estimates: list[Tensor] = []
        means: list[Tensor] = []
        k = self.residual_iterations
        for at in range(k if matrices else 1):
            if self.alternating:
                fits, found = yield from one_sided(rests, factors, lefts, waiting, world, settle)
                factors, lefts = [fit.factors for fit in fits], [not left for left in lefts]
            else:
                blocks = [start.chunk(k, 2)[at] for start in starts]
                fits, found = yield from two_sided(rests, blocks, waiting, world, self.power_iterations, settle)
                ended = [fit.factors for fit in fits]
                factors = ended if at == 0 else [torch.cat(each, 2) for each in zip(factors, ended, strict=True)]
            means, waiting = means or found, []
            rests = [fit.rest for fit in fits]
            found_now = [fit.estimate for fit in fits]
            estimates = [a + b for a, b in zip(estimates, found_now, strict=True)] if estimates else found_now
        return [Fit(*each) for each in zip(estimates, rests, factors, strict=True)], means

    def _owed(self, tensors: Sequence[Tensor], states: Sequence[LowRank]) -> Tensor:
        """Tensors of one shape with their memories, as matrices in a batch."""
        shape = matrix_shape(TensorSpec.of(tensors[0]))
        batch = tensors[0].new_empty((len(tensors), *shape), dtype=wide(tensors[0].dtype))
        for row, x, state in zip(batch, tensors, states, strict=True):
            if state.memory is None:
                row.copy_(x.reshape(shape))
            else:
                torch.add(x.reshape(shape).to(row.dtype), state.memory, out=row)
        return batch

    def _memories(self, fits: Sequence[Fit], given: Sequence[Tensor]) -> list[Tensor | None]:
        """What each batch goes on owing; ``given``: what it owed, where that is compared with the estimate."""
        if self.memory == "local":
            return [fit.rest for fit in fits]
        if self.memory == "global":
            return [matrix - fit.estimate for matrix, fit in zip(given, fits, strict=True)]
        return [None] * len(fits)

    def _whole(self, x: Tensor, state: LowRank) -> Tensor:
        """The tensor as it travels uncompressed: with its memory, which is zero before ``start_after``."""
        if state.memory is None or state.step < self.start_after:
            return x
        return x.to(state.memory.dtype) + state.memory.view(x.shape)

    def _after_all(self, spec: TensorSpec, state: LowRank, mean: Tensor, key: Key) -> Comm[LowRank]:
        """The state after a step in which the tensor travelled as it is: nothing is owed."""
        after = state._replace(step=state.step + 1)
        if not self.compresses(spec) or state.step < self.start_after:
            return after
        memory = None if state.memory is None else torch.zeros_like(state.memory)
        factor = yield from replicated(lambda: self._leading(mean.view(matrix_shape(spec)), after.step))
        if factor is not None:
            factor = self._renewed(factor, spec, after.step, key)
        return LowRank(after.step, memory, factor)

    def _leading(self, mean: Tensor, step: int) -> Tensor | None:
        """The leading singular vectors of the mean, on the side where this step starts; None if it is not finite."""
        if not mean.isfinite().all():
            return None
        left, _, right = torch.linalg.svd(mean.to(wide(mean.dtype)), full_matrices=False)
        vectors = left if self._from_left(step) else right.mT
        columns = min(self.rank, *mean.shape) * (1 if self.alternating else self.residual_iterations)
        missing = columns - vectors.shape[1]  # zeros, to be drawn anew
        return torch.nn.functional.pad(vectors[:, :columns], (0, max(0, missing))).to(torch.float32).contiguous()

    def _sends_all(self, step: int) -> bool:
        """Whether all tensors travel as they are in this step."""
        return step < self.start_after or (self.refresh == "exact" and self._refreshes(step))

    def _refreshes(self, step: int) -> bool:
        return self.refresh_every is not None and (step - self.start_after) % self.refresh_every == 0

    def _due(self, step: int) -> bool:
        """Whether digests go round in this step."""
        return self.check_every is not None and (step + 1) % self.check_every == 0

    def _from_left(self, step: int) -> bool:
        """Whether this step starts from a left factor: sides alternate from product to product."""
        return self.alternating and step * self.residual_iterations % 2 == 1

    def _start(self, spec: TensorSpec, state: LowRank, key: Key) -> Tensor:
        if state.factor is None or (self.refresh == "random" and self._refreshes(state.step)):
            return self._draw(spec, state.step, key)
        return state.factor

    def _draw(self, spec: TensorSpec, step: int, key: Key) -> Tensor:
        """A random factor to start from, the same on every worker: standard normal, float32[m or n, r]."""
        n, m = matrix_shape(spec)
        rows = n if self._from_left(step) else m
        columns = min(self.rank, n, m) * (1 if self.alternating else self.residual_iterations)
        seed = key.fold("PowerSGD", spec.name).seed
        return kernels.normal(rows * columns, seed, spec.device).view(rows, columns)

    def _renewed(self, factor: Tensor, spec: TensorSpec, step: int, key: Key) -> Tensor:
        """The factor with its lost columns drawn anew; ``step`` is the one that it starts."""
        return torch.where((factor == 0).all(0), self._draw(spec, step, key.fold("lost")), factor)
