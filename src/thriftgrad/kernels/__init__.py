"""Inner loops with random numbers that no global generator owns.

``reference`` and ``quantised`` define every function in plain torch, for any device. A faster backend, chosen by the
tensor's device and ``use``, equals them bit for bit; the products of ``low_rank``, to rounding.
"""

from thriftgrad.kernels import low_rank, prefix_codes, quantised, reference, sparse
from thriftgrad.kernels.cpu.threads import set_threads, threads
from thriftgrad.kernels.dispatch import backend, dispatched, use
from thriftgrad.kernels.low_rank import Matrices, Size, Sizes
from thriftgrad.kernels.prefix_codes import Grouping
from thriftgrad.kernels.quantised import Quantised, uniform_levels
from thriftgrad.kernels.reference import normal
from thriftgrad.kernels.sparse import Chosen

philox = dispatched(reference.philox)
uniform16 = dispatched(reference.uniform16)
random_signs = dispatched(reference.random_signs)
permutation = dispatched(reference.permutation)
round_stochastic = dispatched(reference.round_stochastic)
round_to_levels = dispatched(reference.round_to_levels)
round_to_powers = dispatched(reference.round_to_powers)
nearest_level = dispatched(reference.nearest_level)
hadamard = dispatched(reference.hadamard)
pack = dispatched(reference.pack)
unpack = dispatched(reference.unpack)
lane_sums = dispatched(quantised.lane_sums)
bucket_norms = dispatched(quantised.bucket_norms)
quantise_uniform = dispatched(quantised.quantise_uniform)
quantise_levels = dispatched(quantised.quantise_levels)
quantise_sign = dispatched(quantised.quantise_sign)
dequantise_add = dispatched(quantised.dequantise_add)
largest_symbol = dispatched(quantised.largest_symbol)
largest = dispatched(sparse.largest)
choose_largest = dispatched(sparse.choose_largest)
largest_of_rows = dispatched(sparse.largest_of_rows)
owed = dispatched(sparse.owed)
add_at = dispatched(sparse.add_at)
count_groups = dispatched(prefix_codes.count_groups)
code_lengths = dispatched(prefix_codes.code_lengths)
write_lengths = dispatched(prefix_codes.write_lengths)
read_lengths = dispatched(prefix_codes.read_lengths)
write_groups = dispatched(prefix_codes.write_groups)
read_groups = dispatched(prefix_codes.read_groups)
low_rank_matrices = dispatched(low_rank.low_rank_matrices)
outer_products = dispatched(low_rank.outer_products)
orthonormal_factors = dispatched(low_rank.orthonormal_factors)
extremes = dispatched(low_rank.extremes)

__all__ = [
    "Chosen",
    "Grouping",
    "Matrices",
    "Quantised",
    "Size",
    "Sizes",
    "add_at",
    "backend",
    "bucket_norms",
    "choose_largest",
    "code_lengths",
    "count_groups",
    "dequantise_add",
    "extremes",
    "hadamard",
    "lane_sums",
    "largest",
    "largest_of_rows",
    "largest_symbol",
    "low_rank_matrices",
    "nearest_level",
    "normal",
    "orthonormal_factors",
    "outer_products",
    "owed",
    "pack",
    "permutation",
    "philox",
    "quantise_levels",
    "quantise_sign",
    "quantise_uniform",
    "random_signs",
    "read_groups",
    "read_lengths",
    "round_stochastic",
    "round_to_levels",
    "round_to_powers",
    "set_threads",
    "threads",
    "uniform16",
    "uniform_levels",
    "unpack",
    "use",
    "write_groups",
    "write_lengths",
]
