"""What is compiled for the CPU, by the names of the reference; a name that is not here stays with the reference."""

from __future__ import annotations

__all__: list[str] = []
