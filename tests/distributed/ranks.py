"""Run a function of a test file on several gloo ranks.

The ranks are forked from a server that has imported torch once, so a launch takes a fraction of a second. A rank ends
with ``os._exit`` once its result is written; one that hangs is killed at the deadline.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_SERVER = multiprocessing.get_context("forkserver")
# The constructor of DDP imports torch._dynamo, which takes as long as torch itself.
_SERVER.set_forkserver_preload(["pytest", "thriftgrad.vocabulary", "torch._dynamo"])


def on_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_seconds: float = 75,
    group_timeout_seconds: float = 30,
) -> list[Any]:
    """What ``function(*args)`` returns on each rank, in rank order; a function at the top level of a test file.

    ``group_timeout_seconds``: how long one collective may take.

    Raises ``AssertionError`` with the tracebacks of the ranks that failed, the first to fail first.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, where = Path(name), (function.__code__.co_filename, function.__name__)
        common = (world, group_timeout_seconds, folder, where, args)
        ranks = [_SERVER.Process(target=_be_a_rank, args=(rank, *common)) for rank in range(world)]
        deadline = time.monotonic() + timeout_seconds
        try:
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in ranks:
                process.kill()
        failures = sorted(folder.glob("failure*"), key=lambda path: path.stat().st_mtime_ns)
        results = [folder / f"result.{rank}" for rank in range(world)]
        if not all(path.exists() for path in results):
            told = [f"rank {path.suffix.removeprefix('.')}: {path.read_text()}" for path in failures]
            missing = [rank for rank, path in enumerate(results) if not path.exists()]
            raise AssertionError("\n".join([f"no results from ranks {missing}", *told]))
        return [torch.load(path, weights_only=False) for path in results]


def _be_a_rank(
    rank: int, world: int, group_timeout_seconds: float, folder: Path, where: tuple[str, str], args: tuple[Any, ...]
) -> None:
    code = 1
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=group_timeout_seconds),
        )
        path, name = where
        function = runpy.run_path(path)[name]
        warnings.simplefilter("error")
        torch.save(function(*args), folder / f"result.{rank}")
        code = 0
    except BaseException:
        (folder / f"failure.{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)
