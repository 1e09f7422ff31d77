"""Whether the model of a link foretells what the lab measures: a training step by every method, on links and workers.

.venv/bin/python benchmarks/lab.py > benchmarks/results/lab-$(date +%F).md

Needs root and tc (docs/lab.md) and a machine that does nothing else: a rank that waits for a core looks like a slow
link. Takes about four minutes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from thriftgrad.lab import agreement
from thriftgrad.lab.comparison import cpu_name
from thriftgrad.lab.summary import Summary, read_summary
from thriftgrad.lab.table import significant

METHODS = (
    "sgd",
    "sgd(precision='bf16')",
    "qsgd(bits=4)",
    "ScatterReduce(QSGD(bits=4), QSGD(bits=4))",
    "top_k(fraction=0.01)",
    "power_sgd(rank=2)",
    "local_sgd(h=4)",
)


def main() -> None:
    """Measure every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="text")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--link", action="append", help="100mbit and 1gbit if left out")
    parser.add_argument("--workers", type=int, action="append", help="2 and 4 if left out")
    arguments = parser.parse_args()
    rows, right = [], 0
    with tempfile.TemporaryDirectory() as folder:
        compare("--steps", 4, "--workers", 2, "--out", Path(folder) / "first")  # what is compiled, is from then on
        for link in arguments.link or ["100mbit", "1gbit"]:
            for workers in arguments.workers or [2, 4]:
                summary = measured(arguments.task, arguments.steps, link, workers, Path(folder) / f"{link}-{workers}")
                (modelled,) = summary.configuration.links
                for method, step in zip(summary.methods, agreement.of_steps(summary), strict=True):
                    cells = [link, str(workers), f"{modelled.latency_seconds * 1000:.3f}", f"`{method.method.label}`"]
                    cells += [significant(1000 * seconds) for seconds in (step.measured or 0.0, step.modelled or 0.0)]
                    rows.append([*cells, f"{step.off or 0.0:+.0%}{'' if step.holds else ' (!)'}"])
                    right += step.holds
    print(f"# The lab's links: measured and modelled steps of {arguments.task}\n")
    print(f"{cpu_name()}. `{' '.join(['benchmarks/lab.py', *sys.argv[1:]])}`\n")
    print(
        "| link | workers | ms a hop | method | measured, ms a step | modelled | off |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"\nWithin {agreement.TOLERANCE:.0%}: {right} of {len(rows)}.")


def measured(task: str, steps: int, link: str, workers: int, folder: Path) -> Summary:
    """One comparison in the lab."""
    compare("--task", task, "--steps", steps, "--workers", workers, "--lab", link, "--out", folder)
    return read_summary(folder)


def compare(*options: object) -> None:
    """One comparison of the methods, of one seed, in a process of its own."""
    program = "from thriftgrad.cli import main; main()"
    command = [sys.executable, "-c", program, "compare", *METHODS, "--seeds", "1", *map(str, options)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
