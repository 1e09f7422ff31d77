"""What checkpoints of an asynchronous training hold: the server's model, and each worker's anchor and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import thriftgrad
from thriftgrad.aggregate import AllGather
from thriftgrad.local import Caller, Hub
from thriftgrad.local.terms import Terms
from thriftgrad.train.state import below, facts, first_difference, flatten, like, restore

STATE_VERSION = 1


def common_facts(terms: Terms, seed: int) -> dict[str, Any]:
    """What a server and its workers must agree on."""
    known = {"thriftgrad version": thriftgrad.__version__, "workers": terms.workers}
    return known | facts(terms.method, seed, terms.specs)


def write_hub(hub: Hub) -> dict[str, Any]:
    """The server's state: plain values and tensors."""
    saved = _place(hub.terms, hub.seed, "server") | {"commits": hub.version}
    saved |= {f"applied/rank{rank:05d}": tally.applied for rank, tally in enumerate(hub.tallies)}
    for (name, x), state in zip(hub.model().items(), hub.down or (None,) * len(hub.model()), strict=True):
        saved |= {f"model/{name}": x} | flatten(state, f"memory/server/{name}")
    return saved


def read_hub(hub: Hub, saved: Mapping[str, Any]) -> None:
    """Let the server go on from ``saved``; ``ValueError``, and nothing is changed, if it is none of its own."""
    _check(saved, _place(hub.terms, hub.seed, "server"))
    terms = hub.terms
    model = {spec.name: like(x, saved, f"model/{spec.name}") for spec, x in zip(terms.specs, terms.start, strict=True)}
    down = []
    if terms.server.down is not None:
        for spec in terms.specs:
            path = f"memory/server/{spec.name}"
            down.append(restore(AllGather(terms.server.down), spec, 0, 1, path, below(saved, path)).inner)
    applied = [int(saved.get(f"applied/rank{rank:05d}", 0)) for rank in range(terms.workers)]
    hub.restart(int(saved["commits"]), model, down, applied)


def write_caller(caller: Caller, life: str) -> dict[str, Any]:
    """A worker's state: plain values and tensors, its local parameters among them. ``life``: which server it knows."""
    saved = _place(caller.terms, caller.seed, f"worker {caller.rank}")
    saved |= {"step": caller.step, "commits": caller.version, "life": life, "applied": caller.applied}
    each = zip(caller.parameters.items(), caller.anchor, caller.states, caller.learning_rates, strict=True)
    for (name, parameter), anchor, state, rate in each:
        saved |= {f"anchor/{name}": anchor, f"local/{name}": parameter.detach().clone()}
        saved |= {f"learning_rate/{name}": rate}
        saved |= flatten(state, f"memory/rank{caller.rank:05d}/{name}")
    return saved


def read_caller(caller: Caller, saved: Mapping[str, Any]) -> str:
    """Let a worker go on from ``saved``, local parameters included; which server it knew.

    Raises ``ValueError``, and changes nothing, if it is none of its own.
    """
    _check(saved, _place(caller.terms, caller.seed, f"worker {caller.rank}"))
    up, workers = AllGather(caller.terms.server.up), caller.terms.workers
    anchors, states, rates, local = [], [], [], []
    for spec, start, parameter in zip(caller.terms.specs, caller.terms.start, caller.parameters.values(), strict=True):
        path = f"memory/rank{caller.rank:05d}/{spec.name}"
        anchors.append(like(start, saved, f"anchor/{spec.name}"))
        local.append(like(parameter, saved, f"local/{spec.name}"))
        states.append(restore(up, spec, caller.rank, workers, path, below(saved, path)).inner)
        rates.append(float(saved.get(f"learning_rate/{spec.name}", 0.0)))
    caller.restart(int(saved["step"]), int(saved["commits"]), int(saved["applied"]), anchors, states, rates)
    with torch.no_grad():
        for parameter, x in zip(caller.parameters.values(), local, strict=True):
            parameter.copy_(x)
    return str(saved["life"])


def _place(terms: Terms, seed: int, owner: str) -> dict[str, Any]:
    return {"version": STATE_VERSION, "owner": owner} | common_facts(terms, seed)


def _check(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if "version" not in saved or "owner" not in saved:
        raise ValueError("load_state_dict: this is no state of an asynchronous training; pass what state_dict() gave.")
    claimed = {fact: value for fact, value in saved.items() if fact in here or fact.startswith("parameter/")}
    if difference := first_difference(claimed, here):
        fact, then, now = difference
        raise ValueError(
            f"load_state_dict: the state was saved with {fact} {then}, here it is {now}; "
            "set up all as it was then, or go on with empty memories."
        )
