"""What each process of a real comparison runs; started by ``processes.launch``."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from pydantic import TypeAdapter

from thriftgrad.comm import Timeline
from thriftgrad.lab.cluster import Processes
from thriftgrad.lab.comparison import RESOLVED, Request, prepare, resolve
from thriftgrad.lab.processes import say
from thriftgrad.lab.runner import Progress, execute


def main(folder: Path, trace: Path | None = None) -> None:
    """Join the group, do the runs, leave; rank 0 writes a trace of them if told where."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    request = TypeAdapter(Request).validate_python(json.loads((folder / RESOLVED).read_text())["request"])
    cluster = Processes()
    if trace is not None and cluster.writes:
        cluster.timeline = Timeline()

    def report(progress: Progress) -> None:
        if cluster.writes:
            say(progress)

    execute(prepare(resolve(request), folder), folder, cluster, report)
    if trace is not None and cluster.timeline is not None:
        cluster.timeline.save(trace)
    cluster.barrier()
    dist.destroy_process_group()


def leave_with_parent() -> None:
    """End this process, whatever it is doing, once the parent has closed our standard input or is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        main(*(Path(argument) for argument in sys.argv[1:]))
    except Exception as error:
        say(error)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # The records are written; do not wait for what gloo's threads leave behind.
    os._exit(0)
