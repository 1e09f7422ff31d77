"""A budget of bytes, divided among the tensors where it saves most error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.aggregate.aggregator import Aggregator, TensorState, nans
from thriftgrad.aggregate.trial import local_errors, owed, payload_bytes
from thriftgrad.comm import Comm, all_reduce, place, replicated
from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Key, TensorSpec, all_finite
from thriftgrad.theory.knapsack import allocate

log = logging.getLogger("thriftgrad")


class InUse(NamedTuple):
    """State of a tensor with the candidate that it has."""

    step: int
    inner: Any  # the candidate's state


class Chosen(NamedTuple):
    """State of one tensor."""

    allowance_bytes: int  # what it brings into a call; those of all tensors add up to the budget
    by_candidate: tuple[InUse | None, ...]  # one in use: its place, and so every path in a checkpoint, names it

    @property
    def choice(self) -> int:
        """The position of its candidate."""
        return next(i for i, each in enumerate(self.by_candidate) if each is not None)

    @property
    def step(self) -> int:
        return self._in_use.step

    @property
    def inner(self) -> Any:
        return self._in_use.inner

    @property
    def _in_use(self) -> InUse:
        return next(each for each in self.by_candidate if each is not None)


@dataclass(frozen=True, repr=False)
class Budgeted(Aggregator[Chosen]):
    r"""One candidate for each tensor, with the least sum of errors that ``bytes_per_step`` pay for.

    min over c of sum_t e(t, c_t) with sum_t b(t, c_t) <= bytes_per_step. b: what one worker hands to collectives for
    tensor t in a step of candidate c, found by trying it out; what a call needs once, a header, counts once. e:
    |x - estimate|^2, summed over workers, where x is a worker's tensor with what is owed, and each candidate estimates
    it from that worker alone, in a second step on the same x. As measured, no worse than one candidate for all.

    Measured and solved anew (``allocate``) at the first step, every ``every`` steps after it, and where the choice
    exceeds what a call brings (DDP regrouped its buckets; a tensor was not used when it was to change), with one
    all-reduce of 8 bytes for each tensor and candidate. That is not in the budget, nor is what a candidate sends now
    and then: a digest, the fit of levels, an exact refresh, bursts of ``GradiVeQ``. One that warms up (``WarmUp``,
    ``start_after``) counts as in its first steps for good. A tensor that changes its candidate adds what it owed to
    the tensor of that step, in its type, and starts afresh: its warm start, levels and momentum are lost then.

    ``init`` divides the budget, so ``Budgeted`` stands outermost, and a call (a DDP bucket) spends what its tensors
    bring: other calls, another choice. What averages out over workers (rounding) counts like what does not (a rank).

    Raises ``ValueError`` for fewer than two candidates, one given twice, numbers below 1; at ``init`` for a budget that
    is too small, for a candidate whose bytes depend on the data or the number of workers (coders, ``ScatterReduce``)
    and for one whose memory is not in the units of its tensor. Warns of a budget that leaves nothing to choose.
    As in L-GreCo, Markov et al., 2022, arXiv:2210.17357, which bounds the error and minimises the bytes.

    >>> from thriftgrad import PowerSGD
    >>> Budgeted(bytes_per_step=20000, candidates=(PowerSGD(rank=1), PowerSGD(rank=4)))
    Budgeted(bytes_per_step=20000, candidates=(PowerSGD(rank=1), PowerSGD(rank=4)))
    """

    bytes_per_step: int
    candidates: tuple[Aggregator[Any], ...]
    every: int = 100

    def __post_init__(self) -> None:
        for name in ("bytes_per_step", "every"):
            check_integer("Budgeted", name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"Budgeted: {name} must be at least 1, got {getattr(self, name)}.")
        if not isinstance(self.candidates, Sequence):
            raise TypeError(
                f"Budgeted: candidates must be a tuple such as (PowerSGD(rank=1), PowerSGD(rank=4)), got "
                f"{self.candidates!r}."
            )
        object.__setattr__(self, "candidates", tuple(self.candidates))
        for each in self.candidates:
            if not isinstance(each, Aggregator):
                raise TypeError(
                    f"Budgeted: a candidate must be an aggregator itself, such as PowerSGD(rank=1), got {each!r}; of a "
                    "recipe's method write its aggregator."
                )
        if len(set(self.candidates)) < max(2, len(self.candidates)):
            raise ValueError(
                f"Budgeted: candidates must be two or more and all different, got {self.candidates!r}; "
                "use the aggregator itself where there is one."
            )

    def chosen(self, state: Sequence[TensorState]) -> dict[str, Aggregator[Any]]:
        """The candidate of each tensor by its name; before the first step the cheapest."""
        return {spec.name: self.candidates[inner.choice] for spec, inner in state}

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """The tensors that every candidate leaves alone."""
        of_each = [set(candidate.uncompressed(specs)) for candidate in self.candidates]
        return tuple(spec.name for spec in specs if all(spec.name in names for names in of_each))

    def check(self, specs: Sequence[TensorSpec]) -> None:
        for candidate in self.candidates:
            candidate.check(specs)
        sizes, _ = self._sizes(specs)
        least, most = int(sizes.min(1).sum()), int(sizes.max(1).sum())
        if least > self.bytes_per_step:
            raise ValueError(
                f"Budgeted: bytes_per_step={self.bytes_per_step} is below the {least} bytes that the cheapest "
                f"candidates take for all {len(specs)} tensors together; give at least that, or a cheaper candidate."
            )
        if specs and most <= self.bytes_per_step:
            warnings.warn(
                f"Budgeted: bytes_per_step={self.bytes_per_step} pays for the dearest candidate of every tensor, "
                f"{most} bytes together, so it has no effect; lower it.",
                stacklevel=3,
            )

    def init_tensor(self, spec: TensorSpec) -> NoReturn:
        """``ValueError``: what an aggregator around it would call."""
        raise ValueError(
            f"Budgeted: the budget is divided among all tensors at once, so nothing can stand around {self!r}; "
            "put what should stand around it around its candidates."
        )

    def init_tensors(self, specs: Sequence[TensorSpec]) -> list[Chosen]:
        sizes, _ = self._sizes(specs)
        cheapest = sizes.argmin(1).tolist()
        return [
            self._state(allowance, choice, InUse(0, self.candidates[choice].init_tensor(spec)))
            for spec, allowance, choice in zip(specs, _allowances(sizes, self.bytes_per_step), cheapest, strict=True)
        ]

    def forms(self, spec: TensorSpec) -> Iterable[Chosen]:
        most = int(self._sizes([spec])[0].max())
        for choice, candidate in enumerate(self.candidates):
            # Of step 1, at which none is chosen (unless all are), so that a step on zeros keeps the candidate.
            yield from (self._state(most, choice, InUse(1, inner)) for inner in candidate.forms(spec))

    def _state(self, allowance_bytes: int, choice: int, in_use: InUse) -> Chosen:
        return Chosen(allowance_bytes, tuple(in_use if i == choice else None for i in range(len(self.candidates))))

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Chosen], key: Key
    ) -> Comm[tuple[list[Tensor], list[Chosen]]]:
        choices = [state.choice for state in states]
        # A parameter that was not used lags behind; it, or another grouping into calls, may make the bytes too many.
        if max(state.step for state in states) % self.every == 0 or not self._pays(specs, states):
            choices = yield from self._choose(tensors, specs, states, key)
        changed = [choice != state.choice for choice, state in zip(choices, states, strict=True)]
        given = [
            _whole(x, spec, state) if new else x
            for x, spec, state, new in zip(tensors, specs, states, changed, strict=True)
        ]
        if not all_finite(given):  # a sum left the type's range, and a sparse compressor might not show it
            given = nans(given)
        means: dict[int, Tensor] = {}
        after: dict[int, Chosen] = {}
        for choice, candidate in enumerate(self.candidates):
            group = [i for i in range(len(tensors)) if choices[i] == choice]
            if not group:
                continue
            inner = [candidate.init_tensor(specs[i]) if changed[i] else states[i].inner for i in group]
            estimates, inner = yield from candidate.exchange(
                [given[i] for i in group], [specs[i] for i in group], inner, key
            )
            means |= zip(group, estimates, strict=True)
            for i, each in zip(group, inner, strict=True):
                after[i] = self._state(states[i].allowance_bytes, choice, InUse(states[i].step + 1, each))
        return [means[i] for i in range(len(tensors))], [after[i] for i in range(len(tensors))]

    def _pays(self, specs: Sequence[TensorSpec], states: Sequence[Chosen]) -> bool:
        """Whether the budget of this call pays for the choice as it is."""
        (sizes, once), choices = self._sizes(specs), [state.choice for state in states]
        nbytes = (sizes - once)[range(len(choices)), choices].sum() + once[np.unique(choices)].sum()
        return bool(nbytes <= sum(state.allowance_bytes for state in states))

    def _choose(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Chosen], key: Key
    ) -> Comm[list[int]]:
        """The choice for the next steps, equal on all workers; as it was where somebody's error is not finite."""
        me = yield from place()
        whole = [_whole(*each) for each in zip(tensors, specs, states, strict=True)]
        everybodys = yield from all_reduce(self._errors(whole, specs, key.fold("Budgeted").private(me.rank)))
        before, budget = [state.choice for state in states], sum(state.allowance_bytes for state in states)

        def solved() -> list[int]:
            errors = everybodys.cpu().numpy()
            sizes, once = self._sizes(specs)
            return list(allocate(errors, sizes - once, budget, once)) if np.isfinite(errors).all() else before

        choices = yield from replicated(solved)
        if me.rank == 0 and choices != before:
            alone, now = self.uncompressed(specs), zip(specs, choices, strict=True)
            told = [f"{spec.name}: {self.candidates[at]!r}" for spec, at in now if spec.name not in alone]
            if told:
                log.info("Budgeted: the choice within %d bytes is now %s", budget, ", ".join(told))
        return choices

    def _errors(self, whole: Sequence[Tensor], specs: Sequence[TensorSpec], key: Key) -> Tensor:
        """This worker's errors of each tensor, by candidate: float64[t, c]; NaN if a tensor is not finite."""
        if not all_finite(whole):
            return torch.full(
                (len(whole), len(self.candidates)), torch.nan, dtype=torch.float64, device=whole[0].device
            )
        return torch.stack([local_errors(candidate, whole, specs, key) for candidate in self.candidates], 1)

    def _sizes(self, specs: Sequence[TensorSpec]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bytes of each tensor, when it travels alone, by candidate: int64[t, c]; what of them a call takes once."""
        found = [payload_bytes(candidate, spec) for spec in specs for candidate in self.candidates]
        table = np.array(found, dtype=np.int64).reshape(len(specs), len(self.candidates), 2)
        return table[:, :, 0], table[:, :, 1].min(0, initial=np.iinfo(np.int64).max)


def _allowances(sizes: NDArray[np.int64], budget: int) -> list[int]:
    """The budget by tensor: for each its cheapest candidate, and of the rest a share as its dearest one takes more."""
    least = sizes.min(1).tolist()
    ends = list(accumulate((sizes.max(1) - sizes.min(1)).tolist(), initial=0))
    rest = min(budget - sum(least), ends[-1])
    shares = [end * rest // max(1, ends[-1]) for end in ends]
    return [low + b - a for low, (a, b) in zip(least, pairwise(shares), strict=True)]


def _whole(x: Tensor, spec: TensorSpec, state: Chosen) -> Tensor:
    """The tensor with what is owed of it."""
    more = owed(state.inner, spec)
    return x if more is None else (x.to(more.dtype) + more).to(x.dtype)
