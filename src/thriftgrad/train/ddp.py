"""To be written."""

from typing import Any


class Handle: ...


def attach(*a: Any) -> Handle:
    return Handle()
