"""The README's figure: training loss against bytes, from the records of a comparison.

    thriftgrad compare sgd qsgd ... --out DIR
    python benchmarks/figure.py DIR docs/figures/loss_against_bytes.svg

Needs matplotlib (the ``report`` extra).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from thriftgrad.lab.load import load

# Okabe and Ito's palette, which colour-blind readers can tell apart, then two greys.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#666666", "#000000", "#999999")
DASHES = ("-", "--", "-.", ":")


def draw(directory: Path, out: Path) -> None:
    """One line per method: mean training loss over seeds, the band from the lowest to the highest."""
    configuration, runs = load(directory)
    # Text stays text, and the same records give the same file.
    mpl.rcParams.update({"svg.hashsalt": "thriftgrad", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(configuration.methods):
        finished = [run for run in runs if run.method == method.slug and run.status == "finished"]
        if not finished:
            continue
        points = [[e for e in run.evaluations if e.loss is not None] for run in finished]
        losses = np.array([[e.loss for e in each] for each in points])
        megabytes = np.array([e.bytes_both / 1e6 for e in points[0]])
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS)]
        axes.plot(megabytes, losses.mean(0), dash, color=colour, label=fill(method.label, 36), linewidth=1.8)
        axes.fill_between(megabytes, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("megabytes on each worker's link, up and down together")
    axes.set_ylabel("training loss")
    axes.set_title(
        f"{configuration.task.name}: {configuration.parameters:,} parameters, {configuration.workers} workers, "
        f"{configuration.steps} steps, {len(configuration.seeds)} seeds",
        fontsize=11,
    )
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(options.directory, options.out)
