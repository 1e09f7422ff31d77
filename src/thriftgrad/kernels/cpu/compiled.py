"""What is compiled for the CPU, by the names of the reference; a name that is not here stays with the reference."""

from __future__ import annotations

from thriftgrad.kernels.cpu.elementwise import (
    hadamard,
    nearest_level,
    random_signs,
    round_stochastic,
    round_to_powers,
)
from thriftgrad.kernels.cpu.fused import (
    bucket_norms,
    dequantise_add,
    quantise_levels,
    quantise_sign,
    quantise_uniform,
)
from thriftgrad.kernels.cpu.huffman import (
    code_lengths,
    count_groups,
    read_groups,
    read_lengths,
    write_groups,
    write_lengths,
)
from thriftgrad.kernels.cpu.low_rank import extremes, low_rank_matrices, orthonormal_factors, outer_products
from thriftgrad.kernels.cpu.permutation import permutation
from thriftgrad.kernels.cpu.streams import largest_symbol, pack, unpack
from thriftgrad.kernels.cpu.top_k import add_at, choose_largest, largest, largest_of_rows, owed

__all__ = [
    "add_at",
    "bucket_norms",
    "choose_largest",
    "code_lengths",
    "count_groups",
    "dequantise_add",
    "extremes",
    "hadamard",
    "largest",
    "largest_of_rows",
    "largest_symbol",
    "low_rank_matrices",
    "nearest_level",
    "orthonormal_factors",
    "outer_products",
    "owed",
    "pack",
    "permutation",
    "quantise_levels",
    "quantise_sign",
    "quantise_uniform",
    "random_signs",
    "read_groups",
    "read_lengths",
    "round_stochastic",
    "round_to_powers",
    "unpack",
    "write_groups",
    "write_lengths",
]
