"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` at the end of the block, and is gone if that ends in an error.

    Missing folders are made. Raises ``OSError`` where there can be no such file.
    """
    beside = _beside(path)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise ``OSError`` where ``written_whole`` would for want of a place; missing folders are made."""
    _beside(path).unlink()


def _beside(path: Path) -> Path:
    """A new file in the same folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.touch()
    return beside
