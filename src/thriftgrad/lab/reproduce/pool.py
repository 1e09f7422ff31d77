"""Jobs in processes: each does its work by itself, leaves it in files, and need not be done twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from thriftgrad.lab.reproduce.records import ReproductionError


class Job(ABC):
    """Something to do once; it travels to another process by pickling."""

    seconds: float
    """About how long it takes: the longest are begun first, and progress is measured in it."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def done(self, folder: Path) -> bool:
        """Whether its files are whole."""

    @abstractmethod
    def perform(self, folder: Path) -> None:
        """Do it, from the start, and leave the result in files."""


@dataclass(frozen=True)
class Sign:
    """A sign of life: what has just ended, and how much of all is done, in jobs and in about seconds."""

    label: str
    jobs_done: int
    jobs: int
    seconds_done: float
    seconds: float


def work(jobs: Sequence[Job], folder: Path, show: Callable[[Sign], None], processes: int | None = None) -> None:
    """Do the jobs that are not done yet, one on each core unless ``processes`` says otherwise; 1: in this process.

    Ends its processes when it is interrupted or a job fails. Raises what the job raised, or ``ReproductionError`` if a
    process died.
    """
    waiting = sorted((job for job in jobs if not job.done(folder)), key=lambda job: -job.seconds)
    total = sum(job.seconds for job in jobs)
    left = {id(job): job.seconds for job in waiting}

    def sign(job: Job) -> None:
        left.pop(id(job))
        show(Sign(job.label, len(jobs) - len(left), len(jobs), total - sum(left.values()), total))

    processes = min(processes or os.cpu_count() or 1, max(len(waiting), 1))
    if processes == 1:
        for job in waiting:
            job.perform(folder)
            sign(job)
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _prepare)
    futures = {executor.submit(job.perform, folder): job for job in waiting}
    try:
        for future in as_completed(futures):
            future.result()
            sign(futures[future])
    except BrokenProcessPool as error:
        raise ReproductionError(
            "reproduce: a process of it ended abruptly, as when memory runs out; the same command goes on from there."
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        if left:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()


def _prepare() -> None:
    """One thread each; an interrupt ends the process at once and without words."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
