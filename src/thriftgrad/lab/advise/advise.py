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
from thriftgrad.core import TensorSpec
from thriftgrad.lab.advise import probe, window
from thriftgrad.lab.advise.candidates import Candidate, candidates
from thriftgrad.lab.advise.codec import code, plain
from thriftgrad.lab.advise.errors import AdviseError
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
    subject = load(request.model)
    specs = [TensorSpec.of(x, name) for name, x in gradients_of(subject).items()]
    with _joined(ranks):
        if stated is None:
            say("measuring the link")
            transport = probe.measure(ranks)
        else:
            transport = Transport(request.link, stated)
        chosen = candidates(request.methods, specs, workers, transport.link)
        shared = _ranks_of_this_machine(ranks)
        mine = _measure(subject, chosen, workers, len(shared), say) if _rank(ranks) == shared[0] else None
        setting, contenders = _slowest(mine, ranks)
    table = rows(contenders, setting, workers, transport)
    elements = sum(spec.numel for spec in specs)
    return Advice(subject.name, elements, workers, transport, setting, tuple(contenders), tuple(table), ranks)


def ranks_started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first_rank() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _measure(
    subject: Subject, chosen: Sequence[Candidate], workers: int, sharing: int, say: Callable[[str], object]
) -> tuple[Setting, list[Contender]]:
    say("measuring forward and backward")
    seen, gradients = window.measure(subject, MANY)
    lanes = len(os.sched_getaffinity(0)) / (torch.get_num_threads() * sharing)
    setting = Setting(seen.compute, seen.ready_seconds, lanes, _buffer_bytes(subject.module))
    whole = gradients.as_one()
    found = []
    for candidate in chosen:
        say(f"measuring {candidate.label}")
        given = whole if candidate.gap else gradients
        coded = plain(given) if candidate.aggregator is None else code(candidate.aggregator, given, workers)
        found.append(Contender(candidate, coded))
    return setting, found


def _buffer_bytes(module: nn.Module) -> tuple[int, ...]:
    """By type of number."""
    sizes: Counter[torch.dtype] = Counter()
    for buffer in module.buffers():
        sizes[buffer.dtype] += buffer.nbytes
    return tuple(sizes.values())


def _slowest(mine: Any, ranks: int) -> Any:
    """Of what the machines measured, what the slowest did."""
    if ranks == 1:
        return mine
    every: list[Any] = [None] * ranks
    dist.all_gather_object(every, mine)
    return max((each for each in every if each is not None), key=lambda each: each[0].compute.seconds(each[0].lanes))


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


def _rank(ranks: int) -> int:
    return dist.get_rank() if ranks > 1 else 0


def _ranks_of_this_machine(ranks: int) -> list[int]:
    """Ranks that share this one's processors: they would disturb each other, so the first measures for all."""
    if ranks == 1:
        return [0]
    names: list[Any] = [None] * ranks
    dist.all_gather_object(names, platform.node())
    return [rank for rank, name in enumerate(names) if name == platform.node()]
