"""The backward window: what forward and backward take here, and when DDP has each of its buckets ready.

No ``from __future__ import annotations`` here: DDP inspects the hook's real annotations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel

from thriftgrad.lab.advise.clock import now
from thriftgrad.lab.advise.gradients import Gradients
from thriftgrad.lab.advise.step import Compute
from thriftgrad.lab.advise.subject import Subject, loss_of

WARM_UP, PASSES = 2, 6
"""DDP arranges its buckets in the first pass; of the others the shortest counts, for what disturbs only adds."""


@dataclass(frozen=True)
class Window:
    """Forward and backward of one worker, and the seconds of the backward pass until each DDP bucket is ready."""

    compute: Compute
    ready_seconds: tuple[float, ...]


class _Watch:
    """Exchanges nothing, and notes when it was asked to."""

    def __init__(self, names: dict[Tensor, str]) -> None:
        self._names = names
        self.names: list[tuple[str, ...]] = []
        self.times: list[float] = []

    def exchange(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        self.times.append(now())
        self.names.append(tuple(self._names[parameter] for parameter in bucket.parameters()))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done


def _exchange(watch: _Watch, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """The communication hook."""
    return watch.exchange(bucket)


def measure(subject: Subject, batches: int) -> tuple[Window, Gradients]:
    """Measure the window of a model, and keep the gradients of so many batches (at most ``PASSES``)."""
    parameters = {name: p for name, p in subject.module.named_parameters() if p.requires_grad}
    with _alone() as group:
        watch = _Watch({parameter: name for name, parameter in parameters.items()})
        model = DistributedDataParallel(subject.module, process_group=group)
        model.register_comm_hook(watch, _exchange)
        rows: list[tuple[float, ...]] = []
        kept: list[tuple[tuple[Tensor, ...], ...]] = []
        for at in range(WARM_UP + PASSES):
            watch.names.clear()
            watch.times.clear()
            model.zero_grad()
            start = now()
            loss = loss_of(subject, model)
            middle = now()
            loss.backward()  # type: ignore[no-untyped-call]
            end = now()
            if at < WARM_UP:
                continue
            rows.append((middle - start, end - middle, *(time - middle for time in watch.times)))
            if len(kept) < batches:
                kept.append(tuple(_end_to_end([parameters[name] for name in names]) for names in watch.names))
    _, backward, *ready = min(rows, key=lambda row: row[1])
    window = Window(Compute(min(row[0] for row in rows), backward), tuple(min(each, backward) for each in ready))
    return window, Gradients(tuple(watch.names), tuple(kept))


def _end_to_end(parameters: list[Tensor]) -> tuple[Tensor, ...]:
    """Copies of their gradients that lie one behind the other, as in a DDP bucket."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # which all have
    parts = torch.split(torch.cat([x.reshape(-1) for x in gradients]), [x.numel() for x in gradients])
    return tuple(part.view(x.shape) for part, x in zip(parts, gradients, strict=True))


@contextmanager
def _alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process alone, for DDP to have one."""
    if dist.is_initialized():
        group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
        try:
            yield group
        finally:
            dist.destroy_process_group(group)
        return
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
