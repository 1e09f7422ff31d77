"""Adapters to PyTorch training loops; no algorithm lives here."""

from thriftgrad.train.ddp import Handle, attach
from thriftgrad.train.method import Method

__all__ = ["Handle", "Method", "attach"]
