"""The value that says how an asynchronous server talks to its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thriftgrad.compress.buckets import check_integer
from thriftgrad.core import Compressor, TensorSpec, check_takes_tensors
from thriftgrad.core.compressor import Expression
from thriftgrad.core.tree import leaves


@dataclass(frozen=True, repr=False)
class AsyncServer(Expression):
    """Workers send ``up`` payloads of their drift when it suits them; the server applies them and answers that worker.

    ``down``: how the server's changes travel back. None forwards the workers' messages as they came;
    ``Nonzeros()`` sends each change itself, whose support is the union of theirs; ``ErrorFeedback(...)`` compresses it
    again, with a memory at the server. A worker gets all changes since its last visit, or a dense copy of the model
    where that is smaller; ``Identity()`` is always that copy.

    ``max_staleness``: a drift measured from a model more than so many changes old is not applied; the worker takes it
    along to the new model and brings it next time, so it must come in time now and then. None: any age will do.

    Raises ``ValueError`` for a compressor that must agree with other workers first, changes its levels as steps go by
    or takes all tensors as one, or a negative staleness.
    Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367, Algorithm 2; ``down``: Tang et al., DoubleSqueeze, 2019,
    arXiv:1905.05957.
    """

    up: Compressor[Any, Any]
    down: Compressor[Any, Any] | None = None
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        for name, compressor in (("up", self.up), ("down", self.down)):
            if compressor is None and name == "down":
                continue
            check_takes_tensors(compressor, f"AsyncServer ({name})")
            assert isinstance(compressor, Compressor)
            state = compressor.init(TensorSpec((1,)))
            changing = compressor.due(state) or list(leaves(compressor.shared(state)))
            if changing or not compressor.per_tensor:
                raise ValueError(
                    f"AsyncServer ({name}): {compressor!r} needs the other workers or their step, and they are "
                    "elsewhere in time; use fixed levels, tensor by tensor."
                )
        if self.max_staleness is None:
            return
        check_integer("AsyncServer", "max_staleness", self.max_staleness)
        if self.max_staleness < 0:
            raise ValueError(f"AsyncServer: max_staleness cannot be negative, got {self.max_staleness}.")
