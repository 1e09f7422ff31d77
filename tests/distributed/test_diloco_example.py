"""``examples/diloco_text.py``: two sites of two ranks, under torchrun, and a checkpoint between two syncs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from distributed.ranks import on_ranks

pytestmark = pytest.mark.xdist_group("distributed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "diloco_text.py"
MODEL_BYTES = 4 * 279_168  # of the text task's transformer


def test_under_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(EXAMPLE)]
    asked = ["--method", "sparse_loco(h=2)", "--steps", "4"]
    finished = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=90, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "after 4 steps at 2 sites\n4 steps, 2 syncs, memory" in finished.stdout


def printed(*arguments: str) -> str:
    out, example = StringIO(), runpy.run_path(str(EXAMPLE))
    with redirect_stdout(out):
        example["train"](example["options"]().parse_args(arguments))
    return out.getvalue()


def bits_per_byte(output: str) -> float:
    found = re.search(r"bits per byte ([0-9.]+) after", output)
    assert found is not None, output
    return float(found[1])


def test_sites_exchange_at_syncs_alone_and_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    asked, folder = ("--method", "diloco(h=4)", "--steps"), str(tmp_path / "checkpoint")
    whole, *others = on_ranks(4, printed, *asked, "20")
    assert others == ["", "", ""]
    assert re.search(rf"step 20: loss [0-9.]+ nats, 5 syncs, {10 * MODEL_BYTES / 1e6:.2f} MB across sites", whole)
    assert f"20 steps, 5 syncs, memory 0; per step {5 * MODEL_BYTES // 20} bytes up" in whole

    # After step 14 the sites have gone their own ways for two steps.
    on_ranks(4, printed, *asked, "14", "--save", folder)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 4
    resumed = on_ranks(4, printed, *asked, "20", "--resume", folder)[0]
    assert "6 steps, 2 syncs" in resumed
    assert bits_per_byte(resumed) == bits_per_byte(whole) < 5  # 8.59 before the first step
