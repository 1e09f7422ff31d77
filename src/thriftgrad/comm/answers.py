"""How a process group answers each request; messages travel as bytes, since gloo and NCCL know few types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thriftgrad.comm.exchange import LARGE_NBYTES, Peers, Wait, all_of, as_bytes, begun, ring_gather, swap
from thriftgrad.comm.requests import (
    AllGatherRequest,
    AllReduceRequest,
    AllToAllRequest,
    BroadcastRequest,
    GatherRequest,
    Place,
    PlaceRequest,
    ReplicatedRequest,
    Request,
)

Begun = tuple[Wait, Callable[[], Any]]
"""What waits for the answer, and the answer then."""


def answered_here(request: Request, peers: Peers) -> Any:
    """The answer to a request that needs no other rank."""
    match request:
        case PlaceRequest():
            return Place(peers.rank, peers.world)
        case ReplicatedRequest(compute):
            return compute()
    raise _unknown(request)


def ordered(request: Request, peers: Peers) -> bool:
    """Whether the ranks pair this request with each other's by the order in which they issue it, and not by its tag.

    Among more than two ranks that is so whatever travels: large messages go in step there, which begins when all ranks
    wait for them, and a rank that waits for a short one first, which the others issue later, would not get so far.
    """
    return peers.world > 2 or not peers.in_pairs(_device(request))


def _device(request: Request) -> torch.device:
    """Of the tensors that travel."""
    match request:
        case AllReduceRequest(x) | AllGatherRequest(x) | GatherRequest(x):
            return x.device
        case AllToAllRequest(xs):
            return xs[0].device
        case BroadcastRequest(_, spec):
            return spec.device
    raise _unknown(request)


def start(request: Request, peers: Peers, tag: int, driven: bool) -> Begun:
    """Issue one request; ``tag`` and ``driven`` as for ``exchange.swap``."""
    match request:
        case AllReduceRequest(x, donated):
            return _all_reduce(x, donated, peers, tag, driven)
        case AllGatherRequest(x):
            return _all_gather(x, peers, tag, driven)
        case AllToAllRequest(xs):
            return _all_to_all(xs, peers, tag, driven)
        case GatherRequest(x, root):
            return _gather(x, root, peers, tag, driven)
        case BroadcastRequest(x, spec, root):
            buffer = spec.zeros() if x is None else x.clone(memory_format=torch.contiguous_format)
            return _broadcast(buffer, root, peers, tag, driven)
    raise _unknown(request)


def _all_reduce(x: Tensor, donated: bool, peers: Peers, tag: int, driven: bool) -> Begun:
    if peers.in_pairs(x.device) and peers.world == 2:  # the bytes of a ring, in one hop
        mine, total = x.contiguous(), _like(x)
        (other,) = peers.others
        wait = swap({other: as_bytes(mine)}, {other: as_bytes(total)}, peers, tag, driven)
        return wait, lambda: total.add_(mine)
    # Memory is summed, so all ranks need one layout.
    total = x.contiguous() if donated else x.clone(memory_format=torch.contiguous_format)
    return all_of([begun(dist.all_reduce(total, group=peers.group, async_op=True))]), lambda: total


def _all_gather(x: Tensor, peers: Peers, tag: int, driven: bool) -> Begun:
    mine, in_pairs = x.contiguous(), peers.in_pairs(x.device)
    parts = [mine if in_pairs and i == peers.rank else _like(x) for i in range(peers.world)]
    received = [as_bytes(part) for part in parts]
    if not in_pairs:
        wait = all_of([begun(dist.all_gather(received, as_bytes(mine), group=peers.group, async_op=True))])
    elif peers.world > 2 and mine.nbytes > LARGE_NBYTES:
        wait = ring_gather(as_bytes(mine), received, peers)
    else:
        sends = dict.fromkeys(peers.others, as_bytes(mine))
        wait = swap(sends, {i: received[i] for i in peers.others}, peers, tag, driven)
    return wait, lambda: parts


def _all_to_all(xs: tuple[Tensor, ...], peers: Peers, tag: int, driven: bool) -> Begun:
    mine = xs[peers.rank]
    if peers.in_pairs(mine.device):
        parts = [mine if i == peers.rank else _like(mine) for i in range(peers.world)]
        sends = {i: as_bytes(xs[i].contiguous()) for i in peers.others}
        return swap(sends, {i: as_bytes(parts[i]) for i in peers.others}, peers, tag, driven), lambda: parts
    received = mine.new_empty((peers.world, *mine.shape))
    work = dist.all_to_all_single(
        as_bytes(received),
        torch.cat([as_bytes(x.contiguous()) for x in xs]),
        [mine.nbytes] * peers.world,
        [x.nbytes for x in xs],
        group=peers.group,
        async_op=True,
    )
    return all_of([begun(work)]), lambda: list(received.unbind())


def _gather(x: Tensor, root: int, peers: Peers, tag: int, driven: bool) -> Begun:
    mine, at_root = x.contiguous(), peers.rank == root
    if peers.in_pairs(x.device):
        if not at_root:
            return swap({root: as_bytes(mine)}, {}, peers, tag, driven), lambda: None
        parts = [mine if i == root else _like(x) for i in range(peers.world)]
        return swap({}, {i: as_bytes(parts[i]) for i in peers.others}, peers, tag, driven), lambda: parts
    slots = [_like(x) for _ in range(peers.world)] if at_root else None
    received = [as_bytes(slot) for slot in slots] if slots is not None else None
    work = dist.gather(as_bytes(mine), received, group=peers.group, group_dst=root, async_op=True)
    return all_of([begun(work)]), lambda: slots


def _broadcast(x: Tensor, root: int, peers: Peers, tag: int, driven: bool) -> Begun:
    """Of the root's x; elsewhere x is where it goes."""
    if not peers.in_pairs(x.device):
        wait = all_of([begun(dist.broadcast(as_bytes(x), group=peers.group, group_src=root, async_op=True))])
    elif peers.rank == root:
        wait = swap(dict.fromkeys(peers.others, as_bytes(x)), {}, peers, tag, driven)
    else:
        wait = swap({}, {root: as_bytes(x)}, peers, tag, driven)
    return wait, lambda: x


def _like(x: Tensor) -> Tensor:
    """Room for a tensor of the same shape and type, contiguous whatever x is."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _unknown(request: Request) -> TypeError:
    return TypeError(f"run: no process group can answer {type(request).__name__}; yield a request of comm.")
