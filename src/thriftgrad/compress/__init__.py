"""Compressors, one method (or one tight family) to a file; importing it here is all the registration there is."""

from thriftgrad.compress.alq import ALQ, ALQ_N, AMQ, AMQ_N
from thriftgrad.compress.atomo import Atomo, SpectralAtomo
from thriftgrad.compress.best_rank import BestRank
from thriftgrad.compress.bin_means import BinMeans
from thriftgrad.compress.cast import Cast
from thriftgrad.compress.chunked_top_k import ChunkedTopK
from thriftgrad.compress.identity import Identity
from thriftgrad.compress.lloyd import Lloyd
from thriftgrad.compress.momentum_correction import MomentumCorrection
from thriftgrad.compress.natural import NaturalCompression
from thriftgrad.compress.nonzeros import Nonzeros
from thriftgrad.compress.one_bit import OneBit
from thriftgrad.compress.qsparse import QRandK, QTopK, SignTopK
from thriftgrad.compress.quantize import NUQSGD, QSGD
from thriftgrad.compress.quantizer import Quantizer
from thriftgrad.compress.random_block import RandomBlock
from thriftgrad.compress.random_k import RandomK
from thriftgrad.compress.rotated import DRIVE, EDEN
from thriftgrad.compress.sign import Sign, Vote
from thriftgrad.compress.small_float import SmallFloat
from thriftgrad.compress.terngrad import TernGrad
from thriftgrad.compress.tile import DCT, Tile
from thriftgrad.compress.top_k import TopK
from thriftgrad.compress.unbiased_low_rank import UnbiasedLowRank
from thriftgrad.compress.warm_up import WarmUp

__all__ = [
    "ALQ",
    "ALQ_N",
    "AMQ",
    "AMQ_N",
    "DCT",
    "DRIVE",
    "EDEN",
    "NUQSGD",
    "QSGD",
    "Atomo",
    "BestRank",
    "BinMeans",
    "Cast",
    "ChunkedTopK",
    "Identity",
    "Lloyd",
    "MomentumCorrection",
    "NaturalCompression",
    "Nonzeros",
    "OneBit",
    "QRandK",
    "QTopK",
    "Quantizer",
    "RandomBlock",
    "RandomK",
    "Sign",
    "SignTopK",
    "SmallFloat",
    "SpectralAtomo",
    "TernGrad",
    "Tile",
    "TopK",
    "UnbiasedLowRank",
    "Vote",
    "WarmUp",
]
