"""What is compiled for the CPU, by the names of the reference; a name that is not here stays with the reference."""

from __future__ import annotations

from thriftgrad.kernels.cpu.permutation import permutation
from thriftgrad.kernels.cpu.top_k import add_at, choose_largest, largest, owed

__all__ = ["add_at", "choose_largest", "largest", "owed", "permutation"]
