"""The pages that the tests of this folder read, and the few things of Markdown that they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL_PAGES = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "changelog.d/README.md")),
]

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block: what follows the backticks, its text, and the line its text starts on, from 1."""

    info: str
    text: str
    line: int


def blocks(page: Path, info: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    source = text(page)
    for match in _FENCE.finditer(source):
        block = Block(match["info"].strip(), match["text"], source[: match.start("text")].count("\n") + 1)
        if info in (None, block.info):
            yield block


def text(page: Path) -> str:
    """The whole page."""
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text(page))


def name(page: Path) -> str:
    """What a test calls the page."""
    return str(page.relative_to(ROOT))
