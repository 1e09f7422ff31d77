"""The requests, their typed effects, and what each one means.

``y = yield from all_reduce(x)`` gives y the type ``Tensor``. A request knows what all workers must agree on
(``signature``), how a set of them is answered (``answer``) and what it costs each worker (``traffic``); how a
process group answers it stands in ``run.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from thriftgrad.comm.rounds import Traffic
from thriftgrad.core import PayloadError, TensorSpec

T = TypeVar("T")


class Request(ABC):
    """One collective that an algorithm asks for. All workers ask for the same one."""

    is_collective = True

    @abstractmethod
    def signature(self) -> tuple[Any, ...]:
        """What must be equal on all workers."""

    @abstractmethod
    def answer(self, asked: Sequence[Any]) -> list[Any]:
        """The answer to each worker, in rank order, given what each one asked."""

    @abstractmethod
    def traffic(self, rank: int, world: int) -> Traffic:
        """This worker's bytes."""


Comm: TypeAlias = Generator[Request, Any, T]


class Place(NamedTuple):
    """Who a worker is."""

    rank: int
    world: int


def _nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _described(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), str(x.dtype)


@dataclass(frozen=True)
class AllReduceRequest(Request):
    """Sum over workers; ring: 2 (n - 1) hops, 2 (n - 1) / n of the bytes each way."""

    x: Tensor
    donated: bool = False

    def signature(self) -> tuple[Any, ...]:
        return _described(self.x)

    def answer(self, asked: Sequence[AllReduceRequest]) -> list[Tensor]:
        total = asked[0].x.clone()
        for other in asked[1:]:
            total += other.x
        return [total] + [total.clone() for _ in asked[1:]]

    def traffic(self, rank: int, world: int) -> Traffic:
        size = _nbytes(self.x)
        link = -(-2 * (world - 1) * size // world)
        return Traffic(size, size, link, link, 2 * (world - 1))


@dataclass(frozen=True)
class AllGatherRequest(Request):
    """Everybody's tensor to everybody; ring: n - 1 hops."""

    x: Tensor

    def signature(self) -> tuple[Any, ...]:
        return _described(self.x)

    def answer(self, asked: Sequence[AllGatherRequest]) -> list[list[Tensor]]:
        return [[each.x for each in asked] for _ in asked]

    def traffic(self, rank: int, world: int) -> Traffic:
        size, others = _nbytes(self.x), (world - 1) * _nbytes(self.x)
        return Traffic(size, others, others, others, world - 1)


@dataclass(frozen=True)
class AllToAllRequest(Request):
    """One tensor to each worker; those for one destination have one shape. Pairwise: n - 1 hops."""

    xs: tuple[Tensor, ...]

    def signature(self) -> tuple[Any, ...]:
        return tuple(_described(x) for x in self.xs)

    def answer(self, asked: Sequence[AllToAllRequest]) -> list[list[Tensor]]:
        return [[each.xs[rank] for each in asked] for rank in range(len(asked))]

    def traffic(self, rank: int, world: int) -> Traffic:
        up = sum(_nbytes(x) for i, x in enumerate(self.xs) if i != rank)
        down = (world - 1) * _nbytes(self.xs[rank])
        return Traffic(up, down, up, down, world - 1)


@dataclass(frozen=True)
class GatherRequest(Request):
    """Everybody's tensor to the root."""

    x: Tensor
    root: int

    def signature(self) -> tuple[Any, ...]:
        return *_described(self.x), self.root

    def answer(self, asked: Sequence[GatherRequest]) -> list[list[Tensor] | None]:
        return [[each.x for each in asked] if rank == self.root else None for rank in range(len(asked))]

    def traffic(self, rank: int, world: int) -> Traffic:
        size = _nbytes(self.x)
        if rank == self.root:
            return Traffic(0, (world - 1) * size, 0, (world - 1) * size, min(1, world - 1))
        return Traffic(size, 0, size, 0, 1)


@dataclass(frozen=True)
class BroadcastRequest(Request):
    """The root's tensor to everybody; ``x`` is None elsewhere, ``spec`` says what will come."""

    x: Tensor | None
    spec: TensorSpec
    root: int

    def signature(self) -> tuple[Any, ...]:
        return self.spec.shape, str(self.spec.dtype), self.root

    def answer(self, asked: Sequence[BroadcastRequest]) -> list[Tensor]:
        x = asked[self.root].x
        assert x is not None  # the root has something to say
        return [x for _ in asked]

    def traffic(self, rank: int, world: int) -> Traffic:
        size = self.spec.nbytes
        if rank == self.root:
            return Traffic(size, 0, (world - 1) * size, 0, min(1, world - 1))
        return Traffic(0, size, 0, size, 1)


@dataclass(frozen=True)
class PlaceRequest(Request):
    """Who am I? Costs nothing."""

    is_collective = False

    def signature(self) -> tuple[Any, ...]:
        return ()

    def answer(self, asked: Sequence[PlaceRequest]) -> list[Place]:
        return [Place(rank, len(asked)) for rank in range(len(asked))]

    def traffic(self, rank: int, world: int) -> Traffic:
        return Traffic(0, 0, 0, 0, 0)


@dataclass(frozen=True)
class ReplicatedRequest(Request):
    """A computation that every worker does on equal inputs; a simulation does it once for all. Costs no bytes."""

    compute: Callable[[], Any]

    is_collective = False

    def signature(self) -> tuple[Any, ...]:
        return ()

    def answer(self, asked: Sequence[ReplicatedRequest]) -> list[Any]:
        return [self.compute()] * len(asked)

    def traffic(self, rank: int, world: int) -> Traffic:
        return Traffic(0, 0, 0, 0, 0)


def all_reduce(x: Tensor, donated: bool = False) -> Comm[Tensor]:
    """The sum of x over workers; x has one shape and type everywhere.

    It is left as it is, unless ``donated``: then the sum may take its place, which spares a copy.
    """
    answer: Tensor = yield AllReduceRequest(x, donated)
    return answer


def all_gather(x: Tensor) -> Comm[list[Tensor]]:
    """Every worker's x, in rank order; one shape and type everywhere."""
    answer: list[Tensor] = yield AllGatherRequest(x)
    return answer


def all_gather_uneven(x: Tensor, lengths: Sequence[int]) -> Comm[list[Tensor]]:
    """Every worker's flat x, where worker i's has ``lengths[i]`` elements, known to all; the padding counts as sent."""
    padded = torch.nn.functional.pad(x, (0, max(lengths) - x.numel()))
    parts = yield from all_gather(padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def all_gather_varying(x: Tensor, most: int) -> Comm[list[Tensor]]:
    """Every worker's flat x, of any length up to ``most``: lengths go round first, and the padding counts as sent."""
    lengths = yield from all_gather(torch.tensor([x.numel()], device=x.device))
    parts = yield from all_gather_uneven(x, [_checked_length(length, most) for length in lengths])
    return parts


def _checked_length(length: Tensor, most: int) -> int:
    """A length that another worker told of, before anything is allocated for it."""
    value = int(length)
    if not 0 <= value <= most:
        raise PayloadError(f"payload: a worker announces {value} bytes, and its message cannot exceed {most}.")
    return value


def all_to_all(xs: Sequence[Tensor]) -> Comm[list[Tensor]]:
    """xs[i] goes to worker i; the answer holds what each worker sent here, all of the shape of xs[own rank]."""
    answer: list[Tensor] = yield AllToAllRequest(tuple(xs))
    return answer


def all_to_all_varying(xs: Sequence[Tensor], most: Sequence[int]) -> Comm[list[Tensor]]:
    """xs[i], flat and of any length up to most[i], goes to worker i; lengths go round first, padding counts as sent."""
    rows = yield from all_gather(torch.tensor([x.numel() for x in xs], device=xs[0].device))
    lengths = [[_checked_length(length, limit) for length, limit in zip(row, most, strict=True)] for row in rows]
    me = yield from place()
    longest = [max(column) for column in zip(*lengths, strict=True)]
    padded = [torch.nn.functional.pad(x, (0, longest[to] - len(x))) for to, x in enumerate(xs)]
    parts = yield from all_to_all(padded)
    return [part[: row[me.rank]] for part, row in zip(parts, lengths, strict=True)]


def gather_varying(x: Tensor, most: int, root: int) -> Comm[list[Tensor] | None]:
    """Every worker's flat x, of any length up to ``most``, at the root; lengths go first, padding counts as sent."""
    answers = yield from all_gather(torch.tensor([x.numel()], device=x.device))
    lengths = [_checked_length(length, most) for length in answers]
    parts = yield from gather(torch.nn.functional.pad(x, (0, max(lengths) - len(x))), root)
    return parts and [part[:length] for part, length in zip(parts, lengths, strict=True)]


def broadcast_varying(x: Tensor | None, spec: TensorSpec, root: int) -> Comm[Tensor]:
    """The root's flat x everywhere, its length first; ``spec`` is that of the longest there can be."""
    length = None if x is None else torch.tensor([x.numel()], device=spec.device)
    known = yield from broadcast(length, TensorSpec((1,), torch.int64, spec.device), root)
    answer = yield from broadcast(x, replace(spec, shape=(_checked_length(known, spec.numel),)), root)
    return answer


def gather(x: Tensor, root: int) -> Comm[list[Tensor] | None]:
    """Every worker's x at the root, None elsewhere."""
    answer: list[Tensor] | None = yield GatherRequest(x, root)
    return answer


def broadcast(x: Tensor | None, spec: TensorSpec, root: int) -> Comm[Tensor]:
    """The root's x everywhere; ``spec`` is its shape and type."""
    answer: Tensor = yield BroadcastRequest(x, spec, root)
    return answer


def place() -> Comm[Place]:
    """This worker's rank and the number of workers."""
    answer: Place = yield PlaceRequest()
    return answer


def replicated(compute: Callable[[], T]) -> Comm[T]:
    """``compute()``, which is pure and has equal inputs on all workers."""
    answer: T = yield ReplicatedRequest(compute)
    return answer
