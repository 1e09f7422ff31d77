"""The table that counts: a DDP step by every method over slow links, against the same step without communication.

    sudo .venv/bin/python benchmarks/ddp.py [--quick] [--hivemind DIR]    # about 35 minutes; the same command goes on
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

from ddp_loss import LEARNING_RATES, against_seconds, quickest, trained
from ddp_measure import leave
from ddp_records import best, read
from ddp_report import into_readme, results
from ddp_rows import ROWS, Row

from thriftgrad.lab.launch import RankFailedError
from thriftgrad.lab.namespaces import Network
from thriftgrad.lab.shape import UNLIMITED, LabError, Shape

HERE = Path(__file__).parent
COMMAND = "sudo .venv/bin/python benchmarks/ddp.py"
WORKERS, LINKS = (2, 4), ("100mbit", "1gbit", "unlimited")
COMPARED = ("DDP float32", "bf16_compress_hook", "powerSGD_hook rank 2")
TRAINED, BEST = (2, "100mbit"), 5
FIGURE = HERE.parent / "docs" / "figures" / "loss_against_seconds.svg"
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


def launch(
    script: str, workers: int, link: str, labels: dict[str, str], folder: Path, *more: str, paths: str = ""
) -> None:
    """Have the ranks do what has no file yet, by file name. What fails leaves its reason, and the others go on."""
    folder.mkdir(parents=True, exist_ok=True)
    path = {"PYTHONPATH": os.pathsep.join(filter(None, (paths, os.environ.get("PYTHONPATH"))))}
    left = [name for name in labels if not (folder / f"{name}.json").exists()]
    while left:
        watch = Watch(left)
        command = [sys.executable, str(HERE / script), str(folder), link, *left, *more]
        try:
            with Network(workers, Shape.of(link)) as network:
                network.run(command, path, watch, SLOWEST_SECONDS * len(left))
        except (RankFailedError, TimeoutError) as error:
            why = f"{error.how}: {' '.join(error.lines[-1:])}" if isinstance(error, RankFailedError) else str(error)
            say(f"  {watch.now} failed: {why}")
            failed = {"label": labels[watch.now], "workers": workers, "link": link, "error": why}
            leave(folder / f"{watch.now}.json", failed)
            watch.left.remove(watch.now)
        left = watch.left


def table(
    workers: Sequence[int], links: Sequence[str], rows: Sequence[Row], out: Path, more: Sequence[str], hivemind: str
) -> None:
    """Measure all cells; ``more``: options of ddp_measure.py."""
    began = monotonic()
    for count, link in product(workers, links):
        say(f"{count} workers, {link} ({monotonic() - began:.0f} s so far)")
        for others, paths in ((False, ""), (True, hivemind)):
            labels = {row.slug: row.label for row in rows if (row.library is not None) is others}
            launch("ddp_measure.py", count, link, labels, out / f"{count}-{link}", *more, paths=paths)


def loss(out: Path) -> None:
    """Train by the best five and by what they are compared with: at each learning rate, then on a slow link.

    They are the best of the table, which has to be there.
    """
    cell = read(out).get(TRAINED)
    if not cell:
        raise LabError(
            f"loss: {out} has no measured steps of 2 workers at 100mbit to choose from; run the table first."
        )
    rows, folder = {row.label: row for row in ROWS}, out / "loss"
    slugs = {rows[label].slug: label for label in (*COMPARED, *best(cell, BEST))}
    say("learning rates")
    tuning = {f"{slug}@{rate}": label for slug, label in slugs.items() for rate in LEARNING_RATES}
    launch("ddp_train.py", TRAINED[0], UNLIMITED, tuning, folder / UNLIMITED)
    say(f"behind {TRAINED[1]}")
    chosen = quickest(folder / UNLIMITED)
    names = {f"{slug}@{chosen[label]}": label for slug, label in slugs.items() if label in chosen}
    launch("ddp_train.py", *TRAINED, names, folder / TRAINED[1])


def main() -> None:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("table", "loss", "write"), default="table")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--links", nargs="+", default=LINKS)
    parser.add_argument("--rows", nargs="+", metavar="TEXT", default=[""], help="those whose labels hold one of these")
    parser.add_argument("--quick", action="store_true", help="two workers at 1 Gbit")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of measured steps a row")
    parser.add_argument("--bucket-mb", type=int, help="DDP's bucket_cap_mb for our rows, instead of their own")
    parser.add_argument("--hivemind", default="", help="folders with hivemind and a numpy below 2.4, as in PYTHONPATH")
    parser.add_argument("--out", type=Path, default=Path("runs/ddp"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / f"ddp-{date.today()}.md")
    parser.add_argument("--readme", type=Path, help="a page with the marks between which the table belongs")
    options = parser.parse_args()
    rows = [row for row in ROWS if any(text in row.label for text in options.rows)]
    workers, links = ((2,), ("1gbit",)) if options.quick else (options.workers, options.links)
    match options.what:
        case "table":
            more = ["--budget", str(options.budget)]
            more += ["--bucket-mb", str(options.bucket_mb)] if options.bucket_mb else []
            table(workers, links, rows, options.out, more, options.hivemind)
        case "loss":
            loss(options.out)
    cells = read(options.out)
    curves = trained(options.out / "loss" / TRAINED[1])
    options.results.write_text(
        "\n".join([results(cells, COMMAND), *(against_seconds(curves, FIGURE) if curves else ())])
    )
    if options.readme:
        into_readme(options.readme, cells, options.results, FIGURE)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
