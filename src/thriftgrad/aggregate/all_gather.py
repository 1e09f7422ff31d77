"""Everybody sends its payloads to everybody, who decompresses them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import Aggregator, as_one, left_alone, mean_of_messages, no_use, warn_of_none
from thriftgrad.aggregate.agreement import agreed
from thriftgrad.comm import Comm, all_gather, all_gather_varying, place, replicated
from thriftgrad.core import Compressor, Key, TensorSpec, check_takes_tensors


@dataclass(frozen=True, repr=False)
class AllGather(Aggregator[Any]):
    """The mean of all workers' decompressed payloads; right for any compressor.

    Each tensor is compressed by itself (or all as one, if the compressor says so), and all payloads of a call travel
    in one message; where its length depends on the data, the lengths go round first. Received bytes and the work of
    decompressing grow with the number of workers n: it pays while n times the payload is below twice the tensor.

    ``mean="senders"``: the mean of each coordinate over the workers whose value there is not zero; 0 where all are.
    What few workers send counts as if all had sent it, so the estimate is biased towards rare coordinates. A memory
    still holds what its worker did not send, but the estimates no longer add up to the mean of what was sent.

    Raises ``ValueError`` for another mean. Over senders: DeMo, Peng et al., 2024, arXiv:2411.19870; SparseLoCo, Sarfi
    et al., 2025, arXiv:2508.15706.

    >>> from thriftgrad import TopK
    >>> AllGather(TopK(fraction=0.01), mean="senders")
    AllGather(compressor=TopK(fraction=0.01), mean='senders')
    """

    compressor: Compressor[Any, Any]
    mean: Literal["workers", "senders"] = "workers"

    def __post_init__(self) -> None:
        check_takes_tensors(self.compressor, "AllGather")
        if self.mean not in ("workers", "senders"):
            raise ValueError(f'AllGather: mean must be "workers" or "senders", got {self.mean!r}.')

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return left_alone(self.compressor, specs)

    def check(self, specs: Sequence[TensorSpec]) -> None:
        warn_of_none(repr(self), specs, self.uncompressed(specs), no_use(self.compressor))

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
        over_senders = self.mean == "senders"
        means = yield from replicated(lambda: mean_of_messages(messages, self.compressor, layouts, over_senders))
        return means, [state for _, state in sent]
