"""Everybody sends its payloads to everybody, who decompresses them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import Aggregator, mean_of_messages
from thriftgrad.comm import Comm, all_gather, place, replicated
from thriftgrad.core import Compressor, Key, TensorSpec, check_compressor


@dataclass(frozen=True, repr=False)
class AllGather(Aggregator[Any]):
    """The mean of all workers' decompressed payloads; right for any compressor.

    Each tensor is compressed by itself, all payloads of a call travel in one message. Received bytes and the work of
    decompressing grow with the number of workers n: it pays while n times the payload is below twice the tensor.
    """

    compressor: Compressor[Any, Any]

    def __post_init__(self) -> None:
        check_compressor(self.compressor, "AllGather")

    def init_tensor(self, spec: TensorSpec) -> Any:
        return self.compressor.init(spec)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
    ) -> Comm[tuple[list[Tensor], list[Any]]]:
        me = yield from place()
        sent = [
            self.compressor.compress(x, state, key.fold(spec.name).private(me.rank))
            for x, spec, state in zip(tensors, specs, states, strict=True)
        ]
        messages = yield from all_gather(wire.pack(*[payload for payload, _ in sent]))
        layouts = [payload.layout for payload, _ in sent]
        means = yield from replicated(lambda: mean_of_messages(messages, self.compressor, layouts))
        return means, [state for _, state in sent]
