"""Everybody sends its payloads to everybody, who decompresses them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import Aggregator, as_one, mean_of_messages
from thriftgrad.aggregate.agreement import agreed
from thriftgrad.comm import Comm, all_gather, all_gather_varying, place, replicated
from thriftgrad.core import Compressor, Key, TensorSpec, check_takes_tensors


@dataclass(frozen=True, repr=False)
class AllGather(Aggregator[Any]):
    """The mean of all workers' decompressed payloads; right for any compressor.

    Each tensor is compressed by itself (or all as one, if the compressor says so), and all payloads of a call travel
    in one message; where its length depends on the data, the lengths go round first. Received bytes and the work of
    decompressing grow with the number of workers n: it pays while n times the payload is below twice the tensor.
    """

    compressor: Compressor[Any, Any]

    def __post_init__(self) -> None:
        check_takes_tensors(self.compressor, "AllGather")

    def init_tensor(self, spec: TensorSpec) -> Any:
        return self.compressor.init(spec)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[Any], key: Key
    ) -> Comm[tuple[list[Tensor], list[Any]]]:
        if not self.compressor.per_tensor and len(tensors) > 1:
            return (yield from as_one(self, tensors, specs, states, key))
        me = yield from place()
        keys = [key.fold(spec.name).private(me.rank) for spec in specs]
        states = yield from agreed(self.compressor, tensors, states, keys)
        sent = [self.compressor.compress(*each) for each in zip(tensors, states, keys, strict=True)]
        layouts = [payload.layout for payload, _ in sent]
        message, most = wire.pack(*[payload for payload, _ in sent]), wire.most_nbytes(layouts)
        varying = wire.message_nbytes(layouts) is None
        messages = yield from all_gather_varying(message, most) if varying else all_gather(message)
        means = yield from replicated(lambda: mean_of_messages(messages, self.compressor, layouts))
        return means, [state for _, state in sent]
