"""Train PyTorch models over links too slow for their gradients.

The public names load on first use, so that the command line answers before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thriftgrad import recipes, theory, wire
    from thriftgrad.aggregate import (
        AllGather,
        AllReduce,
        ParameterServer,
        Partition,
        PowerSGD,
        ScatterReduce,
        SymbolServer,
    )
    from thriftgrad.comm import Ledger, LinkModel, run, simulate
    from thriftgrad.compress import (
        ALQ,
        ALQ_N,
        AMQ,
        AMQ_N,
        DCT,
        DRIVE,
        EDEN,
        NUQSGD,
        QSGD,
        BinMeans,
        Cast,
        ChunkedTopK,
        Identity,
        Lloyd,
        MomentumCorrection,
        NaturalCompression,
        Nonzeros,
        OneBit,
        QRandK,
        QTopK,
        Quantizer,
        RandomBlock,
        RandomK,
        Sign,
        SignTopK,
        SmallFloat,
        TernGrad,
        Tile,
        TopK,
        WarmUp,
    )
    from thriftgrad.core import ErrorFeedback, Key, Payload, PayloadError, Shrink, TensorSpec
    from thriftgrad.local import (
        AsyncServer,
        At,
        Average,
        Every,
        InnerAdamW,
        InnerSGD,
        LocalMethod,
        OuterSGD,
        OuterSign,
        PerWorker,
        PostLocal,
        RandomGaps,
        SlowMo,
        Streaming,
    )
    from thriftgrad.train import AsyncUpdates, GradientPlusMomentum, LocalUpdates, ServerGoneError, attach, serve
    from thriftgrad.vocabulary import parse
    from thriftgrad.wire.coders import ANS, Elias, GolombRice, Huffman, Zstd

__version__ = "0.1.0"

__all__ = [
    "ALQ",
    "ALQ_N",
    "AMQ",
    "AMQ_N",
    "ANS",
    "DCT",
    "DRIVE",
    "EDEN",
    "NUQSGD",
    "QSGD",
    "AllGather",
    "AllReduce",
    "AsyncServer",
    "AsyncUpdates",
    "At",
    "Average",
    "BinMeans",
    "Cast",
    "ChunkedTopK",
    "Elias",
    "ErrorFeedback",
    "Every",
    "GolombRice",
    "GradientPlusMomentum",
    "Huffman",
    "Identity",
    "InnerAdamW",
    "InnerSGD",
    "Key",
    "Ledger",
    "LinkModel",
    "Lloyd",
    "LocalMethod",
    "LocalUpdates",
    "MomentumCorrection",
    "NaturalCompression",
    "Nonzeros",
    "OneBit",
    "OuterSGD",
    "OuterSign",
    "ParameterServer",
    "Partition",
    "Payload",
    "PayloadError",
    "PerWorker",
    "PostLocal",
    "PowerSGD",
    "QRandK",
    "QTopK",
    "Quantizer",
    "RandomBlock",
    "RandomGaps",
    "RandomK",
    "ScatterReduce",
    "ServerGoneError",
    "Shrink",
    "Sign",
    "SignTopK",
    "SlowMo",
    "SmallFloat",
    "Streaming",
    "SymbolServer",
    "TensorSpec",
    "TernGrad",
    "Tile",
    "TopK",
    "WarmUp",
    "Zstd",
    "attach",
    "parse",
    "recipes",
    "run",
    "serve",
    "simulate",
    "theory",
    "wire",
]

_HOMES = {
    "thriftgrad.core": ("ErrorFeedback", "Key", "Payload", "PayloadError", "Shrink", "TensorSpec"),
    "thriftgrad.wire.coders": ("ANS", "Elias", "GolombRice", "Huffman", "Zstd"),
    "thriftgrad.compress": (
        "ALQ",
        "ALQ_N",
        "AMQ",
        "AMQ_N",
        "DCT",
        "DRIVE",
        "EDEN",
        "NUQSGD",
        "QSGD",
        "BinMeans",
        "Cast",
        "ChunkedTopK",
        "Identity",
        "Lloyd",
        "MomentumCorrection",
        "NaturalCompression",
        "Nonzeros",
        "OneBit",
        "QRandK",
        "QTopK",
        "Quantizer",
        "RandomBlock",
        "RandomK",
        "Sign",
        "SignTopK",
        "SmallFloat",
        "TernGrad",
        "Tile",
        "TopK",
        "WarmUp",
    ),
    "thriftgrad.aggregate": (
        "AllGather",
        "AllReduce",
        "ParameterServer",
        "Partition",
        "PowerSGD",
        "ScatterReduce",
        "SymbolServer",
    ),
    "thriftgrad.comm": ("Ledger", "LinkModel", "run", "simulate"),
    "thriftgrad.local": (
        "AsyncServer",
        "At",
        "Average",
        "Every",
        "InnerAdamW",
        "InnerSGD",
        "LocalMethod",
        "OuterSGD",
        "OuterSign",
        "PerWorker",
        "PostLocal",
        "RandomGaps",
        "SlowMo",
        "Streaming",
    ),
    "thriftgrad.train": ("AsyncUpdates", "GradientPlusMomentum", "LocalUpdates", "ServerGoneError", "attach", "serve"),
    "thriftgrad.vocabulary": ("parse",),
}


def __getattr__(name: str) -> Any:
    if name in ("recipes", "theory", "wire"):
        return importlib.import_module(f"thriftgrad.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'thriftgrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
