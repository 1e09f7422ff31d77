"""One compressor after the other: a method that starts gently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Codebook, Compressor, Key, Layout, Payload, TensorSpec, check_compressor
from thriftgrad.core.feedback import LARGE


class Stages(NamedTuple):
    """The state of a warm-up."""

    step: int  # how often it has compressed
    inner: tuple[Any, ...]  # each stage's own


@dataclass(frozen=True, repr=False)
class WarmUp(Compressor[Stages, Any]):
    """The first of ``stages`` for ``every`` steps, the next one for as many, and so on; the last one from then on.

    A payload looks like those of its stage. Both ends count the steps and a message names its stage, in the byte of its
    header that names levels, so a worker that has fallen behind is told: ``PayloadError``.

    Claims the least contraction of its stages; nothing else.

    Raises ``ValueError`` for no stages, a stage that claims no contraction, every below 1; ``TypeError`` for stages
    that are no compressors.
    Lin et al., Deep Gradient Compression, ICLR 2018, arXiv:1712.01887 keeps 25 %, 6.25 %, 1.5625 %, 0.4 % and 0.1 %, an
    epoch each.

    >>> from thriftgrad.compress import TopK
    >>> compressor = WarmUp((TopK(k=2), TopK(k=1)), every=1)
    >>> state = compressor.init(TensorSpec((3,)))
    >>> for step in range(3):
    ...     payload, state = compressor.compress(Tensor([1.0, 3.0, 2.0]), state, Key(step))
    ...     compressor.decompress(payload)
    tensor([0., 3., 2.])
    tensor([0., 3., 0.])
    tensor([0., 3., 0.])
    """

    stages: tuple[Compressor[Any, Any], ...]
    every: int

    def __post_init__(self) -> None:
        if not isinstance(self.stages, Sequence):
            raise TypeError(f"WarmUp: stages must be a tuple of compressors, got {self.stages!r}.")
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("WarmUp: no stages given; begin with a gentle one, as in (TopK(fraction=0.25), ...).")
        for stage in self.stages:
            check_compressor(stage, "WarmUp")
            if stage.contraction(LARGE) is None:
                raise ValueError(
                    f"WarmUp: every stage must claim a contraction, and {stage!r} claims none; put a memory around the "
                    "whole, as in ErrorFeedback(WarmUp(...))."
                )
        check_integer("WarmUp", "every", self.every)
        if self.every < 1:
            raise ValueError(f"WarmUp: every must be at least 1 step, got {self.every}.")

    def init(self, spec: TensorSpec) -> Stages:
        return Stages(0, tuple(stage.init(spec) for stage in self.stages))

    def _at(self, state: Stages) -> int:
        """The number of the stage whose turn it is."""
        return min(state.step // self.every, len(self.stages) - 1)

    def _with_inner(self, state: Stages, inner: Any) -> tuple[Any, ...]:
        at = self._at(state)
        return *state.inner[:at], inner, *state.inner[at + 1 :]

    def shared(self, state: Stages) -> tuple[Codebook, Any]:
        """The stage, as levels that nobody needs but whose version counts; and what the stage shares."""
        at = self._at(state)
        return Codebook(1 + at, (), ()), self.stages[at].shared(state.inner[at])

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        book, inner = shared or (Codebook(1, (), ()), None)
        layout = self.stages[book.version - 1].layout(spec, inner)
        return Layout(spec, layout.carrier, layout.side, repr(self), (book, layout.shared))

    def compress(self, x: Tensor, state: Stages, key: Key) -> tuple[Payload[Any], Stages]:
        at = self._at(state)
        payload, inner = self.stages[at].compress(x, state.inner[at], key)
        layout = self.layout(TensorSpec.of(x), self.shared(state))
        after = Stages(state.step + 1, self._with_inner(state, inner))
        return replace(payload, layout=layout), after

    def decompress(self, payload: Payload[Any]) -> Tensor:
        book, shared = payload.layout.shared
        stage: Compressor[Any, Any] = self.stages[book.version - 1]
        layout = stage.layout(payload.layout.spec, shared)
        return stage.decompress(replace(payload, layout=layout))

    def due(self, state: Stages) -> bool:
        at = self._at(state)
        return self.stages[at].due(state.inner[at])

    def peaks(self, x: Tensor, state: Stages, key: Key) -> Any:
        at = self._at(state)
        return self.stages[at].peaks(x, state.inner[at], key)

    def counts(self, x: Tensor, state: Stages, key: Key, peaks: Any) -> Any:
        at = self._at(state)
        return self.stages[at].counts(x, state.inner[at], key, peaks)

    def adapt(self, state: Stages, peaks: Any, counts: Any) -> Stages:
        at = self._at(state)
        adapted = self.stages[at].adapt(state.inner[at], peaks, counts)
        return state._replace(inner=self._with_inner(state, adapted))

    @property
    def per_tensor(self) -> bool:
        return all(stage.per_tensor for stage in self.stages)

    @property
    def shares_scale(self) -> bool:
        return any(stage.shares_scale for stage in self.stages)

    def contraction(self, n: int) -> float | None:
        claims = [stage.contraction(n) for stage in self.stages]
        known = [claim for claim in claims if claim is not None]
        return min(known) if len(known) == len(claims) else None
