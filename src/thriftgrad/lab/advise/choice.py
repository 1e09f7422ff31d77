"""Which aggregator carries a compressor's payloads fastest over a link."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from thriftgrad import wire
from thriftgrad.aggregate import Aggregator, AllGather, AllReduce, ScatterReduce
from thriftgrad.comm import LinkModel
from thriftgrad.comm.requests import AllGatherRequest, AllReduceRequest, AllToAllRequest, Request
from thriftgrad.core import Compressor, Layout, TensorSpec


def fastest_aggregator(
    compressor: Compressor[Any, Any],
    specs: Sequence[TensorSpec],
    workers: int,
    link: LinkModel,
    encode_seconds: float = 0.0,
    decode_seconds: float = 0.0,
) -> Aggregator[Any]:
    """The fastest of ``AllReduce`` (for a linear compressor), ``AllGather`` and ``ScatterReduce`` by the link model.

    ``specs``: the tensors of one call. A ring's all-reduce wins where it is legal, gathering among few workers or where
    latency counts, two phases where n - 1 payloads are more than 2 (n - 1) / n of them. ``encode_seconds``,
    ``decode_seconds``: what one worker's payload takes to compress and decompress here; gathering decompresses n of
    them, two phases compress and decompress twice.

    >>> from thriftgrad import QSGD
    >>> link, specs = LinkModel.of("100mbit,1ms"), [TensorSpec((1_000_000,))]
    >>> [type(fastest_aggregator(QSGD(bits=4), specs, workers, link)).__name__ for workers in (2, 8)]
    ['AllGather', 'ScatterReduce']
    >>> type(fastest_aggregator(QSGD(bits=4), specs, 8, link, encode_seconds=0.3)).__name__
    'AllGather'
    """
    codec: dict[type[Aggregator[Any]], float] = {
        AllReduce: encode_seconds + decode_seconds,
        AllGather: encode_seconds + workers * decode_seconds,
        ScatterReduce: 2 * (encode_seconds + decode_seconds),
    }
    seconds = link_seconds(compressor, specs, workers, link)
    return min(seconds, key=lambda aggregator: seconds[aggregator] + codec[type(aggregator)])


def link_seconds(
    compressor: Compressor[Any, Any], specs: Sequence[TensorSpec], workers: int, link: LinkModel
) -> dict[Aggregator[Any], float]:
    """The modelled seconds of each aggregator that may carry the compressor, in the order in which ties are broken."""
    if not compressor.per_tensor:
        specs = [TensorSpec((sum(spec.numel for spec in specs),), specs[0].dtype)]
    found: dict[Aggregator[Any], tuple[Request, ...]] = {}
    with suppress(TypeError):
        carriers = sum(_layout(compressor, spec).carrier.nbytes for spec in specs)
        found[AllReduce(compressor)] = (AllReduceRequest(_message(carriers)),)  # type: ignore[arg-type]  # it checks
    found[AllGather(compressor)] = (AllGatherRequest(_message(_most(compressor, specs))),)
    with suppress(ValueError):
        shard = _message(_most(compressor, [TensorSpec((-(-spec.numel // workers),), spec.dtype) for spec in specs]))
        found[ScatterReduce(compressor, compressor)] = (AllToAllRequest((shard,) * workers), AllGatherRequest(shard))
    return {
        aggregator: sum(link.worker_seconds(0, request.traffic(0, workers)) for request in requests)
        for aggregator, requests in found.items()
    }


def _most(compressor: Compressor[Any, Any], specs: Sequence[TensorSpec]) -> int:
    """Bytes of one message; the most there can be if its length varies."""
    return wire.most_nbytes([_layout(compressor, spec) for spec in specs])


def _layout(compressor: Compressor[Any, Any], spec: TensorSpec) -> Layout:
    return compressor.layout(spec, compressor.shared(compressor.init(spec)))


def _message(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="meta")  # which has a size and no memory
