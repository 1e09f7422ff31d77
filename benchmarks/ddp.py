"""The table that counts: a DDP step by every method over slow links, against the same step without communication.

    sudo .venv/bin/python benchmarks/ddp.py [--quick] [--hivemind DIR]    # about 20 minutes; the same command goes on
    sudo .venv/bin/python benchmarks/ddp.py loss                          # loss against wall-clock for the best five
    .venv/bin/python benchmarks/ddp.py write                              # the pages again, from what was measured

A GPT of 10.9 M parameters, one torch thread a worker, links shaped by the lab (``thriftgrad lab``). Each method takes
turns with steps without communication; a figure is the ratio of medians. Records lie under ``--out``, one file for each
worker count, link and method; remove it to measure again.

hivemind's rows are measured where DIR holds it: pip install --no-deps --target DIR, with the packages that the results
name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import date
from itertools import product
from pathlib import Path
from time import monotonic

from ddp_measure import leave
from ddp_report import into_readme, read, results
from ddp_rows import ROWS, Row

from thriftgrad.lab.launch import RankFailedError
from thriftgrad.lab.namespaces import LabError, Network, Shape

HERE = Path(__file__).parent
COMMAND = "sudo .venv/bin/python benchmarks/ddp.py"
WORKERS, LINKS = (2, 4), ("100mbit", "1gbit", "unlimited")
SLOWEST_SECONDS = 150  # that one row may take, with all that belongs to it


class Watch:
    """Which row is under way, and progress on stderr."""

    def __init__(self, left: Sequence[str]) -> None:
        self.left, self.now, self.began = list(left), left[0], monotonic()

    def __call__(self, rank: int, stream: str, line: str) -> None:
        """Hear a line of a rank."""
        what, _, slug = line.partition(" ")
        if rank == 0 and what == "begin":
            self.now, self.began = slug, monotonic()
        if rank == 0 and what == "end":
            self.left.remove(slug)
            say(f"  {slug}: {monotonic() - self.began:.1f} s")


def say(*words: object) -> None:
    """Progress."""
    print(*words, file=sys.stderr, flush=True)


def measure(workers: int, link: str, rows: Sequence[Row], folder: Path, budget: float, paths: str = "") -> None:
    """Measure what has no file yet. A row that fails leaves its reason, and the others go on without it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = {"PYTHONPATH": os.pathsep.join(filter(None, (paths, os.environ.get("PYTHONPATH"))))}
    labels = {row.slug: row.label for row in rows if not (folder / f"{row.slug}.json").exists()}
    while labels:
        watch = Watch(list(labels))
        command = [sys.executable, str(HERE / "ddp_measure.py"), str(folder), link, *labels, "--budget", str(budget)]
        try:
            with Network(workers, Shape.of(link)) as network:
                network.run(command, path, watch, SLOWEST_SECONDS * len(labels))
        except (RankFailedError, TimeoutError) as error:
            why = f"{error.how}: {' '.join(error.lines[-1:])}" if isinstance(error, RankFailedError) else str(error)
            say(f"  {watch.now} failed: {why}")
            failed = {"label": labels[watch.now], "workers": workers, "link": link, "error": why}
            leave(folder / f"{watch.now}.json", failed)
            watch.left.remove(watch.now)
        labels = {slug: labels[slug] for slug in watch.left}


def main() -> None:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("table", "loss", "write"), default="table")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--links", nargs="+", default=LINKS)
    parser.add_argument("--rows", nargs="+", metavar="TEXT", default=[""], help="those whose labels hold one of these")
    parser.add_argument("--quick", action="store_true", help="two workers at 1 Gbit")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of measured steps a row")
    parser.add_argument("--hivemind", default="", help="folders with hivemind and a numpy below 2.4, as in PYTHONPATH")
    parser.add_argument("--out", type=Path, default=Path("runs/ddp"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / f"ddp-{date.today()}.md")
    parser.add_argument("--readme", type=Path, help="a page with the marks between which the table belongs")
    options = parser.parse_args()
    workers, links = ((2,), ("1gbit",)) if options.quick else (options.workers, options.links)
    rows = [row for row in ROWS if any(text in row.label for text in options.rows)]
    began = monotonic()
    for count, link in product(workers, links) if options.what == "table" else ():
        say(f"{count} workers, {link} ({monotonic() - began:.0f} s so far)")
        folder = options.out / f"{count}-{link}"
        measure(count, link, [row for row in rows if row.library is None], folder, options.budget)
        others = [row for row in rows if row.library is not None]
        measure(count, link, others, folder, options.budget, options.hivemind)
    cells = read(options.out)
    options.results.write_text(results(cells, COMMAND))
    if options.readme:
        into_readme(options.readme, cells)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
