"""What an asynchronous server and its workers know beforehand, and the arithmetic that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad import wire
from thriftgrad.aggregate import AllGather, TensorState
from thriftgrad.compress import Identity
from thriftgrad.core import Compressor, Key, TensorSpec
from thriftgrad.local.async_server import AsyncServer
from thriftgrad.local.letters import HEAD_BYTES
from thriftgrad.local.method import LocalMethod
from thriftgrad.local.replica import widened

DENSE = Identity()


class Terms:
    """The method, the model's tensors and how their messages look; the same at both ends."""

    def __init__(
        self, method: LocalMethod, parameters: Mapping[str, Tensor], workers: int, buffers: Mapping[str, Tensor]
    ) -> None:
        if not isinstance(method.aggregator, AsyncServer):
            raise TypeError(
                f"an asynchronous server needs a method such as LocalMethod(AsyncServer(up), RandomGaps(8)), got "
                f"{method!r}."
            )
        if workers < 1:
            raise ValueError(f"an asynchronous server needs one worker at least, got workers={workers}.")
        averaged = [name for name, b in buffers.items() if b.is_floating_point()] if method.buffers == "average" else []
        if averaged:
            raise ValueError(
                f'an asynchronous server averages no buffers, and the model has {averaged[0]!r}: say buffers="local" '
                "in the method, and evaluate the server's model with the buffers of one worker."
            )
        method.schedule.check(workers)
        self.method, self.server, self.workers = method, method.aggregator, workers
        self.start = [widened(p) for p in parameters.values()]
        self.specs = [TensorSpec.of(x, name) for name, x in zip(parameters, self.start, strict=True)]
        self.up_states = self.states(self.server.up)
        self.up_layouts = _layouts(self.server.up, self.up_states)
        self.down_states = self.states(self.server.down) if self.server.down is not None else ()
        self.down_layouts = _layouts(self.server.down, self.down_states) if self.server.down is not None else []
        self.dense_layouts = [DENSE.layout(spec) for spec in self.specs]
        self.dense_bytes = wire.most_nbytes(self.dense_layouts)

    def states(self, compressor: Compressor[Any, Any]) -> tuple[TensorState, ...]:
        """Those of a compressor before its first message; ``ValueError`` or ``TypeError`` for unsuitable tensors."""
        return AllGather(compressor).init(self.specs)

    @property
    def most_push_bytes(self) -> int:
        """A length that no push exceeds."""
        return HEAD_BYTES + wire.most_nbytes(self.up_layouts)

    @property
    def most_reply_bytes(self) -> int:
        """A length that no reply exceeds: the dense copy is sent where anything else would be longer."""
        return HEAD_BYTES + self.dense_bytes

    def pushed(self, message: Tensor) -> list[Tensor]:
        """The tensors in a worker's message; ``PayloadError`` if it is none."""
        return _unpacked(self.server.up, message, self.up_layouts, self.specs)

    def change(self, messages: Sequence[Tensor]) -> list[Tensor]:
        """What to subtract from the model for the messages of one change; ``PayloadError`` if they are none."""
        if self.server.down is None:
            return self.mean(self.pushed(message) for message in messages)
        (message,) = messages
        return _unpacked(self.server.down, message, self.down_layouts, self.specs)

    def mean(self, pushed: Iterable[Sequence[Tensor]]) -> list[Tensor]:
        """(1/R) times the sum, over those that came, in the order given; R is the number of all workers."""
        sums: list[Tensor] = []
        for tensors in pushed:
            sums = [a + b for a, b in zip(sums, tensors, strict=True)] if sums else list(tensors)
        return [x / self.workers for x in sums]

    def write_dense(self, model: Sequence[Tensor]) -> Tensor:
        """The message of a whole model, in float32 (float64 for such parameters)."""
        return compressed(DENSE, model, [None] * len(model), [Key(0)] * len(model))[0]

    def read_dense(self, message: Tensor) -> list[Tensor]:
        """The model in such a message; ``PayloadError`` if it is none."""
        return _unpacked(DENSE, message, self.dense_layouts, self.specs)


def compressed(
    compressor: Compressor[Any, Any], tensors: Sequence[Tensor], states: Sequence[Any], keys: Sequence[Key]
) -> tuple[Tensor, list[Any]]:
    """One message of all tensors, and the next states."""
    sent = [compressor.compress(*each) for each in zip(tensors, states, keys, strict=True)]
    return wire.pack(*[payload for payload, _ in sent]).cpu(), [state for _, state in sent]


def _layouts(compressor: Compressor[Any, Any], states: Sequence[TensorState]) -> list[Any]:
    return [compressor.layout(state.spec, compressor.shared(state.inner)) for state in states]


def _unpacked(
    compressor: Compressor[Any, Any], message: Tensor, layouts: Sequence[Any], specs: Sequence[TensorSpec]
) -> list[Tensor]:
    payloads = wire.unpack_all(message.to(specs[0].device), layouts)
    return [
        compressor.decompress(payload).to(spec.dtype).reshape(spec.shape)
        for payload, spec in zip(payloads, specs, strict=True)
    ]


def moved(model: Sequence[Tensor], change: Sequence[Tensor]) -> list[Tensor]:
    """The model after a change."""
    with torch.no_grad():
        return [x - step for x, step in zip(model, change, strict=True)]
