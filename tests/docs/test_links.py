"""Every link inside the project leads to a file that is there, and every anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.pages import ALL_PAGES, PAGES, ROOT, name, prose, text

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<text>.+?) *$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give to headings: lower case, hyphens for spaces, no other punctuation."""
    found: set[str] = set()
    for heading in _HEADING.finditer(prose(page)):
        plain = re.sub(r"[^\w\- ]", "", heading["text"].lower()).replace(" ", "-")
        same = sum(each == plain or re.fullmatch(rf"{re.escape(plain)}-\d+", each) is not None for each in found)
        found.add(f"{plain}-{same}" if same else plain)
    return found


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.finditer(prose(page)):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)}: {link['target']} is not there"
        assert path.is_relative_to(ROOT), f"{name(page)}: {link['target']} leaves the project"
        if anchor:
            assert anchor in anchors(path), f"{name(page)}: {link['target']} names no heading of {name(path)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_page_says_where_it_stands_in_the_code(page: Path) -> None:
    assert re.search(r"^In the code: .*\]\(\.\./", text(page), re.MULTILINE), f"{name(page)} has no such line"


def test_the_index_lists_every_page() -> None:
    listed = re.findall(r"^\d+\. \[[^\]]*\]\(([^)]*)\)", text(ROOT / "docs/index.md"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES if page.name != "index.md")


def test_anchors_follow_the_rules_of_code_hosts(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# `compare`: the main job\n\n## State\n\n```sh\n# no heading\n```\n\n## State\n\n### A >> B, `c_d`\n"
    )
    assert anchors(page) == {"compare-the-main-job", "state", "state-1", "a--b-c_d"}
