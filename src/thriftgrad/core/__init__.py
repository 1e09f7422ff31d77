"""The vocabulary every method is written in: keys, specs, payloads, compressors and their algebra."""

from thriftgrad.core.chain import Chain, LinearChain
from thriftgrad.core.compressor import (
    Compressor,
    LinearCompressor,
    check_compressor,
    check_takes_tensors,
    floating,
    floats,
)
from thriftgrad.core.feedback import ErrorFeedback, memories, without_memories
from thriftgrad.core.finite import all_finite
from thriftgrad.core.key import Key
from thriftgrad.core.payload import Codebook, Layout, Payload, PayloadError
from thriftgrad.core.shrink import Shrink
from thriftgrad.core.spec import TensorSpec, wide

__all__ = [
    "Chain",
    "Codebook",
    "Compressor",
    "ErrorFeedback",
    "Key",
    "Layout",
    "LinearChain",
    "LinearCompressor",
    "Payload",
    "PayloadError",
    "Shrink",
    "TensorSpec",
    "all_finite",
    "check_compressor",
    "check_takes_tensors",
    "floating",
    "floats",
    "memories",
    "wide",
    "without_memories",
]
