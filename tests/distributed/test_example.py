"""``examples/ddp_digits.py`` under torchrun, with the one line and without."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("distributed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddp_digits.py"


def launch(*arguments: str) -> str:
    """What it prints; both ranks must exit with 0."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    finished = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=90, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def numbers(output: str) -> tuple[float, float, float]:
    """Accuracy, bytes up and bytes down per step."""
    accuracy = re.search(r"test accuracy ([0-9.]+)", output)
    sent = re.search(r"per step ([0-9]+) bytes up, ([0-9]+) bytes down", output)
    assert accuracy is not None
    assert sent is not None
    return float(accuracy[1]), float(sent[1]), float(sent[2])


def test_the_one_line_saves_bytes_and_keeps_the_accuracy() -> None:
    accuracy, up, down = numbers(launch("--steps", "60"))
    compressed_accuracy, compressed_up, compressed_down = numbers(
        launch("--steps", "60", "--method", "power_sgd(rank=2)")
    )
    assert min(accuracy, compressed_accuracy) > 0.8
    assert compressed_up < up / 10
    assert compressed_down < down / 10


def test_a_bare_aggregator_is_a_method_too() -> None:
    _, fixed_up, _ = numbers(launch("--steps", "2", "--method", "AllGather(QSGD(bits=4))"))
    _, coded_up, _ = numbers(launch("--steps", "2", "--method", "AllGather(QSGD(bits=4) >> Huffman())"))
    assert 0 < coded_up < fixed_up / 2
