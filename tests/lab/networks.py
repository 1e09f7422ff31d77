"""Whether networks can be built where the tests run; if not, the sentence that says why is what is tested."""

import os
from functools import cache
from pathlib import Path

from thriftgrad.lab.namespaces import LabError, Network, Shape

CURES = ("install iproute2.", "install util-linux.", "start it with sudo.", "and a kernel with veth, bridge and tbf.")


@cache
def refusal() -> str | None:
    """Why there can be no network here, or None."""
    try:
        with Network(1, Shape.of("100mbit")):
            return None
    except LabError as error:
        return str(error)


def possible() -> bool:
    """Whether there can be one. If not, what is said about it has been looked at."""
    why = refusal()
    if why is not None:
        assert why.startswith("lab: ")
        assert "\n" not in why
        assert why.endswith(CURES)
    return why is None


def namespaces(pid: int) -> list[str]:
    """The namespaces of a launcher."""
    folder = Path("/run/netns")
    return sorted(each.name for each in folder.glob(f"thriftgrad-*-{pid}-*-*-*")) if folder.exists() else []


def mine() -> list[str]:
    return namespaces(os.getpid())
