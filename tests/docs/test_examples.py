"""What the pages show is what happens: their examples run, and their commands print what stands below them.

A page is one script. ``pycon`` blocks are doctests, ``python`` blocks are executed, and ``console`` blocks
are commands of ours with what they print; ``sh`` blocks are read by the command line's parser but not run. The blocks
of a page share their names and an empty folder.
"""

from __future__ import annotations

import doctest
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import typer

from docs.pages import ALL_PAGES, PAGES, Block, blocks, name
from thriftgrad.cli import app, main

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page):
        match block.info:
            case "pycon":
                run_doctest(block, page, vars(module))
            case "python":
                exec(compile("\n" * (block.line - 1) + block.text, name(page), "exec"), vars(module))
            case "console":
                run_commands(block, page)


def run_doctest(block: Block, page: Path, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, {}, name(page), str(page), block.line - 1)
    assert test.examples, f"{name(page)}, line {block.line}: a pycon block without >>>"
    test.globs = names  # shared, where get_doctest would have copied them
    complaints: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=complaints.append, clear_globs=False)
    assert not result.failed, "".join(complaints)


def run_commands(block: Block, page: Path) -> None:
    for command, expected in commands(block):
        got = printed(command)
        fits = doctest.OutputChecker().check_output(expected, got, FLAGS)
        assert fits, f"{name(page)}, line {block.line}: $ {command}\nexpected:\n{expected}\ngot:\n{got}"


def printed(command: str) -> str:
    """What a command prints: its output, or its complaint if it fails."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(shlex.split(command)[1:])
    return err.getvalue() if stop.value.code else out.getvalue()


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].strip(), ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


SHELL = [(page, block) for page in ALL_PAGES for block in blocks(page, "sh")]


@pytest.mark.parametrize(("page", "block"), SHELL, ids=[f"{name(page)}:{block.line}" for page, block in SHELL])
def test_commands_that_are_not_run_would_be_understood(page: Path, block: Block) -> None:
    words_of_ours = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "thriftgrad":
            words_of_ours[words[1]].make_context(words[1], words[2:])  # raises for an option that is not there
