"""What a server tells of its workers."""

from __future__ import annotations

from dataclasses import dataclass

from thriftgrad.comm.ledger import NOTHING
from thriftgrad.comm.rounds import Traffic
from thriftgrad.local import Verdict
from thriftgrad.local.hub import Tally

NEVER, TURNED_AWAY, CONNECTED, LOST, FINISHED = "never came", "turned away", "connected", "lost", "finished"


@dataclass(frozen=True)
class WorkerReport:
    """One worker, as the server saw it; bytes are totals, of letters whole.

    ``fate``: "finished", "lost: ..." with the reason, "connected", "turned away" or "never came". ``returns``: how
    often it has come back. ``applied``: its pushes in the model; ``stale``: those that came too late and stayed with
    it; ``refused``: damaged or not finite. Staleness: how many changes old an applied push was; its mean is NaN without
    one, as it is for the pushes before a checkpoint of the server.
    """

    rank: int
    fate: str
    returns: int
    applied: int
    stale: int
    refused: int
    mean_staleness: float
    most_staleness: int
    up_bytes: int
    down_bytes: int

    @classmethod
    def of(cls, rank: int, tally: Tally, fate: str, returns: int, traffic: Traffic | None) -> WorkerReport:
        """From what the server has counted."""
        verdicts, traffic = tally.verdicts, traffic or NOTHING
        return cls(
            rank=rank,
            fate=fate,
            returns=returns,
            applied=tally.applied,
            stale=verdicts[Verdict.STALE],
            refused=verdicts[Verdict.DAMAGED] + verdicts[Verdict.NOT_FINITE],
            mean_staleness=tally.mean_staleness,
            most_staleness=max(tally.staleness, default=0),
            up_bytes=traffic.up_bytes,
            down_bytes=traffic.down_bytes,
        )

    def __str__(self) -> str:
        return (
            f"worker {self.rank} {self.fate}: {self.applied} pushes, {self.stale} stale, {self.refused} refused, "
            f"staleness {self.mean_staleness:.1f} (at most {self.most_staleness}), {self.returns} returns; "
            f"{self.up_bytes} bytes up, {self.down_bytes} bytes down"
        )


@dataclass(frozen=True)
class ServerReport:
    """How a training went, from the server: the version of the model, which counts its changes, and each worker."""

    version: int
    workers: tuple[WorkerReport, ...]

    @property
    def lost(self) -> tuple[int, ...]:
        """The workers that did not say goodbye."""
        return tuple(worker.rank for worker in self.workers if worker.fate != FINISHED)

    def __str__(self) -> str:
        return "\n".join([f"{self.version} changes", *map(str, self.workers)])
