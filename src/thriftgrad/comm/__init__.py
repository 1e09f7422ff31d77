"""Collectives as yielded requests, and who answers them.

An algorithm is a generator. It yields a request and is sent the answer; whether its peers are generators in this
process (``simulate``) or ranks of a process group (``run``, ``Lane``) it cannot tell. ``Ledger``, ``LinkModel``,
``Trace`` and ``Timeline`` watch the requests: bytes, modelled seconds, timelines.
"""

from thriftgrad.comm.ledger import Ledger
from thriftgrad.comm.link import LinkModel
from thriftgrad.comm.requests import (
    Comm,
    Place,
    all_gather,
    all_gather_uneven,
    all_gather_varying,
    all_reduce,
    all_to_all,
    all_to_all_varying,
    broadcast,
    broadcast_varying,
    gather,
    gather_varying,
    place,
    replicated,
)
from thriftgrad.comm.rounds import Moments, Observer, Round, Traffic
from thriftgrad.comm.run import Lane, run
from thriftgrad.comm.simulate import CollectiveMismatchError, simulate
from thriftgrad.comm.trace import Timeline, Trace

__all__ = [
    "CollectiveMismatchError",
    "Comm",
    "Lane",
    "Ledger",
    "LinkModel",
    "Moments",
    "Observer",
    "Place",
    "Round",
    "Timeline",
    "Trace",
    "Traffic",
    "all_gather",
    "all_gather_uneven",
    "all_gather_varying",
    "all_reduce",
    "all_to_all",
    "all_to_all_varying",
    "broadcast",
    "broadcast_varying",
    "gather",
    "gather_varying",
    "place",
    "replicated",
    "run",
    "simulate",
]
