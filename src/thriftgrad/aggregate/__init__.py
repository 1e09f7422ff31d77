"""Aggregators: how the workers' tensors become one estimate of their mean."""

from thriftgrad.aggregate.aggregator import Aggregator, TensorState
from thriftgrad.aggregate.all_gather import AllGather
from thriftgrad.aggregate.all_reduce import AllReduce
from thriftgrad.aggregate.as_square import AsSquare
from thriftgrad.aggregate.budgeted import Budgeted
from thriftgrad.aggregate.gradiveq import GradiVeQ
from thriftgrad.aggregate.in_basis import InBasis
from thriftgrad.aggregate.local_clip import LocalClip
from thriftgrad.aggregate.momentum import LocalMomentum
from thriftgrad.aggregate.partition import Partition
from thriftgrad.aggregate.power_sgd import PowerSGD
from thriftgrad.aggregate.scatter_reduce import ScatterReduce
from thriftgrad.aggregate.server import ParameterServer
from thriftgrad.aggregate.symbol_server import SymbolServer

__all__ = [
    "Aggregator",
    "AllGather",
    "AllReduce",
    "AsSquare",
    "Budgeted",
    "GradiVeQ",
    "InBasis",
    "LocalClip",
    "LocalMomentum",
    "ParameterServer",
    "Partition",
    "PowerSGD",
    "ScatterReduce",
    "SymbolServer",
    "TensorState",
]
