"""A worker of an asynchronous server: its anchor and memory, what it sends and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.core import Key, PayloadError, all_finite, memories, without_memories
from thriftgrad.local.letters import FRESH, Change, Push, Reply, Verdict, read_reply, write_push
from thriftgrad.local.method import LocalMethod
from thriftgrad.local.replica import drift, norm
from thriftgrad.local.terms import Terms, compressed, moved


class Pending(NamedTuple):
    """What was sent and is not answered yet."""

    drifts: list[Tensor]
    message: Tensor | None
    states: tuple[Any, ...]  # of the compressor, if the push is applied
    learning_rates: tuple[float, ...]


class Caller:
    """One worker's copy of the model, and what it remembers from visit to visit.

    After each step of the inner optimiser: ``advance()``; if ``due()``, ``push`` and then ``pull`` the answer. The
    drift u is the anchor, the last model it got, minus its copy; q = C(m + u) travels, the memory keeps the rest, and
    the answer is the next anchor and the next copy. ``parameters`` change in place.

    A push that the server did not apply, because it was too old or damaged on the way, is taken back: the memory stays
    as it was, and the drift goes along to the new anchor, to be part of the next push. So nothing is lost, whether or
    not there is a memory. A drift that is not finite is dropped: the worker goes on from the server's model.

    Raises what ``Hub`` raises, and ``ValueError`` for a rank outside [0, workers).
    """

    def __init__(
        self,
        method: LocalMethod,
        parameters: Mapping[str, Tensor],
        rank: int,
        workers: int,
        seed: int = 0,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not 0 <= rank < workers:
            raise ValueError(f"Caller: workers are numbered from 0 to {workers - 1}, got rank {rank}.")
        self.method, self.rank, self.seed = method, rank, seed
        self.terms = Terms(method, parameters, workers, buffers or {})
        self.parameters = dict(parameters)
        self.step = self.version = self.applied = self.skipped_syncs = 0
        self.verdicts: dict[Verdict, int] = dict.fromkeys(Verdict, 0)
        self.anchor = self.terms.start
        self.states = tuple(state.inner for state in self.terms.up_states)
        self.learning_rates = (0.0,) * len(self.anchor)  # the inner ones at the last sync
        self._pending: Pending | None = None

    def advance(self) -> None:
        """The inner optimiser has taken a step."""
        self.step += 1

    def due(self) -> bool:
        """Whether this worker calls now."""
        return self.method.schedule.due(self.step, self.rank)

    def drifts(self) -> list[Tensor]:
        """The anchor minus the local model, tensor by tensor."""
        return [drift(x, p) for x, p in zip(self.anchor, self.parameters.values(), strict=True)]

    def push(self, learning_rates: Mapping[str, float]) -> Tensor:
        """The letter with this worker's drift; ``learning_rates`` are the inner optimiser's, by parameter."""
        drifts, rates = self.drifts(), tuple(learning_rates[name] for name in self.parameters)
        if not all_finite(drifts):
            return self._ask(drifts)
        step = Key(self.seed).fold(self.step - 1)
        keys = [step.fold(name).private(self.rank) for name in self.parameters]
        message, states = compressed(self.terms.server.up, drifts, self.states, keys)
        if self.method.reset_memory_on_lr_drop:
            states = [
                without_memories(state) if rate < last else state
                for state, rate, last in zip(states, rates, self.learning_rates, strict=True)
            ]
        self._pending = Pending(drifts, message, tuple(states), rates)
        return write_push(Push(self.version, message))

    def visit(self) -> Tensor:
        """A letter that brings nothing and asks for the newest model: to begin, or to come back."""
        return self._ask(self.drifts())

    def _ask(self, drifts: list[Tensor]) -> Tensor:
        self._pending = Pending(drifts, None, self.states, self.learning_rates)
        return write_push(Push(self.version, None))

    def pull(self, letter: Tensor) -> Verdict:
        """Take over the answer: the new anchor, and the local model that follows from it.

        Raises ``PayloadError``, and changes nothing, if the letter is no answer to the last one; ``RuntimeError`` if
        nothing was asked.
        """
        if self._pending is None:
            raise RuntimeError("Caller: there is no question to this answer; call push() or visit() first.")
        asked, reply = self._pending, read_reply(letter, self.terms.most_reply_bytes)
        anchor = self._followed(reply, asked)
        if not all_finite(anchor):
            raise PayloadError("reply: the server's model is not finite, so it was altered on the way.")
        kept = reply.verdict in (Verdict.NOTHING, Verdict.STALE, Verdict.DAMAGED) and all_finite(asked.drifts)
        if reply.verdict is Verdict.APPLIED:
            self.states, self.learning_rates = asked.states, asked.learning_rates
            self.applied += 1
        elif not kept:
            self.skipped_syncs += 1
        with torch.no_grad():
            for parameter, x, moving in zip(self.parameters.values(), anchor, asked.drifts, strict=True):
                parameter.copy_(x - moving if kept else x)
        self.anchor, self.version, self._pending = anchor, reply.version, None
        self.verdicts[reply.verdict] += 1
        return reply.verdict

    def _followed(self, reply: Reply, asked: Pending) -> list[Tensor]:
        """The server's model: the dense copy, or this anchor with all changes since."""
        if reply.dense is not None:
            return self.terms.read_dense(reply.dense)
        if self.version == FRESH or len(reply.changes) != reply.version - self.version:
            raise PayloadError(
                f"reply: {len(reply.changes)} changes do not lead from version {self.version} to {reply.version}."
            )
        anchor = self.anchor
        for change in reply.changes:
            anchor = moved(anchor, self.terms.change(self._messages(change, asked)))
        return anchor

    def _messages(self, change: Change, asked: Pending) -> Sequence[Tensor]:
        messages = [asked.message if message is None else message for _, message in change.messages]
        if not messages or (self.terms.server.down is not None and len(messages) != 1):
            raise PayloadError(f"reply: a change of {len(messages)} messages is none of ours.")
        if any(message is None for message in messages):
            raise PayloadError("reply: it counts on a message that this worker did not send.")
        return [message for message in messages if message is not None]

    def forget(self) -> None:
        """Owe nothing: the memory is empty and the local model is the anchor."""
        self.states = without_memories(self.states)
        with torch.no_grad():
            for parameter, x in zip(self.parameters.values(), self.anchor, strict=True):
                parameter.copy_(x)

    def restart(
        self,
        step: int,
        version: int,
        applied: int,
        anchor: Sequence[Tensor],
        states: Sequence[Any],
        learning_rates: Sequence[float],
    ) -> None:
        """Go on from a checkpoint; the parameters are the caller's to restore."""
        self.step, self.version, self.applied = step, version, applied
        self.anchor, self.states, self.learning_rates = list(anchor), tuple(states), tuple(learning_rates)
        self._pending = None

    def memory_norm(self) -> float:
        """The l2 norm of what was compressed away and not sent yet."""
        return norm(memories(self.states))
