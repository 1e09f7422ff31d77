"""The inner loops: random words, stochastic rounding, bit packing.

``reference`` is the definition, in plain torch for any device; a faster backend must equal it bit for bit.
"""

from thriftgrad.kernels.reference import normal, pack, permutation, philox, round_stochastic, uniform16, unpack

__all__ = ["normal", "pack", "permutation", "philox", "round_stochastic", "uniform16", "unpack"]
