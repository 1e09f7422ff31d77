"""Should I compress? Measure the pieces, put them together on the link, rank."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from thriftgrad.comm import LinkModel
from thriftgrad.lab.advise import probe, window
from thriftgrad.lab.advise.candidates import Candidate, candidates, carried_by
from thriftgrad.lab.advise.choice import fastest_aggregator
from thriftgrad.lab.advise.codec import code, plain
from thriftgrad.lab.advise.errors import AdviseError
from thriftgrad.lab.advise.gradients import Gradients
from thriftgrad.lab.advise.pieces import MANY
from thriftgrad.lab.advise.ranking import Contender, Row, Setting, rows
from thriftgrad.lab.advise.subject import Subject, gradients_of, load
from thriftgrad.lab.advise.transport import Transport
from thriftgrad.lab.advise.words import sentence

AUTO = "auto"


@dataclass(frozen=True)
class Request:
    """What the user asked for; ``workers`` None: as many as torchrun started, or ``DEFAULT_WORKERS``."""

    model: str
    workers: int | None = None
    link: str = AUTO
    methods: tuple[str, ...] = ()


DEFAULT_WORKERS = 4


@dataclass(frozen=True)
class Advice:
    """The table, what it was made from, and the sentence."""

    subject: str
    elements: int
    workers: int
    transport: Transport
    setting: Setting
    contenders: tuple[Contender, ...]
    rows: tuple[Row, ...]
    ranks: int  # that measured; 1 without torchrun

    @property
    def sentence(self) -> str:
        """What to do."""
        return sentence(self.rows)


def advise(request: Request, say: Callable[[str], object] = print) -> Advice:
    """Measure and rank; under torchrun every rank calls it, and all get the same.

    ``say`` is told what is being measured. Raises ``AdviseError`` for what cannot be advised on, ``ValueError`` for a
    link that does not parse.
    """
    ranks = ranks_started()
    workers = request.workers if request.workers is not None else (ranks if ranks > 1 else DEFAULT_WORKERS)
    if workers < 2:
        raise AdviseError(f"advise: it takes at least two workers to exchange anything, got workers={workers}.")
    if request.link == AUTO and ranks < 2:
        raise AdviseError(
            "advise: a link is measured between the ranks of torchrun, so start it as in torchrun --nproc-per-node 2 "
            f"--no-python thriftgrad advise --model {request.model}, or state the link, as in --link 100mbit,1ms."
        )
    stated = None if request.link == AUTO else LinkModel.of(request.link)
    chosen = candidates(request.methods)
    subject = load(request.model)
    elements = sum(x.numel() for x in gradients_of(subject).values())
    with _joined(ranks):
        if stated is None:
            say("measuring the link")
            transport = probe.measure(ranks)
        else:
            transport = Transport(request.link, stated)
        setting, contenders = _slowest(_measure(subject, chosen, workers, transport.link, ranks, say), ranks)
    table = rows(contenders, setting, workers, transport)
    return Advice(subject.name, elements, workers, transport, setting, tuple(contenders), tuple(table), ranks)


def ranks_started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first_rank() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _measure(
    subject: Subject,
    chosen: Sequence[Candidate],
    workers: int,
    link: LinkModel,
    ranks: int,
    say: Callable[[str], object],
) -> tuple[Setting, list[Contender]]:
    """All ranks at once, as they will be: processors that share caches, or one core, slow each other down."""
    say("measuring forward and backward")
    _wait_for_all(ranks)
    seen, gradients = window.measure(subject, MANY)
    lanes = len(os.sched_getaffinity(0)) / (torch.get_num_threads() * _ranks_of_this_machine(ranks))
    setting = Setting(seen.compute, seen.ready_seconds, lanes, _buffer_bytes(subject.module))
    whole, found = gradients.as_one(), []
    for candidate in chosen:
        say(f"measuring {candidate.label}")
        _wait_for_all(ranks)
        found.append(_contender(candidate, whole if candidate.gap else gradients, workers, link))
    return setting, found


def _contender(candidate: Candidate, gradients: Gradients, workers: int, link: LinkModel) -> Contender:
    """A candidate measured; a compressor is gathered first, and then carried by what that shows to be fastest."""
    if candidate.aggregator is None:
        return Contender(candidate, plain(gradients))
    found = Contender(candidate, code(candidate.aggregator, gradients, workers))
    if candidate.compressor is None:
        return found
    specs = gradients.specs()
    fastest = fastest_aggregator(candidate.compressor, specs, workers, link, *found.coded.seconds_of_a_payload)
    if fastest == candidate.aggregator:
        return found
    return Contender(carried_by(candidate, fastest), code(fastest, gradients, workers))


def _buffer_bytes(module: nn.Module) -> tuple[int, ...]:
    """By type of number."""
    sizes: Counter[torch.dtype] = Counter()
    for buffer in module.buffers():
        sizes[buffer.dtype] += buffer.nbytes
    return tuple(sizes.values())


def _slowest(mine: tuple[Setting, list[Contender]], ranks: int) -> tuple[Setting, list[Contender]]:
    """Of what the ranks measured, what the slowest did."""
    if ranks == 1:
        return mine
    every: list[Any] = [None] * ranks
    dist.all_gather_object(every, mine)
    return max(every, key=lambda each: each[0].compute.seconds(each[0].lanes))  # type: ignore[no-any-return]


def _wait_for_all(ranks: int) -> None:
    if ranks > 1:
        dist.barrier()


@contextmanager
def _joined(ranks: int) -> Iterator[None]:
    """In torchrun's group, if there is one."""
    if ranks == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _ranks_of_this_machine(ranks: int) -> int:
    """How many share its processors."""
    if ranks == 1:
        return 1
    names: list[Any] = [None] * ranks
    dist.all_gather_object(names, platform.node())
    return names.count(platform.node())
