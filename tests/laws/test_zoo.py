"""The zoo is complete: a public method without a row fails here."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import pytest

import zoo
from thriftgrad import aggregate, compress, core, local, recipes
from thriftgrad.core import Compressor, LinearCompressor
from thriftgrad.local import AsyncServer, Inner, LocalMethod, Outer, Schedule
from thriftgrad.train.method import Method
from thriftgrad.wire import coders

ROWS = (*zoo.COMPRESSORS, *zoo.AGGREGATORS, *zoo.METHODS, *zoo.LOCAL_METHODS)
PARTS = [part for row in ROWS for part in zoo.parts(row)]
ABSTRACT = {"Aggregator", "TensorState"}
COMBINATORS = [
    cls
    for name in core.__all__
    if isinstance(cls := getattr(core, name), type)
    and issubclass(cls, Compressor)
    and cls not in (Compressor, LinearCompressor)
]
LOCAL = [
    cls
    for name in local.__all__
    if isinstance(cls := getattr(local, name), type)
    and issubclass(cls, Schedule | Outer | Inner)
    and cls not in (Schedule, Outer, Inner)
]
CLASSES = [
    *(made for name in compress.__all__ if isinstance(made := getattr(compress, name), type)),
    *(getattr(aggregate, name) for name in aggregate.__all__ if name not in ABSTRACT),
    *(getattr(coders, name) for name in coders.__all__ if name != "Coder"),
    *COMBINATORS,
    *LOCAL,
    Method,
    LocalMethod,
    AsyncServer,
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_public_class_has_a_row(cls: type) -> None:
    assert any(isinstance(part, cls) for part in PARTS), f"{cls.__name__} has no row in tests/zoo.py"


@pytest.mark.parametrize(
    ("cls", "option"),
    [(cls, f) for cls in CLASSES for f in fields(cls) if f.default is not MISSING],
    ids=lambda value: getattr(value, "__name__", None) or value.name,
)
def test_every_option_is_turned_on_somewhere(cls: type, option: Any) -> None:
    values = {getattr(part, option.name) for part in PARTS if isinstance(part, cls)}
    assert values - {option.default}, f"no row of tests/zoo.py sets {cls.__name__}.{option.name}"


def test_every_recipe_has_a_row() -> None:
    assert {*zoo.RECIPES, *zoo.LOCAL_RECIPES} == set(recipes.__all__)
    assert all(isinstance(method, Method) for method in zoo.METHODS)
    assert all(isinstance(method, LocalMethod) for method in zoo.LOCAL_METHODS)


@pytest.mark.parametrize("name", recipes.__all__)
def test_every_recipe_names_its_paper_and_the_place_of_its_momentum(name: str) -> None:
    description = getattr(recipes, name).__doc__
    assert "omentum" in description
    assert name == "sgd" or "arXiv:" in getattr(recipes, name)().paper


def test_rows_are_distinct() -> None:
    assert len({repr(row) for row in ROWS}) == len(ROWS)
    assert len(set(ROWS)) == len(ROWS)
