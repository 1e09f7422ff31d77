"""Training on one's own, synchronising now and then: local methods in a loop of torch.distributed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import thriftgrad
from thriftgrad.comm import Lane, Ledger
from thriftgrad.comm.ledger import NOTHING
from thriftgrad.core import Key, TensorSpec
from thriftgrad.local import LocalMethod, Replica, learning_rates_of
from thriftgrad.local.replica import Exchanged, overwrite
from thriftgrad.train.groups import own_group
from thriftgrad.train.local_state import check_facts, read, specs_of, step_of, written
from thriftgrad.train.parameters import Parameters, check_optimizer, named
from thriftgrad.train.state import agree, facts
from thriftgrad.train.stats import LocalStats

log = logging.getLogger("thriftgrad")

STATE_VERSION = 1

WENT_BACK = (
    "so all ranks went back to the last shared model; if that goes on, the optimizer's state of the rank that logs its "
    "drift is not finite either, and optimizer.state.clear() there begins anew"
)


class LocalUpdates:
    """Synchronise the models of several workers by a local method; ``step()`` follows every ``optimizer.step()``.

    ``params``: a module (its parameters that require gradients, and its buffers), or named parameters. Their values on
    rank 0, and those of a module's frozen parameters, are where all ranks start. ``optimizer``: the inner one, the
    caller's own; its learning rates are read, its state is never touched. ``method``: a ``LocalMethod``, as from
    ``recipes.diloco(h=100)``; what it says of the inner optimiser serves simulations and is not used here.

    Call ``step()`` once for each step of the loop on every rank, whether or not a GradScaler skipped the optimiser's.

    ``group``: the ranks that synchronise, all of them if None. ``site``: where several ranks of one site train the
    same model by DistributedDataParallel, the ranks of this site; its first rank exchanges with the other sites over
    ``group``, which holds the first ranks alone, and passes the result on. ``ledger`` counts the bytes of ``group``.

    A drift that is not finite, on any rank, takes all ranks back to the last shared model and enters no memory.

    Raises ``TypeError`` for a method that is not local, ``ValueError`` for one with an ``AsyncServer``, no parameters,
    a seed outside [0, 2**64), and on every rank where two ranks differ in method, seed, parameters or version.

    >>> import torch, torch.distributed as dist, thriftgrad
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun gives the real ones
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with thriftgrad.LocalUpdates(model, thriftgrad.recipes.local_sgd(h=2), optimizer) as local:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(1, 4)).sum().backward()
    ...         optimizer.step()
    ...         local.step()
    >>> local.stats().syncs
    2
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        params: Parameters,
        method: LocalMethod,
        optimizer: torch.optim.Optimizer,
        *,
        group: dist.ProcessGroup | None = None,
        site: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        parameters, buffers, frozen = named(params)
        _check_site(params, site)
        _check(method, parameters)
        check_optimizer("LocalUpdates", optimizer, parameters)
        Key(seed)
        self.method, self.seed, self.optimizer = method, seed, optimizer
        self.ledger = Ledger()
        if site is not None and group is None:
            raise ValueError("LocalUpdates: a site is one of several; give the group of their first ranks as group=...")
        self._site = site
        if site is not None and dist.get_rank(site) < 0:
            raise ValueError("LocalUpdates: this rank is not in the given site; give each rank its own.")
        self._leads = site is None or dist.get_rank(site) == 0
        self._rank, self._world = self._place(group)
        if self._rank < 0:
            who = "this rank" if site is None else "the first rank of this site"
            raise ValueError(f"LocalUpdates: {who} is not in the given group; call it on the ranks that are.")
        self._parameters, self._buffers = parameters, buffers
        device = next(iter(parameters.values())).device
        self._group = own_group(group, device) if self._leads else None
        known = {"thriftgrad version": thriftgrad.__version__} | facts(
            method, seed, [TensorSpec.of(p, name) for name, p in parameters.items()]
        )
        known |= {f"buffer/{name}": f"{x.dtype} {list(x.shape)}" for name, x in buffers.items()}
        known |= {f"frozen parameter {i}": f"{x.dtype} {list(x.shape)}" for i, x in enumerate(frozen)}
        agree(self._group, "LocalUpdates", known, site)  # before anything moves that would not fit
        for ranks in (self._group, site):
            if ranks is not None:
                self._broadcast(ranks, *frozen)
        self._replica = Replica(method, parameters, buffers, seed)
        method.schedule.check(self._world)
        self._lane = Lane(self._group, self.ledger)
        self._flying: dict[int, Future[Exchanged]] = {}
        self._closed = self._agreed = False  # on the step, of which ranks that load may have different ones
        self._began = (0, 0, 0)  # steps, syncs and skipped syncs when this was made or loaded

    def _place(self, group: dist.ProcessGroup | None) -> tuple[int, int]:
        """This rank among those that exchange, or its site's, and their number."""
        place = [dist.get_rank(group), dist.get_world_size(group)] if self._leads else [0, 0]
        if self._site is not None:
            dist.broadcast_object_list(place, group=self._site, group_src=0)
        return place[0], place[1]

    def step(self) -> None:
        """The optimiser has taken its step: synchronise what is due. Every rank calls it, once a step."""
        if self._closed:
            raise RuntimeError("LocalUpdates: this one is closed and synchronises no more; make another to train on.")
        replica = self._replica
        if not self._agreed:
            agree(self._group, "LocalUpdates", {"step": replica.step}, self._site)
            self._agreed = True
        replica.advance()
        if self._leads:
            for part in replica.starting():
                rates = learning_rates_of(self.optimizer, replica.parameters)
                self._flying[part] = self._lane.submit(replica.exchange(part, rates))
        for part in replica.landing():
            if self._leads:
                self._land(part)
            if self._site is not None:
                self._broadcast(self._site)

    def _land(self, part: int) -> None:
        self._lane.flush()
        exchanged = self._flying.pop(part).value()
        self._replica.land(part, exchanged)
        if exchanged.after is None:
            self._tell(exchanged.finite)

    def _tell(self, finite: bool) -> None:
        """The log of a rank whose drift was not finite, and that of rank 0, know of a sync that was skipped."""
        if not finite:
            log.warning("step %d: the drift of rank %d was not finite, %s", self._replica.step, self._rank, WENT_BACK)
        elif self._rank == 0:
            log.warning("step %d: a drift or the mean was not finite, %s", self._replica.step, WENT_BACK)

    def _broadcast(self, ranks: dist.ProcessGroup, *more: Tensor) -> None:
        """What changes, and these tensors, from the first of these ranks to the others."""
        with torch.no_grad():
            for tensor in (*self._parameters.values(), *self._buffers.values(), *more):
                # As bytes in one order: gloo knows few types, and ranks may lay out their memory differently.
                plain = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(plain.view(-1).view(torch.uint8), group=ranks, group_src=0)
                overwrite(tensor, plain)

    def anchors(self) -> dict[str, Tensor]:
        """The last model that all ranks shared, by parameter: what to evaluate or to publish between two syncs.

        Raises ``RuntimeError`` on all but the first rank of a site.
        """
        if not self._leads:
            raise RuntimeError("anchors: the first rank of a site keeps them; call it there.")
        return self._replica.anchors()

    def stats(self) -> LocalStats:
        """Bytes, seconds, steps and syncs of this rank since it was made or loaded."""
        traffic = self.ledger.per_worker.get(self._rank, NOTHING)
        steps, syncs, skipped = self._began
        return LocalStats(
            steps=self._replica.step - steps,
            syncs=self._replica.syncs - syncs,
            skipped_syncs=self._replica.skipped_syncs - skipped,
            memory_norm=self._replica.memory_norm(),
            world=self._world,
            elements=sum(p.numel() for p in self._parameters.values()),
            payload_up_bytes=traffic.payload_up_bytes,
            payload_down_bytes=traffic.payload_down_bytes,
            up_bytes=traffic.up_bytes,
            down_bytes=traffic.down_bytes,
        )

    def state_dict(self) -> dict[str, Any]:
        """What continues this training elsewhere: plain values and tensors, this rank's own; save one for each rank.

        Besides the model's and the optimiser's own. Every rank calls it at the same step, since a result that is on its
        way is waited for. Memories stand under "memory/rank00001/...": no two ranks share a key, so the states of all
        ranks fit into one dictionary. Of all but the first rank of a site, the step alone.
        """
        if not self._leads:
            return self._facts() | {"step": self._replica.step}
        self._lane.flush()  # a result on its way belongs to the state
        landed = {part: flying.value() for part, flying in self._flying.items()}
        return self._facts() | written(self._replica, landed, self._rank)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue where ``saved`` was taken: loading, then training, equals training on. Every rank calls it.

        A state of another number of ranks must hold the memories of them all (their dictionaries merged by ``|``):
        every rank goes on with their mean, so the sum over ranks divided by their number stays what it was, and its
        model becomes the last one that all shared. So load the model's own state first.

        Raises ``ValueError``, and changes nothing, if it was saved by another rank or with another method, seed or
        model, or is damaged. States of different steps are told of by the next ``step``, on all ranks.
        """
        check_facts(saved, self._facts())
        if self._leads:
            step, parts, shared, landed = read(self._replica, saved, self._rank, self._world)
        else:
            step, parts, shared, landed = step_of(saved), self._replica.parts, self._replica.shared_buffers, {}
        self._lane.flush()  # what was on its way here is forgotten, and counted with the past
        self._replica.restart(step, parts, shared)
        self._flying = {part: _arrived(exchanged) for part, exchanged in landed.items()}
        self._began = (step, self._replica.syncs, self._replica.skipped_syncs)
        self.ledger.per_worker.clear()
        self._agreed = False
        if saved.get("world_size") != self._world:
            self._replica.go_back()
            if self._site is not None:
                self._broadcast(self._site)

    def _facts(self) -> dict[str, Any]:
        place = {"version": STATE_VERSION, "world_size": self._world, "rank": self._rank}
        return place | facts(self.method, self.seed, specs_of(self._replica))

    def close(self) -> None:
        """Take what is on its way to its end and leave the process group; a later ``step`` raises ``RuntimeError``."""
        self._end(flush=True)

    def _end(self, flush: bool) -> None:
        if flush and not self._closed:
            self._lane.flush()  # or others, who are not as far, would find the connection closed
        self._closed = True
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        # Whoever still holds a gloo group keeps its threads, which end the process badly if it ends before them.
        self._group, self._lane = None, Lane()

    def __enter__(self) -> LocalUpdates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(flush=error is None)  # after an error the others may never send what this one waits for


def _arrived(exchanged: Exchanged) -> Future[Exchanged]:
    future: Future[Exchanged] = Future()
    future.set_result(exchanged)
    return future


def _check_site(params: Parameters, site: dist.ProcessGroup | None) -> None:
    if isinstance(params, DistributedDataParallel) and site is None:
        averaging = dist.get_world_size(params.process_group)
        if averaging > 1:
            raise ValueError(
                f"LocalUpdates: DistributedDataParallel averages the gradients over {averaging} ranks already; "
                "give site=... that group and group=... the first ranks of all sites, or pass the bare module."
            )


def _check(method: object, parameters: Mapping[str, Tensor]) -> None:
    if not isinstance(method, LocalMethod):
        cure = (
            f"write thriftgrad.parse({method!r})"
            if isinstance(method, str)
            else "take one such as recipes.local_sgd(h=8), or attach(...) for methods that exchange gradients"
        )
        raise TypeError(f"LocalUpdates: method must be a LocalMethod, got {method!r}; {cure}.")
    if method.asynchronous:
        raise ValueError(
            f"LocalUpdates: the workers of {method!r} call a server, each when it suits them; use serve(...) there and "
            "AsyncUpdates(...) here."
        )
    if not parameters:
        raise ValueError("LocalUpdates: there are no parameters that require gradients; pass the module to be trained.")
