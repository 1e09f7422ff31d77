"""Low rank: one step of subspace iteration on the mean of the workers' matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.aggregator import Aggregator, nans, warn_of_none
from thriftgrad.aggregate.stacks import Group, Order, Specs, beside, end_to_end, joined, laid_out, ordered, wider
from thriftgrad.aggregate.subspace import Fit, Peers, Stack, one_sided, split, two_sided
from thriftgrad.comm import Comm, place, replicated
from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Key, TensorSpec, all_finite, wide
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
        means, after, _ = yield from self._step(tensors, specs, states, key)
        return means, after

    def guarded(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[LowRank], key: Key
    ) -> Comm[tuple[list[Tensor], list[LowRank] | None]]:
        """What is not finite shows in the factors, so that only these are looked through."""
        means, after, bounded = yield from self._step(tensors, specs, states, key)
        return means, after if bounded or all_finite(means) else None

    def _step(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[LowRank], key: Key
    ) -> Comm[tuple[list[Tensor], list[LowRank], bool]]:
        """``exchange``, and whether the factors alone show that all means are finite."""
        me = yield from place()
        steps = {state.step for state in states}
        sides = {step: None if self._sends_all(step) else self._from_left(step) for step in steps}
        order = _ordered(self, Specs(specs), tuple([sides[state.step] for state in states]))
        plain = [self._whole(tensors[i], states[i]) for i in order.plain]
        stacks = [group.stack(tensors, [state.memory for state in states]) for group in order.groups]
        starts = [[self._start(specs[i], states[i], key) for i in group.chosen] for group in order.groups]

        def guard(sent: list[Tensor]) -> list[Tensor]:
            fine = all(math.isfinite(kernels.extremes(x)[1]) for x in sent)
            return sent if fine or all_finite(tensors) else nans(sent)

        peers = Peers(me.world, any(self._due(step) for step in steps), guard)
        fits, found = yield from self._fit(stacks, starts, end_to_end(plain, me.world), peers)
        means = yield from replicated(lambda: laid_out(order, specs, fits, plain, found))
        after: dict[int, LowRank] = {}
        for i in order.plain:
            state = states[i]
            if sides[state.step] is None and self.compresses(specs[i]) and state.step >= self.start_after:
                after[i] = yield from self._refreshed(specs[i], state, means[i], key)
            else:
                after[i] = LowRank(state.step + 1, state.memory, state.factor)
        most = min(torch.finfo(dtype).max for dtype in {x.dtype for x in tensors}) / 2  # with room for rounding
        bounded = all(x.dtype == tensors[i].dtype for i, x in zip(order.plain, plain, strict=True))
        bounded &= all(kernels.extremes(x)[1] <= most for x in found)
        for group, stack, iterations in zip(order.groups, stacks, fits, strict=True):
            sizes = [kernels.extremes(fit.factor) for fit in iterations]
            # No element of an orthonormal factor is above one.
            bounded &= self.rank * sum(greatest for _, greatest in sizes) < most
            any_zero = any(least == 0 for least, _ in sizes)
            owed = self._memories(group, stack, tensors, states, means)
            for i, memory, factor in zip(group.chosen, owed, self._factors(group, iterations), strict=True):
                if factor is not None and any_zero:  # as in a column that is lost
                    factor = self._renewed(factor, specs[i], states[i].step + 1, key)
                after[i] = LowRank(states[i].step + 1, memory, factor)
        means = [mean if mean.dtype == x.dtype else mean.to(x.dtype) for mean, x in zip(means, tensors, strict=True)]
        return means, [after[i] for i in range(len(tensors))], bounded

    def _fit(
        self, stacks: Sequence[Stack], starts: Sequence[Sequence[Tensor]], waiting: Sequence[Tensor], peers: Peers
    ) -> Comm[tuple[list[list[Fit]], list[Tensor]]]:
        """All iterations of one step on each stack, and the means of what was waiting; ``starts``: of each matrix."""
        if not stacks:
            return [], (yield from peers.sums([], waiting))[1]
        k = self.residual_iterations
        keep_rest = self.memory == "local" or k > 1
        found: list[Tensor] = []
        rounds: list[list[Fit]] = []
        if peers.due and not self.alternating:
            vectors = yield from peers.settle([joined(each) for each in starts])
            starts = [split(vector, wider(s.sizes, k), False) for s, vector in zip(stacks, vectors, strict=True)]
        for at in range(k):
            if self.alternating:
                begin = [fit.factor for fit in rounds[-1]] if rounds else [joined(each) for each in starts]
                fits, means = yield from one_sided(stacks, begin, waiting, peers, keep_rest)
                stacks = [stack._replace(from_left=not stack.from_left) for stack in stacks]
            else:
                block = starts if k == 1 else [[q.chunk(k, 1)[at] for q in each] for each in starts]
                fits, means = yield from two_sided(stacks, block, waiting, peers, self.power_iterations, keep_rest)
            found, waiting = found or means, []
            rounds.append(fits)
        return [list(each) for each in zip(*rounds, strict=True)], found

    def _memories(
        self,
        group: Group,
        stack: Stack,
        tensors: Sequence[Tensor],
        states: Sequence[LowRank],
        means: Sequence[Tensor],
    ) -> Sequence[Tensor | None]:
        """What each matrix goes on owing."""
        if self.memory == "local":
            return stack.matrices.tensors()
        if self.memory == "none":
            return [None] * len(group.chosen)
        return [
            (self._whole(tensors[i], states[i]) - means[i]).reshape(n, m)
            for i, (n, m, _) in zip(group.chosen, group.sizes, strict=True)
        ]

    def _factors(self, group: Group, iterations: Sequence[Fit]) -> Sequence[Tensor | None]:
        """Where each matrix starts in the next step."""
        if not self.warm_start:
            return [None] * len(group.chosen)
        ended = [fit.factor for fit in (iterations[-1:] if self.alternating else iterations)]
        return beside(ended, group.sizes, not iterations[-1].basis_is_left)

    def _whole(self, x: Tensor, state: LowRank) -> Tensor:
        """The tensor as it travels uncompressed: with its memory, which is zero before ``start_after``."""
        if state.memory is None or state.step < self.start_after:
            return x
        return x.to(state.memory.dtype) + state.memory.view(x.shape)

    def _refreshed(self, spec: TensorSpec, state: LowRank, mean: Tensor, key: Key) -> Comm[LowRank]:
        """The state after a step in which a tensor that is otherwise compressed travelled whole: nothing is owed."""
        step = state.step + 1
        memory = None if state.memory is None else torch.zeros_like(state.memory)
        factor = yield from replicated(lambda: self._leading(mean.view(matrix_shape(spec)), step))
        if factor is not None:
            factor = self._renewed(factor, spec, step, key)
        return LowRank(step, memory, factor)

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
        lost = (factor == 0).all(0)
        return torch.where(lost, self._draw(spec, step, key.fold("lost")), factor) if lost.any() else factor


@lru_cache(maxsize=64)
def _ordered(method: PowerSGD, specs: Specs, sides: tuple[bool | None, ...]) -> Order:
    """What becomes of each tensor; ``sides``: where its step starts, None where all tensors travel as they are."""
    chosen = [side if method.compresses(spec) else None for spec, side in zip(specs.each, sides, strict=True)]
    return ordered(specs.each, chosen, method.rank)
