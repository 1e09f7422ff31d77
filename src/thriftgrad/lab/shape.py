"""What a link of the lab is limited to, and what that means for a model of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thriftgrad.comm import LinkModel

UNLIMITED = "unlimited"
STREAM_SHARE = 1448 / 1514
"""How much of a full frame is the stream's own: 14 bytes are Ethernet's, 20 IP's, 32 TCP's with its timestamps."""


class LabError(ValueError):
    """The lab cannot be set up as asked."""


@dataclass(frozen=True)
class Shape:
    """What every link of the lab is limited to, each way, in bits a second; None: as fast as this machine is."""

    text: str
    model: LinkModel | None

    @classmethod
    def of(cls, text: str) -> Shape:
        """From "100mbit", "20mbit/100mbit" (up / down) or "unlimited"; raises ``LabError`` for any other text.

        >>> Shape.of("20mbit/100mbit").down_bits_per_second
        100000000.0
        """
        if text == UNLIMITED:
            return cls(text, None)
        from thriftgrad.comm import LinkModel  # with torch, which takes a while

        try:
            return cls(text, LinkModel.of(text))
        except ValueError as error:
            raise LabError(
                f'lab: expected a link such as "100mbit", "20mbit/100mbit" (up/down) or "unlimited", got {text!r}.'
            ) from error

    @property
    def up_bits_per_second(self) -> float | None:
        """What a worker may send."""
        return self.model.up_bits_per_second if self.model else None

    @property
    def down_bits_per_second(self) -> float | None:
        """What a worker may receive."""
        return (self.model.down_bits_per_second or self.model.up_bits_per_second) if self.model else None

    def modelled(self, latency_seconds: float) -> LinkModel:
        """The link as the stream sees it, which shares the bandwidth with headers; ``LabError`` if it is unlimited."""
        if self.model is None:
            raise LabError(f"lab: a link without a limit has no model, got {self.text!r}; name one such as 100mbit.")
        return replace(
            self.model,
            up_bits_per_second=STREAM_SHARE * self.model.up_bits_per_second,
            down_bits_per_second=STREAM_SHARE * (self.model.down_bits_per_second or self.model.up_bits_per_second),
            latency_seconds=latency_seconds,
        )

    @property
    def latency_seconds(self) -> float:
        """What every packet waits on its way."""
        return self.model.latency_seconds if self.model else 0.0


def burst_bytes(bits_per_second: float) -> int:
    """What a token bucket lets pass at once after a pause: 0.56 ms of the link, and one full frame at least.

    Whatever it lets pass is sent in no time, so a large bucket flatters short messages (64 kB at 100 Mbit are 5 ms for
    nothing), and a bucket below 70 kB at 1 Gbit has the kernel cut every 64 KiB packet in software, which costs a third
    of the rate.
    """
    return max(1600, round(bits_per_second / 8 * 0.56e-3))
