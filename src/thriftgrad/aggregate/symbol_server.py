"""A parameter server that adds symbols and sends their sums back: TernGrad's exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate.aggregator import Aggregator, as_one
from thriftgrad.aggregate.agreement import agreed
from thriftgrad.aggregate.server import ROOT
from thriftgrad.comm import Comm, broadcast, gather, place, replicated
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, check_compressor
from thriftgrad.core.feedback import LARGE


@dataclass(frozen=True, repr=False)
class SymbolServer(Aggregator[Any]):
    """Workers send symbols on one shared scale to worker 0, whose answer is the exact sum of everybody's symbols.

    The mean of N workers' estimates on 2 s + 1 uniform levels takes one of 2 N s + 1 values, so it goes back without
    loss in ceil(log2(2 N s + 1)) bits a coordinate: 2 N + 1 levels for the ternary ones of TernGrad. The scales do
    not go back, everybody has them. The server is one of the workers; its link carries everybody's payloads.

    Raises ``ValueError`` for a compressor whose workers do not share their scales, or that does not send one symbol for
    each coordinate, as a coder or a sparsifier.
    Wen et al., TernGrad, NeurIPS 2017, arXiv:1705.07878.

    >>> from thriftgrad.compress import TernGrad
    >>> SymbolServer(TernGrad(clip=None))
    SymbolServer(compressor=TernGrad(clip=None))
    """

    compressor: Compressor[Any, Any]

    def __post_init__(self) -> None:
        check_compressor(self.compressor, "SymbolServer")
        if not self.compressor.shares_scale:
            raise ValueError(
                f"SymbolServer: the sum of symbols means something on one scale alone, and {self.compressor!r} has one "
                "for each worker; use TernGrad(shared_scale=True), or ParameterServer."
            )
        carrier = self.compressor.layout(TensorSpec((LARGE,))).carrier
        if carrier.alphabet is None or carrier.numel != LARGE:
            raise ValueError(
                f"SymbolServer: sums go coordinate by coordinate, and {self.compressor!r} does not send a symbol for "
                "each; leave out what codes or chooses, as in SymbolServer(TernGrad())."
            )

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
        payloads = [payload for payload, _ in sent]
        messages = yield from gather(wire.pack(*payloads), ROOT)

        layouts = [self._of_sum(payload.layout, me.world) for payload in payloads]
        answer = None
        if messages is not None:
            received = [wire.unpack_all(message, [payload.layout for payload in payloads]) for message in messages]
            sums = [
                torch.stack([p.carrier.to(torch.int64) for p in each]).sum(0) for each in zip(*received, strict=True)
            ]
            answer = wire.pack(*[Payload(total, (), layout) for total, layout in zip(sums, layouts, strict=True)])
        spec = TensorSpec((wire.most_nbytes(layouts),), torch.uint8, tensors[0].device)
        message = yield from broadcast(answer, spec, ROOT)

        def means() -> list[Tensor]:
            return [
                self.compressor.decompress(Payload(total.carrier.double() / me.world, mine.side, mine.layout))
                for total, mine in zip(wire.unpack_all(message, layouts), payloads, strict=True)
            ]

        estimates = yield from replicated(means)
        return estimates, [state for _, state in sent]

    def _of_sum(self, layout: Layout, world: int) -> Layout:
        """The sum of everybody's symbols, which start from 0: no side, more of an alphabet."""
        assert layout.carrier.alphabet is not None  # symbols on a scale
        total = TensorSpec(
            layout.carrier.shape, torch.int64, layout.carrier.device, alphabet=world * (layout.carrier.alphabet - 1) + 1
        )
        return Layout(layout.spec, total, (), f"the sum of {world} times {layout.label}")
