"""Loss against wall-clock: its records, its table and its figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
from figure import COLOURS, DASHES
from matplotlib.figure import Figure

EXPLAINED = """\
The text task (a transformer of 279,168 parameters on Python's documentation, 8 windows of 64 bytes a worker), two
workers at 100 Mbit/s, until {target} bits per held-out byte. Seconds are measured and are those of training: the clock
stands still while rank 0 evaluates. Each method's learning rate is the one of {rates} (times 0.03 for AdamW)
that took the fewest steps on an unlimited link; one seed, so differences of a few evaluations mean little."""
LEARNING_RATES = (0.1, 0.05, 0.02)


@dataclass(frozen=True)
class Trained:
    """One row's training; ``curve``: seconds, steps, bits per byte."""

    label: str
    learning_rate: float
    sent_bytes: float
    target: float
    curve: tuple[tuple[float, int, float], ...]

    @property
    def steps(self) -> float:
        """Until the target was reached."""
        return self.curve[-1][1] if self.curve[-1][2] <= self.target else inf

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return self.curve[-1][0] if self.curve[-1][2] <= self.target else inf


def trained(folder: Path) -> list[Trained]:
    """All trainings that came to an end."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    names = ("label", "learning_rate", "sent_bytes", "target")
    return [
        Trained(*(each[name] for name in names), tuple(tuple(point) for point in each["curve"]))
        for each in records
        if "error" not in each
    ]


def quickest(folder: Path) -> dict[str, float]:
    """The learning rate that took each row to the target in the fewest steps, or else furthest, by label."""
    found: dict[str, Trained] = {}
    for each in trained(folder):
        rival = found.get(each.label)
        if rival is None or (each.steps, each.curve[-1][2]) < (rival.steps, rival.curve[-1][2]):
            found[each.label] = each
    return {label: each.learning_rate for label, each in found.items()}


def against_seconds(all_trained: Sequence[Trained], figure: Path) -> Iterable[str]:
    """The section of the page; draws the figure too."""
    ordered = sorted(all_trained, key=lambda each: (each.seconds, each.curve[-1][2]))
    draw(ordered, figure)
    yield "## Loss against wall-clock"
    yield ""
    yield fill(EXPLAINED.format(target=ordered[0].target, rates=", ".join(map(str, LEARNING_RATES))), 120)
    yield ""
    titles = ("learning rate", "steps to target", "seconds to target", "ms a step", "MB sent a step", "bits at last")
    yield f"| | {' | '.join(titles)} |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for each in ordered:
        seconds, steps, quality = each.curve[-1]
        reached = (str(each.steps), f"{each.seconds:.1f}") if each.seconds < inf else ("not reached", "not reached")
        numbers = (f"{each.learning_rate:g}", *reached, f"{1e3 * seconds / steps:.1f}", f"{each.sent_bytes / 1e6:.3f}")
        yield f"| {each.label} | {' | '.join(numbers)} | {quality:.3f} |"
    yield ""


def draw(ordered: Sequence[Trained], path: Path) -> None:
    """One line a method, in the order in which they reach the target."""
    mpl.rcParams.update({"svg.hashsalt": "thriftgrad", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, each in enumerate(ordered):
        seconds, _, quality = zip(*each.curve, strict=True)
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS)]
        axes.plot(seconds, quality, dash, color=colour, label=each.label, linewidth=1.8)
    axes.axhline(ordered[0].target, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training, measured, two workers at 100 Mbit/s")
    axes.set_ylabel("bits per held-out byte")
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
