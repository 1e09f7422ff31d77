"""Processes that are started, killed and started again one by one; each runs a function of a test file."""

from __future__ import annotations

import os
import runpy
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distributed.ranks import _SERVER


class Crowd:
    """Processes whose results lie in a folder; ``with crowd(folder)`` leaves none of them behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, Any] = {}

    def start(self, name: str, function: Callable[..., Any], *args: Any) -> int:
        """Run ``function(folder, *args)`` as process ``name``; its id."""
        where = (function.__code__.co_filename, function.__name__)
        process = _SERVER.Process(target=_be, args=(self.folder, name, where, args))
        process.start()
        self._processes[name] = process
        assert process.pid is not None
        return process.pid

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].join(5)

    def result(self, name: str, timeout_seconds: float = 60) -> Any:
        """What the function returned; the traceback as ``AssertionError`` if it raised."""
        self._processes[name].join(timeout_seconds)
        failure, result = self.folder / f"{name}.failure", self.folder / f"{name}.result"
        assert not failure.exists(), failure.read_text()
        assert result.exists(), f"{name} has not ended"
        return torch.load(result, weights_only=False)

    def wait_for(self, condition: Callable[[], bool], timeout_seconds: float = 60) -> float:
        """Wait until it holds; how long that took."""
        start = time.monotonic()
        while not condition():
            for failure in self.folder.glob("*.failure"):
                raise AssertionError(failure.read_text())
            assert time.monotonic() - start < timeout_seconds, "what was waited for has not come"
            time.sleep(0.01)
        return time.monotonic() - start

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.join(5)


@contextmanager
def crowd(folder: Path) -> Iterator[Crowd]:
    processes = Crowd(folder)
    try:
        yield processes
    finally:
        processes.end()


def _be(folder: Path, name: str, where: tuple[str, str], args: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(1)
        path, function = where
        warnings.simplefilter("error")
        result = runpy.run_path(path)[function](folder, *args)
        torch.save(result, folder / f"{name}.part")
        (folder / f"{name}.part").rename(folder / f"{name}.result")
    except BaseException:
        (folder / f"{name}.failure").write_text(traceback.format_exc())
    finally:
        os._exit(0)
