"""A parameter server: payloads up, one compressed mean down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import (
    Aggregator,
    as_one,
    check_memories,
    left_alone,
    mean_of_messages,
    no_use,
    shown,
    warn_of_none,
)
from thriftgrad.aggregate.agreement import agreed
from thriftgrad.comm import Comm, broadcast, broadcast_varying, gather, gather_varying, place, replicated
from thriftgrad.core import Compressor, Key, Payload, TensorSpec, check_takes_tensors

ROOT = 0


class TwoWay(NamedTuple):
    """State of a compressor in each direction."""

    up: Any
    down: Any  # used at the server alone


@dataclass(frozen=True, repr=False)
class ParameterServer(Aggregator[TwoWay]):
    """Workers send ``up`` payloads to worker 0, which averages them and sends the mean back through ``down``.

    The server is one of the workers: its own payload does not cross the link, and its link carries everybody's. With
    error feedback in both directions this is DoubleSqueeze (Tang et al., 2019, arXiv:1905.05957).

    Raises ``ValueError`` for a ``down`` whose scales workers share, or a memory beside ``per_tensor=False``.
    """

    up: Compressor[Any, Any]
    down: Compressor[Any, Any]

    def __post_init__(self) -> None:
        check_takes_tensors(self.up, "ParameterServer (up)")
        check_takes_tensors(self.down, "ParameterServer (down)")
        check_memories("ParameterServer", self.up, self.down)
        if self.down.shares_scale:
            raise ValueError(
                f"ParameterServer (down): {self.down!r} shares its scales among workers, and the server is alone; "
                "use shared_scale=False."
            )

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        """Those that travel up as they are."""
        return left_alone(self.up, specs)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        for name, way in (("up", self.up), ("down", self.down)):
            warn_of_none(f"ParameterServer ({name})", specs, left_alone(way, specs), no_use(way))

    def init_tensor(self, spec: TensorSpec) -> TwoWay:
        return TwoWay(self.up.init(spec), self.down.init(spec))

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[TwoWay], key: Key
    ) -> Comm[tuple[list[Tensor], list[TwoWay]]]:
        if not (self.up.per_tensor and self.down.per_tensor) and len(tensors) > 1:
            return (yield from as_one(self, tensors, specs, states, key))
        me = yield from place()
        keys = [key.fold(spec.name).private(me.rank) for spec in specs]
        ups = yield from agreed(self.up, tensors, [state.up for state in states], keys)
        sent = [self.up.compress(*each) for each in zip(tensors, ups, keys, strict=True)]
        up_layouts = [payload.layout for payload, _ in sent]
        message = wire.pack(*[payload for payload, _ in sent])
        if wire.message_nbytes(up_layouts) is None:
            messages = yield from gather_varying(message, wire.most_nbytes(up_layouts), ROOT)
        else:
            messages = yield from gather(message, ROOT)

        keys = [key.fold(spec.name, "down") for spec in specs]
        # Who is not the server has nothing to send back, but its levels go the way of the server's.
        means = [torch.zeros_like(x) for x in tensors]
        if messages is not None:
            means = shown(mean_of_messages(messages, self.up, up_layouts))
        downs = yield from agreed(self.down, means, [state.down for state in states], keys)
        layouts = [
            self.down.layout(TensorSpec.of(x), self.down.shared(down)) for x, down in zip(tensors, downs, strict=True)
        ]
        answer = None
        if messages is not None or any(layout.shared is not None for layout in layouts):
            replies = [self.down.compress(*each) for each in zip(means, downs, keys, strict=True)]
            answer, downs = wire.pack(*[payload for payload, _ in replies]), [state for _, state in replies]
        answer = answer if messages is not None else None
        spec = TensorSpec((wire.most_nbytes(layouts),), torch.uint8, tensors[0].device)
        send = broadcast_varying if wire.message_nbytes(layouts) is None else broadcast
        message = yield from send(answer, spec, ROOT)
        payloads: list[Payload[Any]] = wire.unpack_all(message, layouts)
        estimates = yield from replicated(lambda: [self.down.decompress(payload) for payload in payloads])
        return estimates, [TwoWay(up, down) for (_, up), down in zip(sent, downs, strict=True)]
