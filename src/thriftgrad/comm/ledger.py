"""The byte books."""

from __future__ import annotations

import atexit
import json
import os
from collections import Counter
from pathlib import Path

from thriftgrad.comm.rounds import Round, Traffic

NOTHING = Traffic(0, 0, 0, 0, 0)

LEDGER_FOLDER = "THRIFTGRAD_LEDGER"
"""Environment variable: a folder where every ledger leaves, as its process ends, the link bytes really moved by it."""


class Ledger:
    """Counts the bytes really handed to each collective, up and down, per worker; pass it as ``observe``.

    ``up_bytes`` and ``down_bytes`` are link bytes, ``payload_*`` what the algorithm handed in and got out, each the
    mean over workers; ``per_worker`` holds each one's own.

    >>> import torch; from thriftgrad import AllReduce, Identity, Key, Ledger, TensorSpec, simulate
    >>> ledger, method = Ledger(), AllReduce(Identity())
    >>> x = torch.ones(1000)
    >>> results = simulate([method.aggregate([x], method.init([TensorSpec.of(x)]), Key(0)) for _ in range(4)], ledger)
    >>> ledger.payload_up_bytes, ledger.up_bytes  # 4000 bytes; a ring of four sends 2 * 3 / 4 of them
    (4000.0, 6000.0)
    """

    def __init__(self) -> None:
        self.per_worker: dict[int, Traffic] = {}
        self.requests: Counter[str] = Counter()
        self._moved = NOTHING  # by this process, on a real group
        if folder := os.environ.get(LEDGER_FOLDER):
            atexit.register(self._leave, Path(folder))

    def __call__(self, finished: Round) -> None:
        if finished.traffic:
            self.requests[finished.kind] += 1
        for rank, traffic in finished.traffic.items():
            before = self.per_worker.get(rank, NOTHING)
            self.per_worker[rank] = _sum(before, traffic)
        if finished.waited_seconds is not None:
            (rank,) = finished.compute_seconds
            self._moved = _sum(self._moved, finished.traffic.get(rank, NOTHING))

    @property
    def payload_up_bytes(self) -> float:
        """Bytes handed to collectives, mean over workers."""
        return self._mean("payload_up_bytes")

    @property
    def payload_down_bytes(self) -> float:
        """Bytes that came out of collectives, mean over workers."""
        return self._mean("payload_down_bytes")

    @property
    def up_bytes(self) -> float:
        """Bytes sent on the link, mean over workers."""
        return self._mean("up_bytes")

    @property
    def down_bytes(self) -> float:
        """Bytes received on the link, mean over workers."""
        return self._mean("down_bytes")

    def _leave(self, folder: Path) -> None:
        books = {"rank": os.environ.get("RANK"), "up": self._moved.up_bytes, "down": self._moved.down_bytes}
        (folder / f"{os.getpid()}-{id(self)}.json").write_text(json.dumps(books))

    def _mean(self, book: str) -> float:
        workers = self.per_worker.values()
        return sum(getattr(traffic, book) for traffic in workers) / len(workers) if workers else 0.0

    def __repr__(self) -> str:
        return f"Ledger(up_bytes={self.up_bytes:.0f}, down_bytes={self.down_bytes:.0f}, requests={dict(self.requests)})"


def _sum(one: Traffic, other: Traffic) -> Traffic:
    return Traffic(*(a + b for a, b in zip(one, other, strict=True)))
