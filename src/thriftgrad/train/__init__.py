"""Adapters to PyTorch training loops; no algorithm lives here."""

from thriftgrad.train.connection import ServerGoneError
from thriftgrad.train.ddp import attach
from thriftgrad.train.handle import Handle
from thriftgrad.train.local import LocalUpdates
from thriftgrad.train.method import Method
from thriftgrad.train.plus_gradient import GradientPlusMomentum
from thriftgrad.train.remote import AsyncUpdates
from thriftgrad.train.report import ServerReport, WorkerReport
from thriftgrad.train.server import Server, serve
from thriftgrad.train.stats import LocalStats, Stats
from thriftgrad.train.tuning import Tuning, tune

__all__ = [
    "AsyncUpdates",
    "GradientPlusMomentum",
    "Handle",
    "LocalStats",
    "LocalUpdates",
    "Method",
    "Server",
    "ServerGoneError",
    "ServerReport",
    "Stats",
    "Tuning",
    "WorkerReport",
    "attach",
    "serve",
    "tune",
]
