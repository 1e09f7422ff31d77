"""Configurations are values: printed, parsed, pickled, hashed, compared."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import zoo
from thriftgrad import LinkModel, parse

ROWS = (
    *zoo.COMPRESSORS,
    *zoo.AGGREGATORS,
    *zoo.METHODS,
    LinkModel(1e8),
    LinkModel(2e7, 1e8, 0.03, extra_latency_seconds=(0.0, 0.5), slowdown=(1.0, 2.5)),
)
EVERY = pytest.mark.parametrize("row", ROWS, ids=repr)


@EVERY
def test_repr_is_the_constructor(row: Any) -> None:
    again = parse(repr(row))
    assert again == row
    assert type(again) is type(row)
    assert hash(again) == hash(row)
    assert repr(again) == repr(row)


@EVERY
def test_picklable_and_copyable(row: Any) -> None:
    for again in (pickle.loads(pickle.dumps(row)), copy.deepcopy(row)):
        assert again == row
        assert type(again) is type(row)


@EVERY
def test_frozen(row: Any) -> None:
    name = next(iter(vars(row)), "anything")
    with pytest.raises(FrozenInstanceError):
        setattr(row, name, None)


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_a_recipe_parses_by_its_name(name: str) -> None:
    assert parse(name) == zoo.RECIPES[name][0]
    assert parse(f"{name}()") == zoo.RECIPES[name][0]
