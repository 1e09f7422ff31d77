"""What is compiled for the GPU, by the names of the reference; a name that is not here stays with the reference.

Nothing here waits for the device, but for ``largest_symbol``, whose answer is a number.
"""

from __future__ import annotations

from thriftgrad.kernels.gpu.dequantise import dequantise_add, largest_symbol
from thriftgrad.kernels.gpu.norms import bucket_norms, lane_sums
from thriftgrad.kernels.gpu.philox import philox, uniform16
from thriftgrad.kernels.gpu.quantise import quantise_levels, quantise_sign, quantise_uniform
from thriftgrad.kernels.gpu.top_k import choose_largest, largest, owed

__all__ = [
    "bucket_norms",
    "choose_largest",
    "dequantise_add",
    "lane_sums",
    "largest",
    "largest_symbol",
    "owed",
    "philox",
    "quantise_levels",
    "quantise_sign",
    "quantise_uniform",
    "uniform16",
]
