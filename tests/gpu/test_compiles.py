"""Every kernel compiles for real GPUs, which need not be there, into code that can keep the promises of the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import thriftgrad

SCRIPT = Path(__file__).with_name("compile_for.py")
KERNELS = Path(thriftgrad.__file__).parent / "kernels" / "gpu"


@pytest.fixture(scope="module", params=[80, 90], ids=["Ampere", "Hopper"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert not done.returncode, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["kernel"]: row for row in rows}


pytestmark = pytest.mark.timeout(900)


def test_every_kernel_compiles(found: dict[str, dict[str, Any]]) -> None:
    """All functions that are launched: those of the modules that are decorated and take pointers from the host."""
    calls = [call for path in KERNELS.glob("*.py") for call in path.read_text().split(" launch(")[1:]]
    launched = {call.split(",")[0].strip() for call in calls} - {"kernel: Any"}
    assert {name.split(" ")[-1] for name in found} == launched
    assert len(launched) > 12


def test_arithmetic_is_that_of_ieee(found: dict[str, dict[str, Any]]) -> None:
    """No approximation and no contraction; the FMAs there are belong to the division of uniform levels, two an element.

    A thread of the tile has 32 elements.
    """
    assert {name: row["inexact"] for name, row in found.items() if row["inexact"]} == {}
    assert {name: row["fma"] for name, row in found.items() if row["fma"]} == {"uniform quantise": 64}


def test_sixteen_bytes_are_moved_at_a_time_and_nothing_between_threads(found: dict[str, dict[str, Any]]) -> None:
    """But for the scales of a tile, and what sums them up. (Triton 3.6 passes levels that are looked up around.)"""
    for name, most in (("uniform quantise", 512), ("levels quantise", 2048), ("sign with memory quantise", 512)):
        assert found[name]["wide_loads"] >= 8
        assert found[name]["shared_bytes"] <= most
    assert found["sign with memory quantise"]["wide_stores"] >= 8
    assert found["_add_groups"]["wide_loads"] >= 8
    assert found["_add_groups"]["wide_stores"] >= 8
    assert found["_add_groups"]["shared_bytes"] == 0
