"""What a collective takes on a link: stated by the user, or measured for each kind of collective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from thriftgrad.comm import LinkModel
from thriftgrad.comm.rounds import Traffic
from thriftgrad.lab.advise.step import Flight


@dataclass(frozen=True)
class Cost:
    """What one kind of collective gets out of the link, and the processor seconds that it takes."""

    link: LinkModel
    processor_seconds_per_byte: float = 0.0


@dataclass(frozen=True)
class Transport:
    """A link as exchanges find it.

    ``link``: what it is said, or was measured, to be. ``costs``: what the kinds of collectives that were measured make
    of it, by name; the others take what ``link`` says, and no processor.

    >>> Transport("100mbit", LinkModel.of("100mbit,1ms")).flight("AllReduce", Traffic(0, 0, 12500, 12500, 2))
    Flight(seconds=0.003, busy=0.0)
    """

    text: str
    link: LinkModel
    costs: Mapping[str, Cost] = field(default_factory=dict)

    def flight(self, kind: str, traffic: Traffic) -> Flight:
        """One collective of a worker with this traffic."""
        cost = self.costs.get(kind, Cost(self.link))
        busy_seconds = cost.processor_seconds_per_byte * max(traffic.up_bytes, traffic.down_bytes)
        seconds = max(cost.link.worker_seconds(0, traffic), busy_seconds)
        return Flight(seconds, busy_seconds / seconds if seconds else 0.0)

    def at(self, bits_per_second: float) -> Transport:
        """The same link with this much bandwidth, up; all kinds of collectives gain or lose alike."""
        factor = bits_per_second / self.link.up_bits_per_second
        costs = {kind: replace(cost, link=_scaled(cost.link, factor)) for kind, cost in self.costs.items()}
        return Transport(self.text, _scaled(self.link, factor), costs)


def _scaled(link: LinkModel, factor: float) -> LinkModel:
    down = link.down_bits_per_second
    return replace(
        link,
        up_bits_per_second=factor * link.up_bits_per_second,
        down_bits_per_second=None if down is None else factor * down,
    )
