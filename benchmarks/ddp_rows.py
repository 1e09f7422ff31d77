"""The rows of the table: what a worker does between two optimiser steps, PyTorch's ways and ours.

No ``from __future__ import annotations`` here: DDP inspects the hooks' real annotations.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from thriftgrad import LocalUpdates, TensorSpec, attach, recipes
from thriftgrad.aggregate import Aggregator, PowerSGD
from thriftgrad.comm import LinkModel
from thriftgrad.compress import QSGD, Cast, Sign, TopK
from thriftgrad.core import Compressor, ErrorFeedback
from thriftgrad.lab.advise.choice import fastest_aggregator
from thriftgrad.lab.shape import Shape
from thriftgrad.local import Every, LocalMethod
from thriftgrad.wire.coders import Huffman

PYTORCH_MB, ONE_BUCKET_MB, OURS_MB, SLOW_MB, FEW_BYTES_MB = 25, 1000, 12, 4, 25
"""DDP's ``bucket_cap_mb``: its default; one DDP bucket, where more of them abort on gloo; and ours, by trials of 4, 8,
12, 25 and 50: smaller where much must fly behind the backward pass, and smaller still where the link is slow, larger
where little flies and each costs the same."""
SLOW_BITS_PER_SECOND = 2e8  # below it a link is slow

DENSE_SECONDS, SPARSE_SECONDS = (0.012, 0.008), (0.025, 0.004)
"""To encode and to decode one worker's payload of this model, by which to choose an aggregator: two of them share a
core."""
UNLIMITED_BITS_PER_SECOND = 12e9  # what gloo moves between two processes here
WARM_UP_STEPS = 2  # DDP regroups its buckets after the first
Hook = Callable[[Any, dist.GradBucket], Future[Tensor]]
Totals = Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """Where a row is measured; ``link`` for the choice between all-gather, two phases and a ring."""

    workers: int
    link: LinkModel

    @classmethod
    def of(cls, workers: int, shape: Shape) -> Self:
        """In the lab."""
        return cls(workers, shape.model or LinkModel(UNLIMITED_BITS_PER_SECOND))


class Books(Protocol):
    """What of thriftgrad exchanges and counts."""

    def stats(self) -> Any: ...
    def close(self) -> None: ...


@dataclass
class Training:
    """One worker's training by one row."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    said: str = ""  # the method as it was chosen here
    books: Books | None = None
    after_step: Callable[[], object] = lambda: None

    def step(self, loss_of: Callable[[nn.Module], Tensor]) -> float:
        """One step of the loop, whatever it exchanges."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model)
        loss.backward()
        self.optimizer.step()
        self.after_step()
        return float(loss)

    def totals(self) -> Totals:
        """What thriftgrad's books say so far: bytes and seconds, by name."""
        found = asdict(self.books.stats()) if self.books else {}
        return {name: value for name, value in found.items() if name.endswith(("_bytes", "_seconds"))}

    def close(self) -> None:
        """Leave the process group."""
        if self.books:
            self.books.close()


@dataclass(frozen=True)
class Row(ABC):
    """One row; rows of one ``kind`` send about the same bytes for the same purpose, and are compared."""

    label: str
    kind: str
    _: KW_ONLY
    ours: bool = True
    bucket_mb: int | None = OURS_MB
    slow_bucket_mb: int | None = None  # in its place on a slow link, if there is another
    warm_up_steps: int = WARM_UP_STEPS
    period_steps: int = 1  # steps that are measured together
    library: str | None = None  # where its codec comes from, if neither from PyTorch nor from here

    @property
    def slug(self) -> str:
        """The name of its files."""
        return re.sub(r"[^a-z0-9.]+", "-", self.label.lower()).strip("-.")

    @property
    def family(self) -> str:
        """The kind without its number."""
        return self.kind.split()[0]

    def bucket_for(self, setting: Setting) -> int | None:
        """DDP's ``bucket_cap_mb`` there."""
        slow = setting.link.up_bits_per_second < SLOW_BITS_PER_SECOND
        return self.slow_bucket_mb if self.slow_bucket_mb and slow else self.bucket_mb

    @abstractmethod
    def begin(self, module: nn.Module, learning_rate: float, setting: Setting) -> Training:
        """Start a worker's training; all have the same module. ``learning_rate``: as for SGD with momentum."""


@dataclass(frozen=True)
class DdpRow(Row):
    """Gradients at every step."""

    exchange: Callable[[DistributedDataParallel, Setting], tuple[str, Books | None]]

    def begin(self, module: nn.Module, learning_rate: float, setting: Setting) -> Training:
        # All ranks made the same module, and a first copy of it would take seconds on a slow link.
        ddp = DistributedDataParallel(module, bucket_cap_mb=self.bucket_for(setting), init_sync=False)
        said, books = self.exchange(ddp, setting)
        return Training(ddp, torch.optim.SGD(ddp.parameters(), learning_rate, momentum=0.9), said, books)


@dataclass(frozen=True)
class LocalRow(Row):
    """Models, now and then."""

    method: LocalMethod

    def begin(self, module: nn.Module, learning_rate: float, setting: Setting) -> Training:
        scale = self.method.learning_rate_scale
        optimizer = self.method.optimizer(module.parameters(), scale * learning_rate)
        local = LocalUpdates(module, self.method, optimizer)
        return Training(module, optimizer, repr(self.method), local, local.step)


def hooked(hook: Hook, state: Callable[[], Any] = lambda: None) -> Callable[..., tuple[str, None]]:
    """PyTorch's, or another library's, communication hook."""

    def exchange(ddp: DistributedDataParallel, setting: Setting) -> tuple[str, None]:
        ddp.register_comm_hook(state(), hook)
        return hook.__name__, None

    return exchange


def plain(ddp: DistributedDataParallel, setting: Setting) -> tuple[str, None]:
    """DDP as it comes."""
    return "DistributedDataParallel", None


def attached(aggregator: Aggregator[Any]) -> Callable[..., tuple[str, Books]]:
    """Ours."""

    def exchange(ddp: DistributedDataParallel, setting: Setting) -> tuple[str, Books]:
        return repr(aggregator), attach(ddp, aggregator)

    return exchange


def carried(
    compressor: Compressor[Any, Any], codec_seconds: tuple[float, float] = DENSE_SECONDS
) -> Callable[..., tuple[str, Books]]:
    """Ours, by the aggregator that the link model finds fastest, codecs included."""

    def exchange(ddp: DistributedDataParallel, setting: Setting) -> tuple[str, Books]:
        specs = [TensorSpec.of(p, name) for name, p in ddp.module.named_parameters()]
        chosen = fastest_aggregator(compressor, specs, setting.workers, setting.link, *codec_seconds)
        return attached(chosen)(ddp, setting)

    return exchange


def bf16_hook(state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    """PyTorch's bf16 hook, which DDP refuses by its name on gloo, although gloo adds bf16."""
    return default_hooks.bf16_compress_hook(state, bucket)


def power_sgd_hook(rank: int) -> Callable[..., tuple[str, None]]:
    """PyTorch's, from the second step on, which is the earliest it takes."""
    state = partial(PowerSGDState, None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
    return hooked(powerSGD_hook, state)


def hivemind_hook(codec: str) -> Callable[..., tuple[str, None]]:
    """A codec of hivemind's on the whole gradient, its messages to everybody by one all-gather."""

    def exchange(ddp: DistributedDataParallel, setting: Setting) -> tuple[str, None]:
        from hivemind import compression  # installed for these rows alone
        from hivemind.proto.runtime_pb2 import Tensor as Message

        compressor = getattr(compression, codec)()

        def hook(state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
            gradient = bucket.buffer()
            info = compression.CompressionInfo.from_tensor(gradient)
            sent = compressor.compress(gradient, info).SerializeToString()
            message = torch.frombuffer(bytearray(sent), dtype=torch.uint8)
            messages = [torch.empty_like(message) for _ in range(setting.workers)]
            dist.all_gather(messages, message)
            gradient.zero_()
            for each in messages:
                gradient.add_(compressor.extract(Message.FromString(each.numpy().tobytes())), alpha=1 / setting.workers)
            done: Future[Tensor] = Future()
            done.set_result(gradient)
            return done

        ddp.register_comm_hook(None, hook)
        return f"hivemind.compression.{codec}", None

    return exchange


def synced_in_warm_up(method: LocalMethod) -> LocalMethod:
    """The same with its syncs moved so that the first falls on the last warm-up step, and a whole period follows."""
    return replace(method, schedule=Every(method.schedule.gap(), offset=WARM_UP_STEPS))


def quantised(bits: int) -> QSGD:
    """Unbiased, on the largest magnitude of 512 coordinates; a DDP bucket as one vector."""
    return QSGD(bits=bits, norm="linf", per_tensor=False)


NOOP = DdpRow("no communication", "none", hooked(noop_hook), ours=False, bucket_mb=PYTORCH_MB)

_POWER_SGD_HOOK = {"ours": False, "bucket_mb": ONE_BUCKET_MB, "warm_up_steps": 3}
_HIVEMIND = {"ours": False, "bucket_mb": ONE_BUCKET_MB, "library": "hivemind"}

ROWS: tuple[Row, ...] = (
    DdpRow("DDP float32", "float32", plain, ours=False, bucket_mb=PYTORCH_MB),
    DdpRow("fp16_compress_hook", "16 bits", hooked(default_hooks.fp16_compress_hook), ours=False, bucket_mb=PYTORCH_MB),
    DdpRow("bf16_compress_hook", "16 bits", hooked(bf16_hook), ours=False, bucket_mb=PYTORCH_MB),
    DdpRow("powerSGD_hook rank 1", "rank 1", power_sgd_hook(1), **_POWER_SGD_HOOK),
    DdpRow("powerSGD_hook rank 2", "rank 2", power_sgd_hook(2), **_POWER_SGD_HOOK),
    DdpRow("powerSGD_hook rank 4", "rank 4", power_sgd_hook(4), **_POWER_SGD_HOOK),
    DdpRow("bf16", "16 bits", carried(Cast("bf16")), slow_bucket_mb=SLOW_MB),
    DdpRow("4 bits", "4 bits", carried(quantised(4)), slow_bucket_mb=SLOW_MB),
    DdpRow("4 bits, Huffman", "4 bits", carried(quantised(4) >> Huffman()), slow_bucket_mb=SLOW_MB),
    DdpRow("3 bits", "3 bits", carried(quantised(3)), slow_bucket_mb=SLOW_MB),
    DdpRow("1 bit, memory", "1 bit", carried(ErrorFeedback(Sign()))),
    DdpRow(
        "top 1 %, memory",
        "top 1 %",
        carried(ErrorFeedback(TopK(fraction=0.01)), SPARSE_SECONDS),
        bucket_mb=FEW_BYTES_MB,
    ),
    DdpRow(
        "top 0.1 %, memory",
        "top 0.1 %",
        carried(ErrorFeedback(TopK(fraction=0.001)), SPARSE_SECONDS),
        bucket_mb=FEW_BYTES_MB,
    ),
    DdpRow("PowerSGD rank 1", "rank 1", attached(PowerSGD(rank=1)), bucket_mb=FEW_BYTES_MB),
    DdpRow("PowerSGD rank 2", "rank 2", attached(PowerSGD(rank=2)), bucket_mb=FEW_BYTES_MB),
    DdpRow("PowerSGD rank 4", "rank 4", attached(PowerSGD(rank=4)), bucket_mb=FEW_BYTES_MB),
    LocalRow(
        "Qsparse-local, H = 8",
        "local",
        synced_in_warm_up(recipes.qsparse_local_sgd(fraction=0.01, h=8)),
        bucket_mb=None,
        period_steps=8,
    ),
    LocalRow("DiLoCo, H = 50", "local", synced_in_warm_up(recipes.diloco(h=50)), bucket_mb=None, period_steps=50),
    DdpRow("hivemind, uniform 8 bits", "8 bits", hivemind_hook("Uniform8BitQuantization"), **_HIVEMIND),
)
"""In the table's order. GRACE, the other library of codecs, is not on the package registry and has no row."""
