"""Bytes are a promise: today's code writes and reads what the golden file holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

import zoo
from golden import make
from thriftgrad import TensorSpec, wire
from thriftgrad.core import Compressor

GOLDEN = json.loads(make.PATH.read_text())
HOW = "if this is meant, raise wire.VERSION and run python tests/golden/make.py"
WRITTEN_OUT = [each for each in zoo.COMPRESSORS if "hex" in GOLDEN["payloads"].get(repr(each), {})]


def test_the_file_is_of_this_version_and_has_every_row() -> None:
    assert GOLDEN["wire_version"] == wire.VERSION
    assert list(GOLDEN["payloads"]) == [repr(each) for each in zoo.COMPRESSORS], "run python tests/golden/make.py"


@pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)
def test_the_same_bytes_are_written(compressor: Compressor[Any, Any]) -> None:
    assert make.payload(compressor) == GOLDEN["payloads"][repr(compressor)], HOW


@pytest.mark.parametrize("compressor", WRITTEN_OUT, ids=repr)
def test_old_bytes_are_read_alike(compressor: Compressor[Any, Any]) -> None:
    row = GOLDEN["payloads"][repr(compressor)]
    payload = wire.unpack(bytes.fromhex(row["hex"]), compressor, TensorSpec.of(make.tensor()))
    assert make.digest(compressor.decompress(payload)) == row["estimate"], HOW


def test_most_rows_are_written_out() -> None:
    assert len(WRITTEN_OUT) > len(zoo.COMPRESSORS) // 2


@pytest.mark.filterwarnings("ignore:.*compresses none of the 2 tensors")  # low rank, of two vectors
@pytest.mark.parametrize(
    "aggregator", [each for each in zoo.AGGREGATORS if repr(each) in GOLDEN["estimates"]], ids=repr
)
def test_the_same_estimates_come_out(aggregator: Any) -> None:
    assert make.estimate(aggregator) == GOLDEN["estimates"][repr(aggregator)], HOW


def test_every_gather_type_aggregator_is_frozen() -> None:
    assert len(GOLDEN["estimates"]) >= 11
    assert set(GOLDEN["estimates"]) <= {repr(each) for each in zoo.AGGREGATORS}
