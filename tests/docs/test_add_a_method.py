"""The method that docs/add-a-method.md adds really works: its file, its import line and row, and every law."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import zoo
from docs.pages import ROOT, blocks
from laws import test_algebra, test_claims, test_compressors, test_memory, test_wire
from thriftgrad import compress, parse
from thriftgrad.cli import main
from thriftgrad.core import Compressor

LAWS = (test_algebra, test_claims, test_compressors, test_memory, test_wire)


@pytest.fixture
def natural(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compressor[Any, Any]:
    """The page's file, imported as the page says; its class stands in the zoo."""
    (block,) = blocks(ROOT / "docs/add-a-method.md", "python")
    path = tmp_path / "natural.py"
    path.write_text(block.text)
    spec = importlib.util.spec_from_file_location("thriftgrad.compress.natural", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    compressor: Compressor[Any, Any] = module.Natural()
    monkeypatch.setattr(compress, "Natural", module.Natural, raising=False)
    monkeypatch.setattr(compress, "__all__", [*compress.__all__, "Natural"])
    monkeypatch.setattr(zoo, "RANDOM", (*zoo.RANDOM, compressor))
    monkeypatch.setitem(test_wire.MESSAGES, compressor, test_wire.message_of(compressor))
    return compressor


def laws_of_every_compressor(module: ModuleType) -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    """The laws of a module that run over all rows, or all random or memoryless ones, with their other parameters."""
    memoryless = [each for each in zoo.COMPRESSORS if not each.has_memory]
    rows = [list(zoo.COMPRESSORS), [each for each in zoo.RANDOM if each in zoo.COMPRESSORS], memoryless]
    for name, law in inspect.getmembers(module, callable):
        given = {
            mark.args[0]: list(mark.args[1]) for mark in getattr(law, "pytestmark", []) if mark.name == "parametrize"
        }
        if name.startswith("test_") and given.pop("compressor", None) in rows:
            yield name, law, [dict(zip(given, values, strict=True)) for values in product(*given.values())]


@pytest.mark.parametrize("module", LAWS, ids=lambda module: module.__name__)
def test_it_obeys_the_laws(natural: Compressor[Any, Any], module: ModuleType) -> None:
    laws = list(laws_of_every_compressor(module))
    assert laws, f"no law of {module.__name__} runs over the zoo"
    for _, law, cases in laws:
        for case in cases:
            law(compressor=natural, **case)


def test_a_false_claim_would_be_found(natural: Compressor[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(natural), "variance_bound", lambda self, n: 1 / 32)
    with pytest.raises(AssertionError):
        test_claims.test_claims_hold(natural, "gaussian")


def test_one_import_line_puts_it_into_the_vocabulary(
    natural: Compressor[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse("Natural()") == natural
    method = parse("AllGather(ErrorFeedback(TopK(k=3) >> Natural()))")
    assert parse(repr(method)) == method
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["explain", "Natural()", "--size", "800"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "one of the two powers of two" in printed
    assert "900 B + 20 B header" in printed
    assert "arXiv:1905.10988" in printed
