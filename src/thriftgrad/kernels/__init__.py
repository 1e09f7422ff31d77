"""The inner loops: random words, stochastic rounding, bit packing.

``reference`` is the definition, in plain torch for any device; a faster backend must equal it bit for bit.
"""

from thriftgrad.kernels.reference import (
    hadamard,
    nearest_level,
    normal,
    pack,
    permutation,
    philox,
    random_signs,
    round_stochastic,
    round_to_levels,
    round_to_powers,
    uniform16,
    unpack,
)

__all__ = [
    "hadamard",
    "nearest_level",
    "normal",
    "pack",
    "permutation",
    "philox",
    "random_signs",
    "round_stochastic",
    "round_to_levels",
    "round_to_powers",
    "uniform16",
    "unpack",
]
