"""A parameter server: payloads up, one compressed mean down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import Aggregator, mean_of_messages
from thriftgrad.comm import Comm, broadcast, gather, place, replicated
from thriftgrad.core import Compressor, Key, Payload, TensorSpec, check_compressor

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
    """

    up: Compressor[Any, Any]
    down: Compressor[Any, Any]

    def __post_init__(self) -> None:
        check_compressor(self.up, "ParameterServer (up)")
        check_compressor(self.down, "ParameterServer (down)")

    def init_tensor(self, spec: TensorSpec) -> TwoWay:
        return TwoWay(self.up.init(spec), self.down.init(spec))

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[TwoWay], key: Key
    ) -> Comm[tuple[list[Tensor], list[TwoWay]]]:
        me = yield from place()
        sent = [
            self.up.compress(x, state.up, key.fold(spec.name).private(me.rank))
            for x, spec, state in zip(tensors, specs, states, strict=True)
        ]
        messages = yield from gather(wire.pack(*[payload for payload, _ in sent]), ROOT)
        answer, downs = None, [state.down for state in states]
        if messages is not None:
            means = mean_of_messages(messages, self.up, [payload.layout for payload, _ in sent])
            replies = [
                self.down.compress(x, state, key.fold(spec.name, "down"))
                for x, spec, state in zip(means, specs, downs, strict=True)
            ]
            answer, downs = wire.pack(*[payload for payload, _ in replies]), [state for _, state in replies]
        layouts = [self.down.layout(TensorSpec.of(x)) for x in tensors]
        spec = TensorSpec((wire.message_nbytes(layouts),), torch.uint8, tensors[0].device)
        message = yield from broadcast(answer, spec, ROOT)
        payloads: list[Payload[Any]] = wire.unpack_all(message, layouts)
        estimates = yield from replicated(lambda: [self.down.decompress(payload) for payload in payloads])
        return estimates, [TwoWay(up, down) for (_, up), down in zip(sent, downs, strict=True)]
