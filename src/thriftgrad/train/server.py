"""The server of an asynchronous training: a thread for each worker's letters, and one thread that applies them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, perf_counter
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor, nn

from thriftgrad.comm import Ledger, Observer
from thriftgrad.core import Key, PayloadError
from thriftgrad.local import Hub, LocalMethod, Verdict
from thriftgrad.local.clock import round_of
from thriftgrad.local.letters import is_goodbye
from thriftgrad.train.async_state import common_facts, read_hub, write_hub
from thriftgrad.train.connection import ADDRESS, Door, LinkDownError, host_store, split_address, torchrun_place
from thriftgrad.train.parameters import named
from thriftgrad.train.report import (
    CONNECTED,
    FINISHED,
    LOST,
    NEVER,
    TURNED_AWAY,
    ServerReport,
    WorkerReport,
)
from thriftgrad.train.state import first_difference

log = logging.getLogger("thriftgrad")

POLL_SECONDS = 0.05
"""How often the server looks for workers that have come."""

JOIN_SECONDS = 30.0
"""How long a worker that was let in may take to open its connection."""


@dataclass(eq=False)
class Connection:
    """One worker's link, from its arrival to its end."""

    rank: int
    number: int
    outbox: SimpleQueue[Tensor | None] = field(default_factory=SimpleQueue)  # None: hang up
    thread: Thread | None = None


class Heard(NamedTuple):
    """A letter, or the reason why there will be none."""

    connection: Connection
    letter: Tensor | str


class Server:
    """Listens from when it is made; ``run`` serves until all workers have said goodbye. See ``serve``.

    ``hub`` holds the model, ``ledger`` the bytes of each worker, ``address`` is where workers find it.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        method: LocalMethod,
        workers: int | None = None,
        *,
        address: str | None = None,
        seed: int = 0,
        patience_seconds: float = 300.0,
        observe: Observer | None = None,
    ) -> None:
        Key(seed)
        if not patience_seconds > 0:
            raise ValueError(f"serve: patience_seconds must be positive, got {patience_seconds}.")
        # Kept, because under some launchers rank 0 hosts the store in which workers look for the address.
        self._place = torchrun_place("serve") if address is None else None
        if self._place is not None:
            if self._place.rank != 0:
                raise ValueError(f"serve: under torchrun the server is rank 0, and this is rank {self._place.rank}.")
            workers, address = self._place.world - 1, f"{self._place.host}:0"
        if workers is None or address is None:
            raise ValueError("serve: with an address it needs the number of workers; give workers=...")
        self._parameters, buffers, _ = named(model)
        self.hub = Hub(method, {name: p.cpu() for name, p in self._parameters.items()}, workers, seed, buffers)
        self.ledger = Ledger()
        host, port = split_address("serve", address)
        store = host_store(host, port)
        self.address = f"{host}:{store.port}"
        self._door = Door(store)
        if self._place is not None:
            self._place.store.set(ADDRESS, self.address)
        self._observe, self._patience_seconds = observe, patience_seconds
        self._facts = common_facts(self.hub.terms, seed)
        self._life = uuid4().hex
        self._heard: SimpleQueue[Heard] = SimpleQueue()
        self._connections: dict[int, Connection] = {}
        self._leaving: list[Connection] = []
        self._fates = dict.fromkeys(range(workers), NEVER)
        self._returns = dict.fromkeys(range(workers), 0)

    def run(self, after_commit: Callable[[Server], None] | None = None) -> ServerReport:
        """Serve until every worker has said goodbye, or those that are missing stay away for ``patience_seconds``.

        Then the parameters of ``model`` are those of the server. ``after_commit`` is called when a change has been
        made, between two letters: save ``state_dict()`` in it now and then.

        Raises ``ValueError`` if every worker had to be turned away.
        """
        try:
            self._serve(after_commit)
        finally:
            for connection in self._connections.values():
                connection.outbox.put(None)  # whoever still calls learns that nobody answers
        for connection in self._leaving:
            if connection.thread is not None:
                connection.thread.join(timeout=5)
        with torch.no_grad():
            for name, x in self.hub.model().items():
                self._parameters[name].copy_(x)
        return self.report()

    def _serve(self, after_commit: Callable[[Server], None] | None) -> None:
        heard, looked = monotonic(), 0.0
        while not all(fate == FINISHED for fate in self._fates.values()):
            if monotonic() - looked >= POLL_SECONDS:
                for number, greeting in self._door.arrivals():
                    self._let_in(number, greeting)
                    heard = monotonic()
                looked = monotonic()
            try:
                connection, letter = self._heard.get(timeout=POLL_SECONDS)
            except Empty:
                if not self._connections and monotonic() - heard > self._patience_seconds:
                    missing = [rank for rank, fate in self._fates.items() if fate != FINISHED]
                    log.warning("workers %s stay away, so the server ends", missing)
                    return
                continue
            heard = monotonic()
            if self._hear(connection, letter) and after_commit is not None:
                after_commit(self)

    def _let_in(self, number: int, greeting: dict[str, Any]) -> None:
        """Answer a greeting; with a worker of the same training, begin a connection."""
        rank, theirs = greeting.get("rank"), greeting.get("facts")
        if not isinstance(rank, int) or rank not in self._fates or not isinstance(theirs, dict):
            self._door.answer(
                number, {"error": f"the server has workers 0 to {self.hub.workers - 1}, got rank {rank}."}
            )
            log.error("a worker of rank %s was turned away: there are workers 0 to %d", rank, self.hub.workers - 1)
            return
        if difference := first_difference(self._facts, theirs):
            fact, here, there = difference
            said = (
                f"the server and worker {rank} disagree on {fact}: the server has {here}, worker {rank} has {there}; "
                "start both with the same."
            )
            self._door.answer(number, {"error": said})
            log.error("%s", said)
            if self._fates[rank] == NEVER:
                self._fates[rank] = TURNED_AWAY
            if all(fate == TURNED_AWAY for fate in self._fates.values()):
                raise ValueError(f"serve: {said}")
            return
        if self._fates[rank] not in (NEVER, TURNED_AWAY):
            self._returns[rank] += 1
        if rank in self._connections:
            log.warning("worker %d has come again; its former connection is dropped", rank)
        connection = Connection(rank, number)
        connection.thread = Thread(target=self._carry, args=(connection,), name=f"thriftgrad-{rank}", daemon=True)
        self._connections[rank], self._fates[rank] = connection, CONNECTED
        self._door.answer(number, {"life": self._life, "applied": self.hub.tallies[rank].applied})
        connection.thread.start()
        log.info("worker %d has come; the model is at version %d", rank, self.hub.version)

    def _carry(self, connection: Connection) -> None:
        """In a thread of its own: letters in, answers out, until either end hangs up."""
        link = None
        try:
            link = self._door.link(connection.number, JOIN_SECONDS, self._patience_seconds)
            while True:
                self._heard.put(Heard(connection, link.receive(self.hub.terms.most_push_bytes)))
                answer = connection.outbox.get()
                if answer is None:
                    break
                link.send(answer)  # after a goodbye, the worker is the first to hang up
        except (LinkDownError, PayloadError) as error:
            self._heard.put(Heard(connection, str(error)))
        finally:
            if link is not None:
                link.close()

    def _hear(self, connection: Connection, letter: Tensor | str) -> bool:
        """Deal with a letter, or with the end of a connection; whether the model has changed."""
        rank = connection.rank
        if self._connections.get(rank) is not connection:
            connection.outbox.put(None)  # it has said goodbye, or another process has come in its place
        elif isinstance(letter, str):
            del self._connections[rank]
            self._fates[rank] = f"{LOST}: {letter}"
            log.warning(
                "worker %d is lost after %d pushes (%s); the others go on, and it may come back from its checkpoint",
                rank,
                self.hub.tallies[rank].applied,
                letter,
            )
        elif is_goodbye(letter):
            del self._connections[rank]
            self._fates[rank] = FINISHED
            self._leaving.append(connection)
            connection.outbox.put(letter)
        else:
            return self._answer(connection, letter)
        return False

    def _answer(self, connection: Connection, letter: Tensor) -> bool:
        start, rank = perf_counter(), connection.rank
        try:
            verdict = self.hub.receive(rank, letter)
        except PayloadError as error:
            log.warning("worker %d sent what is no push, and was told: %s", rank, error)
            verdict = Verdict.DAMAGED
        if verdict is Verdict.STALE and self.hub.tallies[rank].verdicts[verdict] == 1:
            limit = self.hub.terms.server.max_staleness
            log.warning("worker %d pushes more than max_staleness=%s changes late; this is told once", rank, limit)
        changed = bool(self.hub.commit())
        reply = self.hub.reply(rank)
        connection.outbox.put(reply)
        seconds = {rank: perf_counter() - start}
        for finished in (
            round_of("Push", self.hub.workers, {rank: letter}, {rank: 0.0}),
            round_of("Pull", self.hub.workers, {rank: reply}, seconds),
        ):
            self.ledger(finished)
            if self._observe is not None:
                self._observe(finished)
        return changed

    def report(self) -> ServerReport:
        """What has happened so far."""
        workers = [
            WorkerReport.of(rank, self.hub.tallies[rank], fate, self._returns[rank], self.ledger.per_worker.get(rank))
            for rank, fate in self._fates.items()
        ]
        return ServerReport(self.hub.version, tuple(workers))

    def state_dict(self) -> dict[str, Any]:
        """What continues this training in another process: the model, its version, and the memory of ``down``."""
        return write_hub(self.hub)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from ``saved``, before ``run``; workers that come back from their checkpoints get a dense copy.

        Raises ``ValueError``, and changes nothing, if it was saved with another method, seed, model or number of
        workers, or is damaged.
        """
        read_hub(self.hub, saved)


def serve(
    model: nn.Module | Mapping[str, Tensor],
    method: LocalMethod,
    workers: int | None = None,
    *,
    address: str | None = None,
    seed: int = 0,
    patience_seconds: float = 300.0,
    resume: Mapping[str, Any] | None = None,
    after_commit: Callable[[Server], None] | None = None,
    observe: Observer | None = None,
) -> ServerReport:
    """Serve an asynchronous training until all workers have said goodbye; ``model`` is where they start.

    Workers are processes with ``AsyncUpdates``. None of them waits for another: each sends its drift when its
    schedule says so, the server applies it and answers. In the end ``model`` holds the server's parameters.

    ``address``: "host:port", a name by which workers reach this machine; without one, torchrun has started this process
    as rank 0 and the workers as the others. A worker whose connection closes is reported at once, one that sends
    nothing for ``patience_seconds`` then; the others go on, and it may come back from its checkpoint. So
    ``patience_seconds`` must exceed what a worker computes between two syncs. ``resume``: what ``Server.state_dict()``
    gave. Everything that happens to workers is logged by the logger "thriftgrad".

    Raises ``TypeError`` for a method without an ``AsyncServer``; ``ValueError`` for an address that is taken or none,
    buffers to be averaged, a state of another training, or if every worker was started with another method, seed,
    model, number of workers or version.
    """
    settings: dict[str, Any] = {"seed": seed, "patience_seconds": patience_seconds, "observe": observe}
    server = Server(model, method, workers, address=address, **settings)
    if resume is not None:
        server.load_state_dict(resume)
    return server.run(after_commit)
