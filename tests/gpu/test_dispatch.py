"""The public functions, and all golden bytes, with the GPU's kernels interpreted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import zoo
from golden import make
from thriftgrad import kernels
from thriftgrad.core import Compressor
from thriftgrad.kernels import dispatch
from thriftgrad.kernels.gpu import compiled

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN and infinity in the interpreter

GOLDEN = json.loads(make.PATH.read_text())


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    kernels.use("gpu")
    yield
    kernels.use(None)


def test_they_are_the_gpu_s() -> None:
    assert kernels.backend() == "gpu"
    assert dispatch._module(torch.device("cpu")) is compiled
    for name in compiled.__all__:
        assert getattr(kernels, name).__wrapped__.__name__ == name  # it is a function that may be dispatched


@pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)
def test_golden_bytes(compressor: Compressor[Any, Any]) -> None:
    assert make.payload(compressor) == GOLDEN["payloads"][repr(compressor)]
