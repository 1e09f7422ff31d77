"""``examples/async_server.py`` under torchrun, and as processes of which one is killed and comes back."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("distributed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "async_server.py"


def accuracy(output: str) -> float:
    found = re.search(r"test accuracy ([0-9.]+)", output)
    assert found is not None, output
    return float(found[1])


def test_under_torchrun_with_a_slow_worker() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(EXAMPLE)]
    finished = subprocess.run(
        [*command, "--slow-rank", "2", "--steps", "80"], capture_output=True, text=True, timeout=90, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert accuracy(finished.stdout) > 0.8
    reports = re.findall(
        r"worker (\d) finished: (\d+) pushes, 0 stale.*?(\d+) bytes up, (\d+) bytes down", finished.stdout
    )
    assert [rank for rank, *_ in reports] == ["0", "1", "2"]
    dense_bytes = 80 * 4 * 38_282  # of a gradient at each step
    for _, pushes, up, down in reports:
        assert int(pushes) > 10
        assert int(up) < dense_bytes / 100
        assert int(down) < dense_bytes / 20


def test_a_killed_worker_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(rank: str) -> subprocess.Popen[str]:
        options = ["--server", address, "--workers", "1", "--steps", "60", "--slow-rank", "0", "--rank", rank]
        return subprocess.Popen(
            [sys.executable, str(EXAMPLE), *options, "--checkpoints", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    started = [start("server"), start("0")]
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "worker0.pt").exists():
            assert time.monotonic() < deadline
            assert started[1].poll() is None
            time.sleep(0.01)
        started[1].kill()
        started.append(start("0"))
        outputs = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    out, log = outputs[0]
    assert started[0].returncode == started[2].returncode == 0, log + outputs[2][1]
    assert "worker 0 is lost" in log
    assert ", 1 returns;" in out
    assert (tmp_path / "server.pt").exists()
    steps = re.search(r"worker 0: (\d+) steps", outputs[2][0])
    assert steps is not None
    assert 0 < int(steps[1]) < 60
