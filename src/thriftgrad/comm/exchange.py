"""Messages between pairs of ranks: what gloo's own collectives do with half of the link.

Gloo sends one way at a time unless a receive is posted before the sends that would queue in front of its notice; so all
receives come first. From three ranks on, messages that meet on one link slow each other down; so large ones go in
rounds, to the k-th neighbour while from the k-th one back, piece by piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

LARGE_NBYTES = 1 << 16
"""Above this, what a message takes is the link's time; below, a message's own."""

PIECE_NBYTES = 1 << 18
RING_PIECE_NBYTES = 1 << 20

FIRST_TAG, TAGS = 1 << 30, 1 << 30
"""The tags that are ours; what others send on the group without one has tag 0."""

Group = dist.ProcessGroup | None
Wait = Callable[[], None]
Turn = tuple[int, int]


class Peers(NamedTuple):
    """A process group as one of its ranks sees it."""

    group: Group
    rank: int
    world: int
    gloo: bool  # answers for tensors on the CPU

    @property
    def others(self) -> list[int]:
        """All ranks but this one."""
        return [rank for rank in range(self.world) if rank != self.rank]

    def in_pairs(self, device: torch.device) -> bool:
        """Whether the tensors of a device travel by messages between pairs of ranks."""
        return self.gloo and device.type == "cpu"

    @classmethod
    def of(cls, group: Group) -> Peers:
        """This rank's view of a group; None is the default one."""
        gloo = "cpu:gloo" in dist.get_backend_config(group).split(",")
        return cls(group, dist.get_rank(group), dist.get_world_size(group), gloo)


def as_bytes(x: Tensor) -> Tensor:
    """A tensor's elements as they lie in memory, which must be contiguous: gloo's collectives know few types."""
    return x.view(-1).view(torch.uint8)


def swap(sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], peers: Peers, tag: int, driven: bool) -> Wait:
    """Send flat bytes to some ranks and fill flat buffers with what others send; call what it returns to wait for it.

    ``tag``: one that no other messages under way have, or that all ranks use in the same order. ``driven``: somebody
    waits at once; then large messages among three or more go one by one, and two such swaps must be waited for in the
    same order on all ranks.
    """
    tag = FIRST_TAG + tag % TAGS
    largest = max((x.numel() for x in (*sends.values(), *receives.values())), default=0)
    one_by_one = driven and peers.world > 2 and largest > LARGE_NBYTES
    piece = PIECE_NBYTES if one_by_one else max(1, largest)
    expected = [
        (turn, begun(dist.irecv(part, group=peers.group, group_src=rank, tag=tag)))
        for turn, rank, part in _pieces(receives, piece, peers, -1)
    ]
    leaving = [
        (turn, partial(_sent, part, rank, peers.group, tag)) for turn, rank, part in _pieces(sends, piece, peers, +1)
    ]
    if one_by_one:
        return lambda: _in_step(leaving, expected)
    works = [send() for _, send in leaving] + [work for _, work in expected]
    return all_of(works)


def ring_gather(mine: Tensor, parts: list[Tensor], peers: Peers) -> Wait:
    """Fill the flat buffers with everybody's flat bytes by gloo's own ring, in pieces, so that both ways are busy."""
    works = [
        begun(dist.all_gather([part[at:to] for part in parts], mine[at:to], group=peers.group, async_op=True))
        for at in range(0, mine.numel(), RING_PIECE_NBYTES)
        for to in [at + RING_PIECE_NBYTES]
    ]
    return all_of(works)


def _pieces(
    messages: Mapping[int, Tensor], piece: int, peers: Peers, way: Literal[1, -1]
) -> Iterator[tuple[Turn, int, Tensor]]:
    """The pieces of the messages to or from the neighbours on one side, the nearest first."""
    for k in range(1, peers.world):
        rank = (peers.rank + way * k) % peers.world
        if rank in messages:
            parts = torch.split(messages[rank], piece) if messages[rank].numel() else ()
            yield from (((k, i), rank, part) for i, part in enumerate(parts))


def _in_step(sends: Sequence[tuple[Turn, Callable[[], dist.Work]]], expected: list[tuple[Turn, dist.Work]]) -> None:
    """Send each piece once what was to come in before its turn has: so a link carries one message each way.

    A turn waits for smaller ones alone, so all come to their end however uneven the messages are.
    """
    works = []
    arriving = deque(expected)
    for turn, send in sends:
        while arriving and arriving[0][0] < turn:
            arriving.popleft()[1].wait()
        works.append(send())
    all_of([*works, *(work for _, work in arriving)])()


def _sent(part: Tensor, rank: int, group: Group, tag: int) -> dist.Work:
    return begun(dist.isend(part, group=group, group_dst=rank, tag=tag))


def all_of(works: Sequence[dist.Work]) -> Wait:
    """What waits for them one after another."""

    def wait() -> None:
        for work in works:
            work.wait()

    return wait


def begun(work: dist.Work | None) -> dist.Work:
    """A work that this rank, which is in the group, has begun in the background."""
    assert work is not None
    return work
