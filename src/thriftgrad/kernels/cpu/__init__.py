"""Numba kernels for the CPU: the functions of ``kernels.reference``, compiled, equal to it bit for bit."""
