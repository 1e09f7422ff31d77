"""DiLoCo and streaming DiLoCo as torchft runs them: its own manager, lighthouse and gloo group, two replicas.

What torchft 0.2.0 does, with ``sync_every`` = H, F fragments and an outer optimiser for each; inner steps count from 1:

* Fragments take turns, one every H / F steps: turn n = 0, 1, ... ends after step (n + 1) H / F and is of n mod F.
* ``delay`` steps earlier, after the inner step, anchor - local is taken and its all-reduce begun: a sum, divided by R.
* At the end of the turn, after the inner step, local is copied, the fragment set to its anchor and the outer optimiser
  stepped on the mean; what comes out is the new anchor, and local becomes anchor + alpha (copy - anchor).
* So steps taken during the delay are in no drift of this turn. With alpha = 0 they are lost; otherwise that share of
  copy - anchor stays in local, and with its sign changed it is a part of the drift of the fragment's next turn.
* The inner optimiser's state stays as it is.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

REPLICAS = 2
SYNC_EVERY = 4
INNER_STEPS = 12
_TIMEOUT = timedelta(seconds=20)

Trace = dict[str, list[dict[str, Tensor]]]


def model() -> nn.Sequential:
    """The same on every replica, float64; its fragments are its two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def loss_of(net: nn.Module, replica: int, step: int) -> Tensor:
    """Of the batch that this replica sees at inner step 1, 2, ...; no two replicas or steps share one."""
    generator = torch.Generator().manual_seed(1000 * step + replica)
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    return nn.functional.cross_entropy(net(x), torch.randint(4, (6,), generator=generator))


def adamw(net: nn.Module) -> Optimizer:
    return AdamW(net.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)


def sgd(net: nn.Module) -> Optimizer:
    return SGD(net.parameters(), lr=0.1)


def outer(net: nn.Module) -> Optimizer:
    return SGD(net.parameters(), lr=0.7, momentum=0.9, nesterov=True)


@dataclass(frozen=True)
class Setting:
    """One training: whole model or two fragments, ``delay`` inner steps, share ``alpha`` of local that stays."""

    inner: Callable[[nn.Module], Optimizer]
    fragments: int = 1
    delay: int = 0
    alpha: float = 0.0


SETTINGS = {
    "diloco-adamw": Setting(adamw),
    "diloco-sgd": Setting(sgd),
    "streaming-adamw": Setting(adamw, fragments=2, delay=1, alpha=0.5),
    "streaming-sgd": Setting(sgd, fragments=2, delay=1, alpha=0.5),
    "delayed-sgd": Setting(sgd, delay=2, alpha=0.25),
}


def torchft_traces(names: list[str] | None = None) -> dict[str, Trace]:
    """What torchft makes of the named settings, on this rank of a gloo world of two; a function for ``on_ranks``.

    ``local[t]`` and ``anchor[t]`` of a trace: the parameters by name after inner step t; at t = 0, of the start.
    """
    if dist.get_world_size() != REPLICAS:
        raise ValueError(f"torchft_traces runs on {REPLICAS} ranks, not {dist.get_world_size()}; start two")
    os.environ["RUST_LOG"] = (
        "error"  # read when torchft is imported, which is therefore done below, and in the ranks alone
    )
    logging.getLogger("torchft.manager").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torchft's manager still calls Logger.warn, on gloo at every new quorum; as an error it would fail the commit.
        warnings.filterwarnings("ignore", "The 'warn' method is deprecated", DeprecationWarning)
        return {name: _train(SETTINGS[name]) for name in names or SETTINGS}


def _train(setting: Setting) -> Trace:
    from torchft.local_sgd import DiLoCo

    rank, net = dist.get_rank(), model()
    whole = setting.fragments == 1
    prefixes, parts = ([""], [net]) if whole else (["0.", "2."], [net[0], net[2]])
    inner = setting.inner(net)
    trace: Trace = {"local": [], "anchor": []}
    with _manager() as manager:
        diloco = DiLoCo(
            manager,
            parts,
            inner,
            [outer(part) for part in parts],  # one for all would step on the other fragments' inner gradients
            sync_every=SYNC_EVERY,
            pin_memory=False,
            fragment_sync_delay=setting.delay,
            fragment_update_alpha=setting.alpha,
        )

        def record() -> None:
            trace["local"].append({name: p.detach().clone() for name, p in net.named_parameters()})
            kept = zip(prefixes, diloco._fragments, strict=True)
            trace["anchor"].append({a + b: t.clone() for a, part in kept for b, t in part.original_parameters.items()})

        record()
        with diloco:
            for step in range(1, INNER_STEPS + 1):
                inner.zero_grad()
                loss_of(net, rank, step).backward()
                inner.step()
                record()
        turns = INNER_STEPS * setting.fragments // SYNC_EVERY
        if manager.current_step() != turns:
            raise AssertionError(f"torchft committed {manager.current_step()} of {turns} turns")
    return trace


@contextmanager
def _manager() -> Iterator[Any]:
    """A manager for this replica, in a quorum of both; a new lighthouse each time, so nobody waits for the dead."""
    from torchft._torchft import LighthouseServer
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    told: list[Any] = [None]
    lighthouse = None
    if dist.get_rank() == 0:
        lighthouse = LighthouseServer(bind="[::]:0", min_replicas=REPLICAS, join_timeout_ms=1000, quorum_tick_ms=20)
        told = [f"http://localhost:{lighthouse.address().rpartition(':')[2]}"]
    dist.broadcast_object_list(told)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    manager: Any = Manager(
        pg=ProcessGroupGloo(timeout=_TIMEOUT),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=REPLICAS,
        use_async_quorum=False,
        timeout=_TIMEOUT,
        quorum_timeout=_TIMEOUT,
        connect_timeout=_TIMEOUT,
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        lighthouse_addr=told[0],
        replica_id=f"replica{dist.get_rank()}",
        hostname="localhost",
        init_sync=False,  # with it, the first quorum overwrites what a replica has trained so far
    )
    try:
        yield manager
        dist.barrier()  # nobody leaves while another still votes
    finally:
        manager.shutdown(wait=False)
        if lighthouse is not None:
            lighthouse.shutdown()
