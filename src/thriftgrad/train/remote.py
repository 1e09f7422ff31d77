"""A worker of an asynchronous training, on a machine of its own: it calls the server when its schedule says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from thriftgrad.comm import Ledger
from thriftgrad.comm.ledger import NOTHING
from thriftgrad.core import Key, PayloadError
from thriftgrad.local import Caller, LocalMethod, Verdict, learning_rates_of
from thriftgrad.local.clock import round_of
from thriftgrad.local.letters import FRESH, goodbye
from thriftgrad.train.async_state import common_facts, read_caller, write_caller
from thriftgrad.train.connection import (
    Link,
    LinkDownError,
    ServerGoneError,
    gone,
    greet,
    served_address,
    torchrun_place,
)
from thriftgrad.train.parameters import Parameters, check_optimizer, named
from thriftgrad.train.stats import LocalStats

log = logging.getLogger("thriftgrad")


class AsyncUpdates:
    """What ``LocalUpdates`` is for a worker of an asynchronous server, from whose model it starts.

    ``step()`` follows every ``optimizer.step()``. It waits for the server's answer and for nobody else.

    ``params``, ``method`` and ``optimizer`` are as for ``LocalUpdates``; tensors change in place. ``rank``: this
    worker's, from 0. ``address``: the server's "host:port"; without one, this process was started by torchrun, where
    worker r has rank r + 1. ``timeout_seconds``: how long the server may take to answer, and to be found. ``resume``:
    what ``state_dict`` gave before this worker stopped. It then gets what it missed and goes on with what it had; where
    the server has had pushes from after that checkpoint, memory and drift are dropped, because they would be counted
    twice. ``ledger`` counts the bytes of this worker.

    Raises ``ServerGoneError`` where the server does not answer in time, now or later; ``ValueError`` if it was started
    with another method, seed, model, number of workers or version, or ``resume`` is not of this worker; what ``Caller``
    raises.
    """

    def __init__(
        self,
        params: Parameters,
        method: LocalMethod,
        optimizer: torch.optim.Optimizer,
        *,
        rank: int | None = None,
        workers: int | None = None,
        address: str | None = None,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        parameters, buffers, _ = named(params)
        Key(seed)
        if address is None:
            place = torchrun_place("AsyncUpdates")
            rank, workers = place.rank - 1, place.world - 1
            address = served_address(place, timeout_seconds)
        if rank is None or workers is None:
            raise ValueError(f"AsyncUpdates: with an address it needs a rank and the number of workers, got {rank=}.")
        check_optimizer("AsyncUpdates", optimizer, parameters)
        self.caller = Caller(method, parameters, rank, workers, seed, buffers)
        self.optimizer, self.ledger = optimizer, Ledger()
        self._address, self._timeout_seconds = address, timeout_seconds
        self._began = (0, 0, 0)  # steps, applied and skipped syncs when this was made or loaded
        greeting = {"rank": rank, "facts": common_facts(self.caller.terms, seed)}
        self._store, number, answer = greet(address, greeting, timeout_seconds)
        if "error" in answer:
            raise ValueError(f"AsyncUpdates: {answer['error']}")
        self._life = str(answer["life"])
        self._applied = int(answer["applied"])  # pushes of this rank that are in the server's model
        try:
            self._link: Link | None = Link(self._store, number, 1, timeout_seconds, timeout_seconds)
        except LinkDownError as error:
            raise gone(address, str(error)) from error
        if resume is None:
            self.caller.version, self.caller.applied = FRESH, self._applied
            self._exchange(self.caller.visit)
        else:
            self.load_state_dict(resume)

    def step(self) -> Verdict | None:
        """The optimiser has taken its step: call the server if it is time; what it did with the push."""
        self.caller.advance()
        if not self.caller.due():
            return None
        rates = learning_rates_of(self.optimizer, self.caller.parameters)
        verdict = self._exchange(lambda: self.caller.push(rates))
        # A push that brings nothing is one whose drift was not finite: that is told before it is sent.
        if verdict is not Verdict.APPLIED:
            log.warning("worker %d, step %d: %s", self.caller.rank, self.caller.step, _MEANING[verdict])
        return verdict

    def _exchange(self, ask: Callable[[], Tensor]) -> Verdict:
        if self._link is None:
            raise RuntimeError("AsyncUpdates: it is closed; make a new one with resume=state_dict().")
        rank, workers = self.caller.rank, self.caller.terms.workers
        start = perf_counter()
        letter = ask()
        asked = perf_counter()
        try:
            self._link.send(letter)
            reply = self._link.receive(self.caller.terms.most_reply_bytes)
        except LinkDownError as error:
            raise self._gone(str(error)) from error
        except PayloadError as error:
            raise self._gone(f"it sends what is no reply: {error}") from error
        answered = perf_counter()
        try:
            verdict = self.caller.pull(reply)
        except PayloadError:
            self._drop()  # the server believes that it was answered
            raise
        self._applied += verdict is Verdict.APPLIED
        self.ledger(round_of("Push", workers, {rank: letter}, {rank: asked - start}))
        self.ledger(round_of("Pull", workers, {rank: reply}, {rank: perf_counter() - answered}, answered - asked))
        return verdict

    def _gone(self, reason: str) -> ServerGoneError:
        self._drop()
        return gone(self._address, reason)

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def anchors(self) -> dict[str, Tensor]:
        """The server's model as this worker last saw it, by parameter."""
        return dict(zip(self.caller.parameters, self.caller.anchor, strict=True))

    def stats(self) -> LocalStats:
        """Bytes, steps and syncs of this worker since it was made or loaded."""
        traffic, caller = self.ledger.per_worker.get(self.caller.rank, NOTHING), self.caller
        steps, syncs, skipped = self._began
        return LocalStats(
            steps=caller.step - steps,
            syncs=caller.applied - syncs,
            skipped_syncs=caller.skipped_syncs - skipped,
            memory_norm=caller.memory_norm(),
            world=caller.terms.workers,
            elements=sum(p.numel() for p in caller.parameters.values()),
            payload_up_bytes=traffic.payload_up_bytes,
            payload_down_bytes=traffic.payload_down_bytes,
            up_bytes=traffic.up_bytes,
            down_bytes=traffic.down_bytes,
        )

    def state_dict(self) -> dict[str, Any]:
        """What brings this worker back: anchor, memory and local parameters; the optimiser's state is the caller's."""
        return write_caller(self.caller, self._life)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from ``saved``, local parameters included, with all that was missed since.

        Raises ``ValueError``, and changes nothing, if it was saved by another worker, or with another method, seed,
        model or number of workers, or is damaged.
        """
        life = read_caller(self.caller, saved)
        if life != self._life:  # versions of a server that was started again may name other models
            self.caller.version = FRESH
        self._exchange(self.caller.visit)
        if self._applied > self.caller.applied:
            log.info(
                "worker %d: the server has %d pushes from after this checkpoint; its memory and drift are in them",
                self.caller.rank,
                self._applied - self.caller.applied,
            )
            self.caller.forget()
        self.caller.applied = self._applied
        self._began = (self.caller.step, self.caller.applied, self.caller.skipped_syncs)

    def close(self) -> None:
        """Say goodbye: the server stops waiting for this worker."""
        if self._link is not None:
            try:
                self._link.send(goodbye())
                self._link.receive(len(goodbye()))
            except (LinkDownError, PayloadError) as error:
                log.warning("worker %d: the server has not heard the goodbye: %s", self.caller.rank, error)
            self._drop()

    def __enter__(self) -> AsyncUpdates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._drop()  # a worker that fails has not finished, and the server is to know it


_WENT_BACK = (
    "so this worker goes on from the server's model; if that goes on, its optimizer's state is not finite either, and "
    "optimizer.state.clear() begins anew"
)
_MEANING = {
    Verdict.STALE: "the push was too old for the server and goes along with the next one",
    Verdict.DAMAGED: "the push arrived damaged and goes along with the next one",
    Verdict.NOTHING: f"the drift was not finite, {_WENT_BACK}",
    Verdict.NOT_FINITE: f"the push was not finite, {_WENT_BACK}",
}
