"""Local methods: workers that train on their own and synchronise now and then."""

from thriftgrad.local.async_server import AsyncServer
from thriftgrad.local.caller import Caller
from thriftgrad.local.clock import tick
from thriftgrad.local.hub import Hub
from thriftgrad.local.inner import Inner, InnerAdamW, InnerSGD
from thriftgrad.local.letters import Verdict
from thriftgrad.local.method import LocalMethod
from thriftgrad.local.outer import Average, Outer, OuterSGD, OuterSign, SlowMo
from thriftgrad.local.outer_dion import OuterDion
from thriftgrad.local.replica import Replica, learning_rates_of
from thriftgrad.local.schedule import At, Every, PerWorker, PostLocal, RandomGaps, Schedule, Streaming

__all__ = [
    "AsyncServer",
    "At",
    "Average",
    "Caller",
    "Every",
    "Hub",
    "Inner",
    "InnerAdamW",
    "InnerSGD",
    "LocalMethod",
    "Outer",
    "OuterDion",
    "OuterSGD",
    "OuterSign",
    "PerWorker",
    "PostLocal",
    "RandomGaps",
    "Replica",
    "Schedule",
    "SlowMo",
    "Streaming",
    "Verdict",
    "learning_rates_of",
    "tick",
]
