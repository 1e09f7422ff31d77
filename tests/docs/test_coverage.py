"""What is public is documented: a new name without its line in the docs fails here."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

import thriftgrad
from docs.pages import ROOT, blocks, text
from thriftgrad import aggregate, compress, recipes, tasks
from thriftgrad.cli import app

DOCS = ROOT / "docs"


def rows(page: str) -> set[str]:
    """The names that begin a row of a table on a page, as ``| `Name` |`` or ``| [`Name`](...) |``."""
    return set(re.findall(r"^\| \[?`(\w+)`", text(DOCS / page), re.MULTILINE))


@pytest.mark.parametrize(
    ("page", "public"),
    [
        ("index.md", thriftgrad.__all__),
        ("compressors.md", compress.__all__),
        ("aggregators.md", aggregate.__all__),
        ("recipes.md", recipes.__all__),
        ("tasks-and-data.md", tasks.DESCRIPTIONS),
    ],
)
def test_every_public_name_has_its_row(page: str, public: list[str]) -> None:
    missing = set(public) - rows(page)
    assert not missing, f"docs/{page} has no row for {sorted(missing)}; write one"


def test_every_option_of_compare_is_explained() -> None:
    command = typer.main.get_command(app).commands["compare"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    page = text(DOCS / "compare.md")
    missing = {option for option in options - {"--help"} if f"`{option}" not in page}
    assert len(options) > 5
    assert not missing, f"docs/compare.md says nothing about {sorted(missing)}"


def signatures(source: str) -> dict[str, str]:
    """Every function of some source by its qualified name, as its parameters and what it returns."""
    found: dict[str, str] = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                found[prefix + node.name] = f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Name(''))}"

    walk(ast.parse(source).body, "")
    return found


def test_the_contracts_of_the_architecture_page_are_those_of_the_code() -> None:
    (block,) = blocks(DOCS / "architecture.md", "python signatures")
    in_the_code: dict[str, str] = {}
    for path in sorted((ROOT / "src/thriftgrad").rglob("*.py")):
        if path.parent.name in ("core", "aggregate", "comm", "local", "train"):
            in_the_code |= signatures(text(path))
    shown = signatures(block.text)
    assert len(shown) >= 8
    for function, signature in shown.items():
        assert in_the_code.get(function) == signature, f"architecture.md shows another signature of {function}"


def module_names(package: ModuleType) -> set[str]:
    return {path.stem for path in Path(inspect.getfile(package)).parent.glob("*.py")}


def test_the_architecture_page_names_every_folder() -> None:
    page = text(DOCS / "architecture.md")
    folders = {path.name for path in (ROOT / "src/thriftgrad").iterdir() if path.is_dir() and path.name[0] != "_"}
    modules = module_names(thriftgrad) - {"__init__"}
    assert not {each for each in folders if f"{each}/" not in page}
    assert not {each for each in modules if f"{each}.py" not in page}


FRAGMENTS = sorted(set((ROOT / "changelog.d").glob("*")) - {ROOT / "changelog.d/README.md"})


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda fragment: fragment.name)
def test_fragments_keep_the_two_rules(fragment: Path) -> None:
    assert re.fullmatch(r"\d+\.(added|changed|fixed|removed)(\.\d+)?\.md", fragment.name)
    sentence = text(fragment)
    assert re.fullmatch(r"[^\n]+\.\n", sentence), "a fragment is one line that ends with a full stop"
    assert ". " not in sentence, "a fragment is one sentence"
