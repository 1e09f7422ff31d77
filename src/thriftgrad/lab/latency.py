"""What a short message costs in the lab: measured before the first run, for the model to be fair."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from thriftgrad.comm import Round, all_reduce
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.comparison import Comparison

ROUNDS = 41
"""Some of them fall on a moment when a core is taken, so there are many and the median counts."""


def calibrated(comparison: Comparison, folder: Path, cluster: Cluster) -> Comparison:
    """The comparison with the latency of its link, measured here or in an earlier sitting; kept in the folder."""
    if all(link.latency_seconds for link in comparison.configuration.links):
        return comparison
    comparison = comparison.with_latency(hop_seconds(cluster))
    if cluster.writes:
        comparison.save(folder)
    return comparison


def hop_seconds(cluster: Cluster) -> float:
    """Seconds of one message of a few bytes, as a collective pays them: an all-reduce's by its hops, mean of ranks."""
    pings, few = _Pings(), torch.zeros(16 * cluster.world)  # of one number gloo would make fewer messages
    for _ in range(ROUNDS):
        cluster.exchange([all_reduce(few) for _ in cluster.ranks], pings)
    (seconds,) = cluster.mean([median(pings.seconds) if pings.seconds else 0.0])
    return seconds


@dataclass
class _Pings:
    """Seconds a hop of each collective that was waited for."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, finished: Round) -> None:
        hops = max((traffic.hops for traffic in finished.traffic.values()), default=0)
        if finished.waited_seconds and hops:
            self.seconds.append(finished.waited_seconds / hops)
