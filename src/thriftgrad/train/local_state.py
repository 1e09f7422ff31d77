"""What a checkpoint of local updates holds: anchors, outer states and memories as one flat dictionary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad.core import TensorSpec
from thriftgrad.local import Replica
from thriftgrad.local.replica import Exchanged, Part
from thriftgrad.train.state import Leaf, below, first_difference, flatten, like, restore

MEMORY = re.compile(r"(.*\bmemory)/rank(\d{5})/(.*)")
SERVERS = re.compile(r"/rank\d{5}/[^/]+/(.*/)?down/(.*/)?memory$")
"""What a parameter server has not sent back; only its own is ever used."""


def specs_of(replica: Replica) -> list[TensorSpec]:
    """The specs of what is exchanged, in the order of the parts."""
    return [state.spec for part in replica.parts for state in part.exchange]


def written(replica: Replica, arrived: Mapping[int, Exchanged], rank: int) -> dict[str, Any]:
    """The state of one rank; ``arrived`` are results that have not landed yet."""
    saved: dict[str, Any] = {"step": replica.step}
    for i, part in enumerate(replica.parts):
        saved |= _of_part(part, "", rank)
        saved |= {f"shared/{i}/buffer/{j}": x for j, x in enumerate(replica.shared_buffers[i])}
        if i in arrived:
            after, mean, buffers, _ = arrived[i]
            at = f"arrived/{i}/"
            saved |= {f"{at}skipped": int(after is None)} | (_of_part(after, at, rank) if after else {})
            saved |= {f"{at}mean/{j}": x for j, x in enumerate(mean)}
            saved |= {f"{at}buffer/{j}": x for j, x in enumerate(buffers)}
    return saved


def _of_part(part: Part, at: str, rank: int) -> dict[str, Any]:
    saved: dict[str, Any] = {}
    for anchor, state, outer, rate in zip(*part, strict=True):
        name = state.spec.name
        saved |= {f"{at}anchor/{name}": anchor, f"{at}learning_rate/{name}": rate}
        saved |= flatten(outer, f"{at}outer/{name}") | flatten(state.inner, f"{at}memory/rank{rank:05d}/{name}")
    return saved


def check_facts(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """``ValueError`` unless ``saved`` is a state of the same method, seed, parameters and format; ranks may differ."""
    if "version" not in saved or "step" not in saved:
        raise ValueError("load_state_dict: this is no state of LocalUpdates; pass what state_dict() gave.")
    place = ("rank", "world_size")
    claimed = {fact: value for fact, value in saved.items() if fact in here or fact.startswith("parameter/")}
    then, now = ({fact: v for fact, v in facts.items() if fact not in place} for facts in (claimed, here))
    if difference := first_difference(then, now):
        fact, one, other = difference
        raise ValueError(
            f"load_state_dict: the state was saved with {fact} {one}, here it is {other}; "
            "make LocalUpdates as it was then, or go on with empty memories."
        )


def read(
    replica: Replica, saved: Mapping[str, Any], rank: int, world: int
) -> tuple[int, list[Part], list[list[Tensor]], dict[int, Exchanged]]:
    """Step, parts, buffers as last shared and results that had arrived; memories of other ranks are averaged."""
    saved = _own_memories(saved, rank, world)
    step = step_of(saved)
    parts = [_part(replica, part, saved, "", rank, world) for part in replica.parts]
    shared = [
        [like(x, saved, f"shared/{i}/buffer/{j}") for j, x in enumerate(buffers)]
        for i, buffers in enumerate(replica.shared_buffers)
    ]
    arrived = {}
    for i in replica.on_their_way(step):
        at, part = f"arrived/{i}/", replica.parts[i]
        after = None if _count(saved, f"{at}skipped") else _part(replica, part, saved, at, rank, world)
        mean = [like(x, saved, f"{at}mean/{j}") for j, x in enumerate(part.anchors)]
        buffers = [like(x, saved, f"{at}buffer/{j}") for j, x in enumerate(replica.buffers(i))]
        arrived[i] = Exchanged(after, mean, buffers)
    return step, parts, shared, arrived


def step_of(saved: Mapping[str, Any]) -> int:
    """How many steps had been taken; ``ValueError`` if that is no number of them."""
    return _count(saved, "step")


def _part(replica: Replica, template: Part, saved: Mapping[str, Any], at: str, rank: int, world: int) -> Part:
    anchors, exchange, outers, rates = [], [], [], []
    for anchor, (spec, _), outer, _ in zip(*template, strict=True):
        path = f"{at}memory/rank{rank:05d}/{spec.name}"
        anchors.append(like(anchor, saved, f"{at}anchor/{spec.name}"))
        try:
            exchange.append(restore(replica.aggregator, spec, rank, world, path, below(saved, path)))
        except ValueError as error:
            if saved.get("world_size") == world:
                raise
            raise ValueError(_bound_to(saved["world_size"], path)) from error
        outers.append(_outer(outer, saved, f"{at}outer/{spec.name}"))
        rates.append(float(saved.get(f"{at}learning_rate/{spec.name}", 0.0)))
    return Part(tuple(anchors), tuple(exchange), tuple(outers), tuple(rates))


def _outer(template: Any, saved: Mapping[str, Any], path: str) -> Any:
    """The state of an outer optimiser: nothing, a tensor, or a named tuple of such."""
    if template is None:
        return None
    if isinstance(template, Tensor):
        return like(template, saved, path)
    branches = zip(template._fields, template, strict=True)
    return type(template)(*(_outer(branch, saved, f"{path}/{name}") for name, branch in branches))


def _count(saved: Mapping[str, Any], path: str) -> int:
    """A number of the checkpoint; ``ValueError`` where it is missing or none."""
    count = saved.get(path)
    if not isinstance(count, int) or count < 0:
        raise ValueError(
            f"load_state_dict: {path!r} is missing or no count, got {count!r}; the state is incomplete or altered, so "
            "use another checkpoint."
        )
    return count


def _bound_to(then: object, path: str) -> str:
    return (
        f"load_state_dict: {path!r} is cut into pieces by the number of ranks, which was {then}; "
        f"load it with {then} ranks, or go on with empty memories."
    )


def _own_memories(saved: Mapping[str, Any], rank: int, world: int) -> dict[str, Any]:
    """The state with this rank's memories alone: its own, or the mean of everybody's where their number was another."""
    then = saved.get("world_size")
    matches = {key: match for key in saved if (match := MEMORY.fullmatch(key))}
    own = {key: value for key, value in saved.items() if key not in matches}
    held = sorted({int(match[2]) for match in matches.values()})
    if not held:
        return own
    needed = [rank] if then == world else list(range(int(then or 0)))
    if missing := sorted(set(needed) - set(held)):
        what = f"rank {rank}'s own" if then == world else f"the merged states of all {then} ranks"
        raise ValueError(
            f"load_state_dict: the state of {then} ranks holds the memories of {held} and rank {rank} of {world} needs "
            f"those of {needed if then == world else missing} too; load {what}."
        )
    leaves: dict[str, list[Leaf]] = {}
    for key, match in matches.items():
        if int(match[2]) in needed:
            leaves.setdefault(f"{match[1]}/rank{rank:05d}/{match[3]}", []).append(saved[key])
    if then == world:
        return own | {path: each[0] for path, each in leaves.items()}
    for path, each in leaves.items():
        shapes = sorted({tuple(x.shape) for x in each if isinstance(x, Tensor)})
        if len(shapes) > 1:
            raise ValueError(_bound_to(then, path))
    return own | {path: _servers(each, rank) if SERVERS.search(path) else _mean(each) for path, each in leaves.items()}


def _servers(leaves: Sequence[Leaf], rank: int) -> Leaf:
    """A memory of the way back, which counts once and not for each rank: all of it to the server, rank 0."""
    first = leaves[0]
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    assert isinstance(first, Tensor)
    return torch.stack(tensors).sum(0) if rank == 0 else torch.zeros_like(first)


def _mean(leaves: Sequence[Leaf]) -> Leaf:
    """The mean of memories; what is the same everywhere, such as levels or factors, stays as it is to the bit."""
    first = leaves[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return first
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    if all(torch.equal(first, x) for x in tensors):
        return first
    return torch.stack([x.double() for x in tensors]).mean(0).to(first.dtype)
