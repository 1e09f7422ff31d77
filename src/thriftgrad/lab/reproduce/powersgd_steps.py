"""The parts of a training step, timed on one thread of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import Comm
from thriftgrad.comm.requests import ReplicatedRequest
from thriftgrad.core import Key, TensorSpec
from thriftgrad.core.matrices import matrix_shape
from thriftgrad.lab.reproduce.check_layouts import resnet50
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.tasks.models import GPT, LSTM, initialised, resnet18

SIDE, CONTEXT = 32, 64
WORDS, LENGTH = 28_869, 30
"""WikiText-2 as the paper has it: vocabulary, and words of backpropagation through time."""
CAST, SVD = "bf16", "SVD"
GATHERED = (2, 8)
"""The numbers of workers at which decoding is timed, for the line between them."""


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": resnet18,
    "small ResNet-18": partial(resnet18, width=16),
    "GPT": GPT,
    "LSTM": partial(LSTM, WORDS, 650, 3),
}
"""Networks of which steps are timed: the paper's two, a ResNet-18 a quarter as wide, and a small transformer."""


def specs_of(shapes: str) -> list[TensorSpec]:
    """The parameters of a network in ``MODELS``, or of "ResNet-50", which is shapes alone."""
    if shapes == "ResNet-50":
        return [replace(spec, name=f"{i}") for i, spec in enumerate(resnet50())]
    model = initialised(MODELS[shapes], seed=0)
    return [TensorSpec(tuple(p.shape), name=name) for name, p in model.named_parameters()]


@dataclass(frozen=True)
class ComputeTimes(Measurement):
    """CPU seconds of forward and backward, on one thread; ``draws`` medians of ``repeats`` steps, batches by turns.

    A row: model, batch, draw, forward_seconds, backward_seconds.
    """

    batches: tuple[tuple[str, tuple[int, ...]], ...]  # model, batch sizes
    draws: int
    repeats: int
    seconds: float = 10.0

    @property
    def label(self) -> str:
        return f"forward and backward of {', '.join(model for model, _ in self.batches)}"

    def rows(self) -> Iterator[Row]:
        with one_thread():
            for name, sizes in self.batches:
                model = initialised(MODELS[name], seed=0)
                _forward_and_backward(name, model, min(sizes))  # once for nothing: memory is got, kernels are chosen
                for draw in range(self.draws):
                    for size in sizes:
                        each = [_forward_and_backward(name, model, size) for _ in range(self.repeats)]
                        forward, backward = (median(column) for column in zip(*each, strict=True))
                        known = {"model": name, "batch": size, "draw": draw}
                        yield known | {"forward_seconds": forward, "backward_seconds": backward}


def _forward_and_backward(name: str, model: nn.Module, size: int) -> tuple[float, float]:
    inputs, targets = random_batch(name, size)
    start = thread_time()
    loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
    middle = thread_time()
    torch.autograd.grad(loss, list(model.parameters()))
    return middle - start, thread_time() - middle


def random_batch(model: str, size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the right shapes; what they say costs nothing."""
    generator = torch.Generator().manual_seed(size)
    if "ResNet" in model:
        return torch.randn(size, 3, SIDE, SIDE, generator=generator), torch.arange(size) % 10
    most, length = (WORDS, LENGTH) if model == "LSTM" else (256, CONTEXT)
    tokens = torch.randint(most, (size, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


@dataclass(frozen=True)
class CodecTimes(Measurement):
    """CPU seconds of one worker's encoding and decoding of random gradients, on one thread, in steady state.

    A draw is the mean of two steps after two more, since some methods alternate from step to step. A row: shapes,
    label, draw, elements, encode_seconds (all that is computed before the last collective), decode_seconds and
    decode_each_seconds (decoding takes the one plus the other for each worker), collectives (kind and payload bytes,
    one after another). The label "bf16" is the cast of DDP's hook on one flat buffer; its collective is not listed.
    With ``svd``, the label "SVD" is that of all matrices, which is part of what Atomo computes.
    """

    shapes: str
    methods: tuple[tuple[str, Aggregator[Any]], ...]
    draws: int
    svd: bool = False
    seconds: float = 10.0

    @property
    def label(self) -> str:
        return f"encoding and decoding of {self.shapes}"

    def rows(self) -> Iterator[Row]:
        specs = specs_of(self.shapes)
        generator = torch.Generator().manual_seed(0)
        gradients = [torch.randn(spec.shape, generator=generator) for spec in specs]
        elements = sum(spec.numel for spec in specs)
        with one_thread():
            for draw in range(self.draws):
                known = {"shapes": self.shapes, "draw": draw, "elements": elements}
                yield known | {"label": CAST} | _cast(torch.cat([x.flatten() for x in gradients]))
                if self.svd:
                    yield known | {"label": SVD} | _svd(gradients, specs)
                for label, aggregator in self.methods:
                    yield known | {"label": label} | coded(aggregator, gradients, specs)


def coded(aggregator: Aggregator[Any], gradients: Sequence[Tensor], specs: Sequence[TensorSpec]) -> Row:
    """Encode and decode seconds and collectives of one method."""
    few, state = _steady(aggregator, gradients, specs)
    each = 0.0
    if {kind for kind, _ in few.collectives} != {"AllReduce"}:
        _, many = alone(aggregator.aggregate(gradients, state, Key(4)), GATHERED[1])
        each = max(0.0, (many.decode_seconds - few.decode_seconds) / (GATHERED[1] - GATHERED[0]))
    return {
        "encode_seconds": few.encode_seconds,
        "decode_seconds": max(0.0, few.decode_seconds - GATHERED[0] * each),
        "decode_each_seconds": each,
        "collectives": [list(each) for each in few.collectives],
    }


@dataclass(frozen=True)
class Pass:
    """One worker's part in one exchange."""

    encode_seconds: float
    decode_seconds: float
    collectives: tuple[tuple[str, float], ...]


def _steady(
    aggregator: Aggregator[Any], gradients: Sequence[Tensor], specs: Sequence[TensorSpec]
) -> tuple[Pass, tuple[TensorState, ...]]:
    """The mean of the third and the fourth step of the fewest workers, and the state after them."""
    state, passes = aggregator.init(specs), []
    for at in range(4):
        (_, state), found = alone(aggregator.aggregate(gradients, state, Key(at)), GATHERED[0])
        passes.append(found)
    first, second = passes[2:]
    sizes = zip(first.collectives, second.collectives, strict=True)
    mean = Pass(
        (first.encode_seconds + second.encode_seconds) / 2,
        (first.decode_seconds + second.decode_seconds) / 2,
        tuple((kind, (a + b) / 2) for (kind, a), (_, b) in sizes),
    )
    return mean, state


def alone(worker: Comm[Any], workers: int) -> tuple[Any, Pass]:
    """Run worker 0 of so many, all of whom hold what it holds, and time what it computes, on this thread."""
    before_last = spent = 0.0
    collectives: list[tuple[str, float]] = []
    answer = None
    while True:
        start = thread_time()
        try:
            request = worker.send(answer)
            if isinstance(request, ReplicatedRequest):
                answer = request.compute()
        except StopIteration as stop:
            return stop.value, Pass(before_last, spent + thread_time() - start, tuple(collectives))
        spent += thread_time() - start
        if request.is_collective:
            before_last, spent = before_last + spent, 0.0
            kind = type(request).__name__.removesuffix("Request")
            collectives.append((kind, request.traffic(0, workers).payload_up_bytes))
        if not isinstance(request, ReplicatedRequest):
            answer = request.answer([request] * workers)[0]


def _cast(buffer: Tensor) -> Row:
    """What DDP's hook for bfloat16 computes: to, and back; the median of three."""
    seconds = []
    for _ in range(3):
        start = thread_time()
        small = buffer.to(torch.bfloat16).div_(2)
        middle = thread_time()
        buffer.copy_(small)
        seconds.append((middle - start, thread_time() - middle))
    encode, decode = (median(column) for column in zip(*seconds, strict=True))
    return {"encode_seconds": encode, "decode_seconds": decode, "decode_each_seconds": 0.0, "collectives": []}


def _svd(gradients: Sequence[Tensor], specs: Sequence[TensorSpec]) -> Row:
    """The singular value decomposition of every matrix of a model."""
    start = thread_time()
    for x, spec in zip(gradients, specs, strict=True):
        if x.ndim > 1:
            torch.linalg.svd(x.view(matrix_shape(spec)), full_matrices=False)
    seconds = thread_time() - start
    return {"encode_seconds": seconds, "decode_seconds": 0.0, "decode_each_seconds": 0.0, "collectives": []}


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
