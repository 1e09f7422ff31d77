"""How much of a real update an operator keeps, per bit: measured, and by the closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thriftgrad import tasks
from thriftgrad.comm import simulate
from thriftgrad.core import Key, TensorSpec
from thriftgrad.core.feedback import memories
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.qsparse_methods import beta, operator
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.local import LocalMethod, Replica, learning_rates_of
from thriftgrad.tasks.task import Task
from thriftgrad.wire import HEADER_BYTES


def updates(task: Task, method: LocalMethod, seed: int, rate: float, syncs: int, workers: int) -> Iterator[Tensor]:
    """Each worker's memory plus drift at each of the first syncs, of the largest tensor; what the operator is given."""
    models = [task.build(seed) for _ in range(workers)]
    parameters = [dict(model.named_parameters()) for model in models]
    optimizers = [method.optimizer(each.values(), rate) for each in parameters]
    replicas = [
        Replica(method, each, dict(model.named_buffers()), seed) for each, model in zip(parameters, models, strict=True)
    ]
    batches = [task.batches(seed, rank, workers) for rank in range(workers)]
    sizes = [p.numel() for p in parameters[0].values()]
    largest = sizes.index(max(sizes))
    done = 0
    while done < syncs:
        for model, optimizer, source in zip(models, optimizers, batches, strict=True):
            optimizer.zero_grad()
            task.loss(model, next(source)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for replica in replicas:
            replica.advance()
        if not replicas[0].starting():
            continue
        for replica in replicas:
            memory = list(memories(replica.parts[0].exchange))[largest]
            yield (replica.drifts(0)[largest] + memory.view(replica.drifts(0)[largest].shape)).reshape(-1)
        rates = [learning_rates_of(o, r.parameters) for o, r in zip(optimizers, replicas, strict=True)]
        exchanged = simulate([r.exchange(0, each) for r, each in zip(replicas, rates, strict=True)])
        for replica, each in zip(replicas, exchanged, strict=True):
            replica.land(0, each)
        done += 1


@dataclass(frozen=True)
class Contractions(Measurement):
    """Operators on the updates of one task and seed, as ``method`` makes them.

    A row: label, ``k``, ``s``, ``kept`` = the mean of 1 - |u - C(u)|^2 / |u|^2, ``bound`` = k / (n (1 + beta)),
    ``bits`` of a message with one tensor, its header included.
    """

    task: str
    seed: int
    method: LocalMethod
    rate: float
    operators: tuple[Setting, ...]
    syncs: int
    workers: int
    seconds: float

    @property
    def label(self) -> str:
        return f"updates of {self.task}, seed {self.seed}"

    def rows(self) -> Iterator[Row]:
        vectors = list(updates(tasks.load(self.task), self.method, self.seed, self.rate, self.syncs, self.workers))
        for setting in self.operators:
            yield contracted(setting, vectors, Key(self.seed).fold(setting.label)) | {"seed": self.seed}


def contracted(setting: Setting, vectors: list[Tensor], key: Key) -> Row:
    """One row: what an operator keeps of some vectors, and what theory promises."""
    n = vectors[0].numel()
    compressor = operator(setting, n)
    kept, nbytes = [], 0
    for number, u in enumerate(vectors):
        payload, _ = compressor.compress(u, compressor.init(TensorSpec.of(u)), key.fold(number))
        error, size = (u - compressor.decompress(payload)).double().square().sum(), u.double().square().sum()
        kept.append(float(1 - error / size) if size else 1.0)
        nbytes = payload.nbytes
    return {
        "label": setting.label,
        "k": setting.k,
        "s": setting.s,
        "kept": float(torch.tensor(kept, dtype=torch.float64).mean()),
        "bound": min(setting.k or n, n) / (n * (1 + beta(setting, n))),
        "bits": 8 * (nbytes + HEADER_BYTES),
    }
