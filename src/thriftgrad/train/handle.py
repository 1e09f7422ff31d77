"""What runs between a DDP model and its peers: memories, the communication thread, the books."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook
from torch.futures import Future

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import Comm, Lane, Ledger, Round, Timeline, all_reduce
from thriftgrad.comm.ledger import NOTHING
from thriftgrad.core import Key
from thriftgrad.core.tree import map_leaves
from thriftgrad.core.vector import as_vector
from thriftgrad.train.method import Method
from thriftgrad.train.overlap import Overlap
from thriftgrad.train.state import agree, alone, below, facts, first_difference, flatten, levels_facts, restore
from thriftgrad.train.stats import Stats

log = logging.getLogger("thriftgrad")

STATE_VERSION = 1


class Handle:
    """The exchange of one DDP model's gradients; ``attach`` makes it.

    Memories belong to parameters, by name, so DDP may regroup its buckets as it likes. They change at the end of a step
    and only if every gradient of every rank was finite in it; otherwise the step changes no memory, and the non-finite
    gradient is handed on to the optimiser.

    ``ledger`` counts the bytes. Also a context manager, which closes it.
    """

    def __init__(
        self,
        method: Method | Aggregator[Any],
        seed: int,
        names: Mapping[Tensor, str],
        states: Sequence[TensorState],
        used: set[str] | None,
        group: dist.ProcessGroup,
    ) -> None:
        self.method = method
        self.seed = seed
        self.ledger = Ledger()
        self._aggregator = aggregator_of(method)
        self._names = names
        self._states = {state.spec.name: state for state in states}
        self._used = used  # parameters this rank used in this step; None where DDP does not ask
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        # Its thread ends with the interpreter or with the handle, whichever comes first.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="thriftgrad")
        device = next(iter(names)).device
        # Waiting for an answer on a GPU holds up its stream, not this thread.
        self._lane = Lane(group, self._observe, self._thread if device.type == "cpu" else None)
        self._overlap = Overlap()
        self._closed = self._began = False
        self._step = 0  # of the training; a loaded state moves it
        self._steps = self._skipped_steps = 0  # since attach
        self._start_step()

    def _start_step(self) -> None:
        self._after: dict[str, TensorState] = {}  # what the memories will be if the whole step is finite
        self._finite = True
        self._unused: list[str] = []  # by all ranks
        if self._used is not None:
            self._used.clear()

    def exchange(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """Take over one DDP bucket; the future is the estimate of the mean, in place of its buffer.

        Called by DDP as the gradients of a bucket are ready. The last bucket waits for all, so that errors come out
        of ``backward`` as they are and the step is over when ``backward`` is.
        """
        if self._closed:
            raise RuntimeError(
                "thriftgrad: the handle of this model is closed, so its gradients cannot be exchanged; "
                "wrap the module in a new DistributedDataParallel to train on."
            )
        if not self._began:
            self._begin()
        done: Future[Tensor] = Future()
        names = [self._names[parameter] for parameter in bucket.parameters()]
        self._thread.submit(self._lane.submit, self._bucket(names, bucket.gradients(), bucket.buffer(), done))
        if bucket.is_last():
            if self._used is not None:
                self._thread.submit(self._lane.submit, self._agree_on_use(self._used))
            flushed, handed_over = self._thread.submit(self._lane.flush), perf_counter()
            flushed.result()  # or the error that ended the lane
            self._end_step()
            self._overlap.end_step(handed_over, perf_counter())
        return done

    def _begin(self) -> None:
        """Before the first step: ranks that were restarted from different files would fit levels at different steps."""
        mine = levels_facts(self._states)
        if mine:
            agree(self._group, "thriftgrad", mine)
        self._began = True

    def _bucket(
        self, names: Sequence[str], gradients: Sequence[Tensor], buffer: Tensor, done: Future[Tensor]
    ) -> Comm[None]:
        """This rank's part in the exchange of one bucket, to the estimates in place of its gradients."""
        before = tuple(self._states[name] for name in names)
        means, after = yield from self._aggregator.aggregate(gradients, before, Key(self.seed).fold(self._step))
        result = _laid_out_as(gradients, means, buffer)
        if result is None:
            result = buffer
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean)
        self._after |= zip(names, after, strict=True)
        # An aggregator that saw something non-finite, here or elsewhere, gives back the very states it got.
        self._finite = self._finite and after is not before
        done.set_result(result)

    def _agree_on_use(self, used: set[str]) -> Comm[None]:
        """DDP drops the estimate of a parameter that no rank used, so its memory must not count it as sent."""
        parameter = next(iter(self._names))
        mine = torch.tensor([name in used for name in self._states], dtype=torch.int32, device=parameter.device)
        counts = yield from all_reduce(mine)
        self._unused = [name for name, count in zip(self._states, counts.tolist(), strict=True) if not count]

    def _end_step(self) -> None:
        if self._finite:
            self._states |= {name: state for name, state in self._after.items() if name not in self._unused}
            for name in self._unused:  # or it would keep what its neighbours have long replaced
                spec, inner = self._states[name]
                self._states[name] = TensorState(spec, map_leaves(alone, inner))
        else:
            self._skipped_steps += 1
        self._step += 1
        self._steps += 1
        self._start_step()

    def _observe(self, finished: Round) -> None:
        self.ledger(finished)
        self._overlap(finished)

    @contextmanager
    def traced(self, path: str | Path) -> Iterator[Timeline]:
        """Record what this rank computes and sends when; rank 0 writes it to ``path`` at the end, as a Chrome trace.

        Open it in chrome://tracing or Perfetto. The timeline's ``summary()``, which rank 0 also logs, says how much of
        the communication was hidden behind ``backward``. Between steps only; any ranks may call it.
        """
        timeline = self._overlap.timeline = Timeline(self._rank)
        first = register_multi_grad_hook(list(self._names), self._overlap.begin_backward, mode="any")
        try:
            yield timeline
        finally:
            first.remove()
            self._overlap.timeline = None
        if self._rank == 0:
            timeline.save(path)
            log.info("%s; written to %s", timeline.summary(), path)

    def stats(self) -> Stats:
        """Bytes, seconds and steps of this rank since ``attach``."""
        traffic = self.ledger.per_worker.get(self._rank, NOTHING)
        return Stats(
            steps=self._steps,
            skipped_steps=self._skipped_steps,
            world=self._world,
            elements=sum(state.spec.numel for state in self._states.values()),
            payload_up_bytes=traffic.payload_up_bytes,
            payload_down_bytes=traffic.payload_down_bytes,
            up_bytes=traffic.up_bytes,
            down_bytes=traffic.down_bytes,
            encode_seconds=self._overlap.encode_seconds,
            decode_seconds=self._overlap.decode_seconds,
            hidden_seconds=self._overlap.hidden_seconds,
            exposed_seconds=self._overlap.exposed_seconds,
            uncompressed=self._aggregator.uncompressed([state.spec for state in self._states.values()]),
        )

    def state_dict(self) -> dict[str, Any]:
        """What continues this training elsewhere: plain values and tensors, this rank's own; save one for each rank.

        Memories stand under "memory/rank00001/conv.weight/...": no two ranks share a memory, so none share a key.
        """
        memories: dict[str, Any] = {}
        for name, state in self._states.items():
            memories |= flatten(state.inner, self._path(name))
        return self._facts() | {"step": self._step} | memories

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue where ``saved`` was taken: loading, then training, equals training on. Between steps only.

        Raises ``ValueError``, and changes nothing, if it was saved by another rank or with another method, seed, world
        size or model, or is damaged.
        """
        if "version" not in saved:
            raise ValueError("load_state_dict: this is no state of a thriftgrad handle; pass what state_dict() gave.")
        if saved["version"] != STATE_VERSION:
            raise ValueError(
                f"load_state_dict: the state has format version {saved['version']!r}, this build reads version "
                f"{STATE_VERSION}; use the thriftgrad that wrote it."
            )
        leaves = {path: leaf for path, leaf in saved.items() if path.startswith("memory/")}
        claimed = {fact: value for fact, value in saved.items() if fact not in leaves and fact != "step"}
        if difference := first_difference(claimed, self._facts()):
            fact, then, now = difference
            raise ValueError(
                f"load_state_dict: the state was saved with {fact} {then}, here it is {now}; "
                "attach as it was then, or go on with empty memories."
            )
        states = {}
        for name, state in self._states.items():
            path = self._path(name)
            mine = below(leaves, path)
            states[name] = restore(self._aggregator, state.spec, self._rank, self._world, path, mine)
        self._states, self._step = states, saved["step"]

    def close(self) -> None:
        """End the communication thread and leave the process group; a later ``backward`` raises ``RuntimeError``."""
        if not self._closed:
            self._closed = True
            self._lane.close()
            self._thread.shutdown(cancel_futures=True)
            if dist.is_initialized():
                dist.destroy_process_group(self._group)
            # Whoever still holds a gloo group keeps its threads, which end the process badly if it ends before them.
            del self._group

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _facts(self) -> dict[str, Any]:
        """What must be equal for a state to be of use here."""
        place = {"version": STATE_VERSION, "world_size": self._world, "rank": self._rank}
        return place | facts(self.method, self.seed, [state.spec for state in self._states.values()])

    def _path(self, name: str) -> str:
        return f"memory/rank{self._rank:05d}/{name}"


def _laid_out_as(gradients: Sequence[Tensor], means: Sequence[Tensor], buffer: Tensor) -> Tensor | None:
    """The estimates as the vector that DDP wants, which it copies itself, if that is how they lie in memory."""
    result = as_vector(means) if all(gradient.is_contiguous() for gradient in gradients) else None
    # DDP takes its views from where the storage begins.
    return result if result is not None and result.storage_offset() == 0 and result.shape == buffer.shape else None


def aggregator_of(method: Method | Aggregator[Any]) -> Aggregator[Any]:
    """The aggregator in a method, or the one that stands for one."""
    return method.aggregator if isinstance(method, Method) else method
