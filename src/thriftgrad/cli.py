"""The command line. Every command imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="thriftgrad",
    help="Train PyTorch models over links too slow for their gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEMO = ("sgd", "sgd(precision='bf16')", "qsgd", "top_k", "ef_sign_sgd", "power_sgd")
LINKS = ("100mbit,1ms", "1gbit,0.1ms")

Methods = Annotated[
    list[str],
    typer.Argument(
        help="Recipes such as sgd, qsgd, power_sgd(rank=4), or expressions such as AllGather(QSGD(bits=4)).",
        show_default=False,
    ),
]
Links = Annotated[
    list[str],
    typer.Option(
        "--link", help="Bandwidth and latency to model: 100mbit,1ms, or up/down: 20mbit/100mbit,30ms. May be repeated."
    ),
]


@app.command()
def compare(
    methods: Methods,
    task: Annotated[
        str, typer.Option(help="digits, logreg, text; or your data: cifar10, mnist, images, tokens.")
    ] = "digits",
    workers: Annotated[int, typer.Option(help="How many workers share each step.")] = 4,
    seeds: Annotated[int, typer.Option(help="Runs per method, each with its own model, data order and rounding.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Steps per run.", show_default="the task's")] = None,
    link: Links = list(LINKS),  # noqa: B006  # typer copies it
    target: Annotated[float | None, typer.Option(help="Quality to reach.", show_default="the task's")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First choose every method's learning rate on one grid, at one budget.")
    ] = False,
    processes: Annotated[
        bool, typer.Option("--processes", help="Real gloo processes under torchrun, not a simulation.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where your own data lies.", show_default="$THRIFTGRAD_DATA, ./data")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and report.", show_default="runs/TASK-DIGEST")
    ] = None,
) -> None:
    """Train with each method on the same samples; show quality, bytes and seconds, and write report.html.

    The same command again goes on where it was interrupted.
    """
    with _sentences():
        from thriftgrad.lab.comparison import Request

        request = Request(
            methods=tuple(dict.fromkeys(methods)),
            task=task,
            workers=workers,
            seeds=seeds,
            steps=steps,
            links=tuple(dict.fromkeys(link)),
            target=target,
            tune=tune,
            processes=processes,
            data_dir=str(data_dir) if data_dir else None,
        )
        folder = out or request.default_folder()
        _run(request, folder, folder / "report.html")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the records.")] = Path("runs/demo"),
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("report.html"),
) -> None:
    """Six methods on real images with four simulated workers; writes report.html in under two minutes."""
    with _sentences():
        from thriftgrad.lab.comparison import Request

        request = Request(DEMO, "digits", 4, 2, None, LINKS, None, tune=False, processes=False, data_dir=None)
        _run(request, out, report)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a comparison.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="FOLDER/report.html")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown too.")] = False,
) -> None:
    """Draw the table and the report of a comparison again."""
    with _sentences():
        _show(folder, out or folder / "report.html")
        if markdown:
            from thriftgrad.lab import summary, table

            sys.stdout.write(table.markdown(summary.read_summary(folder)) + "\n")


@app.command()
def explain(
    expression: Annotated[str, typer.Argument(help="A compressor, aggregator or method.", show_default=False)],
    size: Annotated[
        int, typer.Option(help="Elements of the tensor, taken as a square matrix where rank matters.")
    ] = 1_000_000,
    workers: Annotated[int, typer.Option(help="Workers in the exchange.")] = 4,
) -> None:
    """Say what an expression stands for: its formula and claims, its bytes for a tensor of a given size, its paper."""
    with _sentences():
        from rich.console import Console

        from thriftgrad.lab.explain import explain as explained

        Console().print(explained(expression, size, workers))


@app.command()
def methods() -> None:
    """List the recipes and the words of the algebra."""
    with _sentences():
        from rich.console import Console

        from thriftgrad.lab.explain import overview

        Console().print(overview())


def _run(request: Any, folder: Path, report_path: Path) -> None:
    from thriftgrad.lab.comparison import prepare, resolve
    from thriftgrad.lab.progress import shown_progress

    comparison = prepare(resolve(request, shlex.join(["thriftgrad", *sys.argv[1:]])), folder)
    with shown_progress() as progress:
        if request.processes:
            from thriftgrad.lab.processes import launch

            launch(folder, request.workers, progress)
        else:
            from thriftgrad.lab.cluster import Simulated
            from thriftgrad.lab.runner import execute

            execute(comparison, folder, Simulated(request.workers), progress)
    _show(folder, report_path)


def _show(folder: Path, report_path: Path) -> None:
    from rich.console import Console

    from thriftgrad.lab import report, summary, table

    Console().print(table.table(summary.read_summary(folder)))
    written = report.write_report(folder, report_path)
    sys.stdout.write(f"\nreport: {written}\n")


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors that are the user's to mend are one sentence and exit code 2."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _fail("interrupted; what is finished is kept, and the same command goes on from there")
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error))


def _fail(sentence: str) -> None:
    sys.stderr.write(f"thriftgrad: {sentence}\n")
    raise typer.Exit(2)


def main() -> None:
    """The entry point."""
    app()
