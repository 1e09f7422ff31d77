"""How a worker and an asynchronous server find each other: a store for greetings, a gloo group of two for letters.

The server hosts a TCPStore. A worker that arrives takes a number from it, leaves its greeting under that number and
waits for the answer; then both join a process group of two that belongs to this number alone. So whoever dies breaks
its own connection and no other, and comes back under another number.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from thriftgrad.local.letters import HEAD_BYTES, body_nbytes

ADDRESS = "thriftgrad/server"
ARRIVALS = "arrivals"


class ServerGoneError(ConnectionError):
    """The server of an asynchronous training does not answer: it was never there, has ended, or is out of reach."""


class LinkDownError(ConnectionError):
    """The other end of a link has closed it, or was silent for too long."""


class Place(NamedTuple):
    """One process of a torchrun: rank 0 is the server, and worker r has rank r + 1."""

    store: Store
    rank: int
    world: int
    host: str  # of rank 0


def torchrun_place(owner: str) -> Place:
    """Where torchrun has put this process; ``ValueError`` if it was not started so."""
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f'{owner}: no address was given and {missing[0]} is not set, as torchrun would; give address="host:port".'
        )
    store, rank, world = next(iter(rendezvous("env://")))
    return Place(store, rank, world, os.environ["MASTER_ADDR"])


def served_address(place: Place, timeout_seconds: float) -> str:
    """Where rank 0 of this torchrun listens; ``ServerGoneError`` if it does not say so in time."""
    try:
        place.store.wait([ADDRESS], timedelta(seconds=timeout_seconds))
        address: str = place.store.get(ADDRESS).decode()
        return address
    except RuntimeError as error:
        raise gone(f"{place.host} (rank 0)", _short(error)) from error


def split_address(owner: str, address: str) -> tuple[str, int]:
    """Host and port of "host:port"; ``ValueError`` for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'{owner}: an address looks like "10.0.0.1:29500", got {address!r}.')
    return host, int(port)


def host_store(host: str, port: int) -> TCPStore:
    """The server's store; port 0 takes a free one. ``ValueError`` if the port is taken."""
    try:
        return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    except RuntimeError as error:
        raise ValueError(f"serve: cannot listen at {host}:{port} ({_short(error)}); take another port.") from error


class Link:
    """Letters to and from one peer; each is a head of known length, and then as many bytes as that announces."""

    def __init__(self, store: Store, number: int, rank: int, timeout_seconds: float, patience_seconds: float):
        """Join the group of this number; both ends do. ``LinkDownError`` if the other does not come in time."""
        prefix = PrefixStore(f"link/{number}", store)
        self._peer, self._patience = 1 - rank, timedelta(seconds=patience_seconds)
        with _as_link_down():
            self._group: Any = ProcessGroupGloo(prefix, rank, 2, timedelta(seconds=timeout_seconds))

    def send(self, letter: Tensor) -> None:
        """Hand a letter to the link; ``LinkDownError`` if it is down."""
        self._send(letter[:HEAD_BYTES])
        if len(letter) > HEAD_BYTES:
            self._send(letter[HEAD_BYTES:])

    def receive(self, most: int) -> Tensor:
        """The next letter; ``LinkDownError`` if none comes in time, ``PayloadError`` for one above ``most`` bytes."""
        head = self._receive(HEAD_BYTES)
        body = body_nbytes(head, most)
        return torch.cat([head, self._receive(body)]) if body else head

    def _send(self, x: Tensor) -> None:
        assert self._group is not None
        with _as_link_down():
            self._group.send([x.contiguous()], self._peer, 0).wait(self._patience)

    def _receive(self, nbytes: int) -> Tensor:
        assert self._group is not None
        x = torch.zeros(nbytes, dtype=torch.uint8)
        with _as_link_down():
            self._group.recv([x], self._peer, 0).wait(self._patience)
        return x

    def close(self) -> None:
        """Close the connection."""
        self._group = None


@contextmanager
def _as_link_down() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LinkDownError(_short(error)) from error


def _short(error: BaseException) -> str:
    """What went wrong, in a few words."""
    text = str(error)
    if "Timed out" in text or "timed out" in text or "timeout" in text.lower():
        return "no word in time"
    if "closed by peer" in text or "reset by peer" in text or "Broken pipe" in text:
        return "the connection was closed"
    return text.splitlines()[0].partition("] ")[2] or text.splitlines()[0]


# Greetings


def greet(address: str, greeting: dict[str, Any], timeout_seconds: float) -> tuple[Store, int, dict[str, Any]]:
    """A worker's arrival: the store, the number of this connection, and the server's answer.

    Raises ``ServerGoneError`` if nobody answers within the time.
    """
    host, port = split_address("address", address)
    deadline = time.monotonic() + timeout_seconds
    _wait_for_listener(host, port, deadline, timeout_seconds)
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    try:
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=left)
        number = store.add(ARRIVALS, 1) - 1
        store.set(f"hello/{number}", json.dumps(greeting))
        store.wait([f"answer/{number}"], left)
        answer: dict[str, Any] = json.loads(store.get(f"answer/{number}"))
    except RuntimeError as error:
        raise gone(address, _short(error)) from error
    return store, number, answer


def gone(address: str, reason: str) -> ServerGoneError:
    """The error of a worker that finds the server gone."""
    return ServerGoneError(
        f"the server at {address} is gone ({reason}): start it again from its checkpoint, then the workers from theirs."
    )


def _wait_for_listener(host: str, port: int, deadline: float, timeout_seconds: float) -> None:
    """Workers may be started before the server."""
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise gone(f"{host}:{port}", f"nobody listens there for {timeout_seconds:g} seconds") from error
            time.sleep(0.1)


class Door:
    """The server's side of the greetings."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store
        self._seen = 0
        self._waiting: set[int] = set()  # numbers that were taken, without a greeting so far

    def arrivals(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Those who have come since the last call; never blocks."""
        count = self._store.add(ARRIVALS, 0)
        self._waiting |= set(range(self._seen, count))
        self._seen = max(self._seen, count)
        for number in sorted(self._waiting):
            if self._store.check([f"hello/{number}"]):
                self._waiting.discard(number)
                yield number, _parsed(self._store.get(f"hello/{number}"))

    def answer(self, number: int, answer: dict[str, Any]) -> None:
        """Let the one with this number know."""
        self._store.set(f"answer/{number}", json.dumps(answer))

    def link(self, number: int, timeout_seconds: float, patience_seconds: float) -> Link:
        """The server's end of a connection; may be called from any thread."""
        store = self._store.clone()  # type: ignore[attr-defined]  # a store answers one call at a time
        return Link(store, number, 0, timeout_seconds, patience_seconds)


def _parsed(text: bytes) -> dict[str, Any]:
    """A greeting; empty if it is none."""
    try:
        greeting = json.loads(text)
    except ValueError:
        return {}
    return greeting if isinstance(greeting, dict) else {}
