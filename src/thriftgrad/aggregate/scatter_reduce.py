"""Two compressed hops: every worker averages one shard and sends it to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import Aggregator, as_one, check_memories, mean_of_messages, shown
from thriftgrad.aggregate.agreement import agreed
from thriftgrad.comm import (
    Comm,
    all_gather_uneven,
    all_gather_varying,
    all_to_all,
    all_to_all_varying,
    place,
    replicated,
)
from thriftgrad.core import Compressor, Key, Layout, TensorSpec, check_takes_tensors, wide
from thriftgrad.core.feedback import LARGE


class Shards(NamedTuple):
    """State of the two hops; empty until the first step, when the number of workers is known."""

    up: tuple[Any, ...]  # one state per shard
    down: Any  # of the shard this worker averages


@dataclass(frozen=True, repr=False)
class ScatterReduce(Aggregator[Shards]):
    """All-to-all of ``up`` payloads, mean of the own shard, all-gather of ``down`` payloads.

    Each tensor is cut into as many shards as there are workers (any length, any number: shards may differ by one
    element or be empty). Bytes per worker stay at two payloads whatever the number of workers. With
    ``ErrorFeedback(Sign())`` both ways this is the exchange of 1-bit Adam (Tang et al., 2021, arXiv:2102.02888).

    Raises ``ValueError`` for a ``down`` whose scales workers share, a memory beside ``per_tensor=False``, or a
    compressor of matrices, which shards are not.
    """

    up: Compressor[Any, Any]
    down: Compressor[Any, Any]

    def __post_init__(self) -> None:
        check_takes_tensors(self.up, "ScatterReduce (up)")
        check_takes_tensors(self.down, "ScatterReduce (down)")
        check_memories("ScatterReduce", self.up, self.down)
        for name, way in (("up", self.up), ("down", self.down)):
            if way.leaves_alone(TensorSpec((LARGE,))):
                raise ValueError(
                    f"ScatterReduce ({name}): {way!r} compresses matrices, and shards are flat, so they would travel "
                    "as they are; use AllGather or ParameterServer."
                )
        if self.down.shares_scale:
            raise ValueError(
                f"ScatterReduce (down): {self.down!r} shares its scales among workers, who each hold another shard; "
                "use shared_scale=False."
            )

    def init_tensor(self, spec: TensorSpec) -> Shards:
        return Shards((), None)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Shards], key: Key
    ) -> Comm[tuple[list[Tensor], list[Shards]]]:
        if not (self.up.per_tensor and self.down.per_tensor) and len(tensors) > 1:
            return (yield from as_one(self, tensors, specs, states, key))
        me = yield from place()
        shards = [x.reshape(-1).tensor_split(me.world) for x in tensors]
        states = [self._bound(state, parts, me.rank) for state, parts in zip(states, shards, strict=True)]
        keys = [key.fold(spec.name) for spec in specs]

        parts = [part for each in shards for part in each]
        ups = [up for state in states for up in state.up]
        up_keys = [k.fold("up", to).private(me.rank) for k in keys for to in range(me.world)]
        ups = yield from agreed(self.up, parts, ups, up_keys)
        packed = [self.up.compress(*each) for each in zip(parts, ups, up_keys, strict=True)]
        sent = [packed[i : i + me.world] for i in range(0, len(packed), me.world)]  # a row for each tensor
        up_layouts = [[row[to][0].layout for row in sent] for to in range(me.world)]
        letters = [wire.pack(*[row[to][0] for row in sent]) for to in range(me.world)]
        if any(wire.message_nbytes(each) is None for each in up_layouts):
            received = yield from all_to_all_varying(letters, [wire.most_nbytes(each) for each in up_layouts])
        else:
            received = yield from all_to_all(letters)
        mine = shown(mean_of_messages(received, self.up, up_layouts[me.rank]))

        down_keys = [k.fold("down").private(me.rank) for k in keys]
        downs = yield from agreed(self.down, mine, [state.down for state in states], down_keys)
        replies = [self.down.compress(*each) for each in zip(mine, downs, down_keys, strict=True)]
        layouts = [
            [
                self.down.layout(TensorSpec.of(each[at]), self.down.shared(down))
                for each, down in zip(shards, downs, strict=True)
            ]
            for at in range(me.world)
        ]
        message = wire.pack(*[payload for payload, _ in replies])
        lengths = [wire.most_nbytes(each) for each in layouts]
        varying = any(wire.message_nbytes(each) is None for each in layouts)
        gathered = all_gather_varying(message, max(lengths)) if varying else all_gather_uneven(message, lengths)
        messages = yield from gathered
        means = yield from replicated(lambda: self._joined(messages, layouts, specs))
        after = [Shards(tuple(state for _, state in row), reply) for row, (_, reply) in zip(sent, replies, strict=True)]
        return means, after

    def _bound(self, state: Shards, parts: Sequence[Tensor], rank: int) -> Shards:
        """The state, made at the first step for this many shards."""
        if not state.up:
            ups = tuple(self.up.init(TensorSpec.of(part)) for part in parts)
            return Shards(ups, self.down.init(TensorSpec.of(parts[rank])))
        if len(state.up) != len(parts):
            raise ValueError(
                f"ScatterReduce: the state was made for {len(state.up)} workers and there are {len(parts)}; "
                "call init again."
            )
        return state

    def _joined(
        self, messages: Sequence[Tensor], layouts: Sequence[list[Layout]], specs: Sequence[TensorSpec]
    ) -> list[Tensor]:
        """The tensors, from every worker's shards."""
        means = [spec.with_dtype(wide(spec.dtype)).zeros() for spec in specs]
        shards = zip(*[mean.view(-1).tensor_split(len(messages)) for mean in means], strict=True)
        for message, each, parts in zip(messages, layouts, shards, strict=True):
            for payload, part in zip(wire.unpack_all(message, each), parts, strict=True):
                self.down.add_to(part, payload)
        return [mean.to(spec.dtype) for mean, spec in zip(means, specs, strict=True)]
