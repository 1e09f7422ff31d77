"""Golden bytes: what every row of the zoo puts on the wire, frozen.

``payloads.json`` holds, for each compressor, the message of one fixed tensor and a digest of what it decompresses to;
and for each gather-type aggregator a digest of three workers' estimates. A change of these bytes is a change of the
wire format or of the meaning of a key: raise ``wire.VERSION``, say so in the changelog, and write the file anew with

    python tests/golden/make.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PATH = Path(__file__).with_name("payloads.json")
SHORT = 100
"""Messages up to this many bytes are written out, so that a difference can be read."""


def tensor() -> Tensor:
    """37 multiples of 1/16, among them zeros, ties and both signs: exact in every type."""
    i = torch.arange(37)
    return ((i * 37 % 23) - 11).float() / 16


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def payload(compressor: Any) -> dict[str, Any]:
    from thriftgrad import Key, TensorSpec, wire

    x = tensor()
    sent, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(2024))
    message = wire.pack(sent)
    row = {"nbytes": len(message), "sha256": digest(message), "estimate": digest(compressor.decompress(sent))}
    return row | ({"hex": bytes(message.tolist()).hex()} if len(message) <= SHORT else {})


def estimate(aggregator: Any) -> str:
    from samples import estimates
    from thriftgrad import Key

    tensors = [[tensor() * (worker + 1), tensor()[:7].roll(worker)] for worker in range(3)]
    return digest(torch.cat(estimates(aggregator, tensors, Key(2024))[0]))


def everything() -> dict[str, Any]:
    import zoo
    from thriftgrad import AllGather, ParameterServer, ScatterReduce, wire

    return {
        "wire_version": wire.VERSION,
        "payloads": {repr(each): payload(each) for each in zoo.COMPRESSORS},
        "estimates": {
            repr(each): estimate(each)
            for each in zoo.AGGREGATORS
            if isinstance(each, AllGather | ScatterReduce | ParameterServer)
        },
    }


if __name__ == "__main__":
    sys.path.insert(0, str(PATH.parents[1]))
    PATH.write_text(json.dumps(everything(), indent=1) + "\n")
