"""Triton kernels for the GPU: the functions of ``kernels.reference``, compiled, equal to it bit for bit."""
