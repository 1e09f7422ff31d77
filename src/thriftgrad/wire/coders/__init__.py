"""Lossless coders of integer carriers: symbols to a stream of bytes whose length depends on the data."""

from thriftgrad.wire.coders.ans import ANS
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.elias import Elias
from thriftgrad.wire.coders.golomb_rice import GolombRice
from thriftgrad.wire.coders.huffman import Huffman
from thriftgrad.wire.coders.zstd import Zstd

__all__ = ["ANS", "Coder", "Elias", "GolombRice", "Huffman", "Zstd"]
