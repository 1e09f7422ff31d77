"""Compressors, one method (or one tight family) to a file; importing it here is all the registration there is."""

from thriftgrad.compress.cast import Cast
from thriftgrad.compress.identity import Identity
from thriftgrad.compress.quantize import QSGD
from thriftgrad.compress.random_k import RandomK
from thriftgrad.compress.sign import Sign, Vote
from thriftgrad.compress.top_k import TopK

__all__ = ["QSGD", "Cast", "Identity", "RandomK", "Sign", "TopK", "Vote"]
