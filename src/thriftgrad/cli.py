"""The command line. Every command imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from thriftgrad.lab.comparison import Request
    from thriftgrad.lab.reproduce.reproduction import Reproduction

app = typer.Typer(
    name="thriftgrad",
    help="Train PyTorch models over links too slow for their gradients.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEMO = ("sgd", "sgd(precision='bf16')", "qsgd", "top_k", "ef_sign_sgd", "power_sgd")
LINKS = ("10mbit,10ms", "100mbit,1ms", "1gbit,0.1ms")

INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt."""

Methods = Annotated[
    list[str],
    typer.Argument(
        help="Recipes such as sgd, power_sgd(rank=4), diloco(h=20), or expressions such as AllGather(QSGD(bits=4)).",
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
    context: typer.Context,
    methods: Methods,
    task: Annotated[
        str,
        typer.Option(
            help="digits, digits32, digits18, logreg, softmax, text, lstm; your data: cifar10, mnist, images, tokens."
        ),
    ] = "digits",
    workers: Annotated[int, typer.Option(help="How many workers share each step.")] = 4,
    seeds: Annotated[int, typer.Option(help="Runs per method, each with its own model, data order and rounding.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Steps per run.", show_default="the task's")] = None,
    link: Links = list(LINKS),  # noqa: B006  # typer copies it
    target: Annotated[float | None, typer.Option(help="Quality to reach.", show_default="the task's")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First choose every method's learning rate on one grid, at one budget.")
    ] = False,
    on_sgd: Annotated[
        bool,
        typer.Option("--on-sgd", help="Train by plain SGD alone; measure what each method would do to its gradients."),
    ] = False,
    processes: Annotated[
        bool, typer.Option("--processes", help="Real gloo processes under torchrun, not a simulation.")
    ] = False,
    lab: Annotated[
        str | None,
        typer.Option(help="Real processes behind links of this bandwidth: 100mbit, 20mbit/100mbit. Needs root and tc."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write when rank 0 of real processes computed, encoded and waited, as a Chrome trace."),
    ] = None,
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
    from thriftgrad.lab.comparison import ComparisonError, Request

    named = context.get_parameter_source("link")
    if lab and named and named.name == "COMMANDLINE":
        raise ComparisonError(f"compare: --lab measures and models one link, {lab}, got --link too; leave one out.")
    request = Request(
        methods=tuple(dict.fromkeys(methods)),
        task=task,
        workers=workers,
        seeds=seeds,
        steps=steps,
        links=() if lab else tuple(dict.fromkeys(link)),
        target=target,
        tune=tune,
        processes=processes or lab is not None,
        data_dir=str(data_dir) if data_dir else None,
        on_sgd=on_sgd,
        lab=lab,
    )
    folder = out or request.default_folder()
    _run(context, request, folder, folder / "report.html", _writable_trace(trace, request.processes))


@app.command()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the records.")] = Path("runs/demo"),
    report: Annotated[Path, typer.Option(help="Where to write the report.")] = Path("report.html"),
) -> None:
    """Six methods on real images with four simulated workers; writes report.html in under two minutes."""
    from thriftgrad.lab.comparison import Request

    request = Request(DEMO, "digits", 4, 2, None, LINKS, None, tune=False, processes=False, data_dir=None)
    _run(context, request, out, report)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a comparison.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="FOLDER/report.html")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown, and nothing else.")
    ] = False,
) -> None:
    """Draw the table and the report of a comparison again."""
    _show(folder, out or folder / "report.html", markdown)


@app.command()
def explain(
    expression: Annotated[
        str, typer.Argument(help="A compressor, aggregator, schedule or method.", show_default=False)
    ],
    size: Annotated[
        int, typer.Option(help="Elements of the tensor, taken as a square matrix where rank matters.")
    ] = 1_000_000,
    workers: Annotated[int, typer.Option(help="Workers in the exchange.")] = 4,
) -> None:
    """Say what an expression stands for: formula, claims, schedule, bytes for a tensor of a given size, paper."""
    from thriftgrad.lab.explain import explain as explained

    _console().print(explained(expression, size, workers))


@app.command(context_settings={"allow_interspersed_args": False})
def lab(
    command: Annotated[
        list[str], typer.Argument(help="What every rank runs, after --: python train.py ...", show_default=False)
    ],
    workers: Annotated[int, typer.Option(help="How many ranks, each in a network namespace of its own.")] = 4,
    link: Annotated[
        str, typer.Option(help="Every rank's link: 100mbit, up/down such as 20mbit/100mbit, or unlimited.")
    ] = "100mbit",
) -> None:
    """Run a training command on real processes behind slow links; show what crossed them. Needs root and tc.

    Ranks find each other as under torchrun. If one fails, all are stopped, and its exit code is the lab's.
    """
    from thriftgrad.lab.command import run, table
    from thriftgrad.lab.launch import RankFailedError
    from thriftgrad.lab.shape import LabError, Shape

    shape = Shape.of(link)
    try:
        crossed = run(command, workers, shape, _relay)
    except RankFailedError as error:
        sys.stderr.write(f"thriftgrad: lab: {error}\n")
        sys.exit(error.code)
    except KeyboardInterrupt as error:
        raise LabError("lab: interrupted; all ranks were stopped, and their network is gone.") from error
    _console().print(table(crossed, shape))


def _relay(rank: int, stream: str, line: str) -> None:
    """Rank 0 speaks as if it were alone; the others are told apart, on the error stream."""
    ours = sys.stdout if rank == 0 and stream == "stdout" else sys.stderr
    ours.write(f"[{rank}] {line}\n" if rank else f"{line}\n")
    ours.flush()


@app.command()
def advise(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="gpt-small, resnet18, or a function that builds yours: my_module:build.")
    ] = "gpt-small",
    workers: Annotated[
        int | None, typer.Option(help="Workers to advise for.", show_default="torchrun's, else 4")
    ] = None,
    link: Annotated[
        str, typer.Option(help="Bandwidth and latency: 100mbit,2ms. auto measures, under torchrun.")
    ] = "auto",
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="A method to look at; may be repeated.", show_default="ten of them"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("advise.html"),
) -> None:
    """Say whether to compress, and with which method, before you train.

    Measures link, backward pass and each method's codec here, models the step, and ranks.
    """
    from rich.console import Console

    from thriftgrad.lab.advise import advise as adviser
    from thriftgrad.lab.advise import page, table

    request = adviser.Request(model, workers, link, tuple(method or ()))
    if adviser.is_first_rank():
        page.check(out)
    with Console(stderr=True, quiet=not adviser.is_first_rank()).status("") as status:
        advice = adviser.advise(request, status.update)
    if adviser.is_first_rank():
        _console().print(table.table(advice))
        sys.stdout.write(f"\npage: {page.write(advice, out, context.obj)}\n")


reproduce = typer.Typer(help="Measure a paper's claims again: a table claim / paper / ours / verdict, and a report.")
app.add_typer(reproduce, name="reproduce")

Quick = Annotated[bool, typer.Option("--quick", help="Under three minutes: few seeds, short runs, a smaller network.")]
ReproductionFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for records and report.", show_default="runs/reproduce-PAPER, or -PAPER-quick"),
]


@reproduce.command()
def nuqsgd(context: typer.Context, quick: Quick = False, out: ReproductionFolder = None) -> None:
    """NUQSGD, JMLR 2021: exponential levels, their variance, their code, their accuracy."""
    from thriftgrad.lab.reproduce.nuqsgd import reproduction

    _reproduce(context, reproduction(quick), out)


@reproduce.command()
def alq(context: typer.Context, quick: Quick = False, out: ReproductionFolder = None) -> None:
    """ALQ and AMQ, NeurIPS 2020: adaptive levels against fixed ones and full precision."""
    from thriftgrad.lab.reproduce.alq import reproduction

    _reproduce(context, reproduction(quick), out)


@reproduce.command()
def qsparse(context: typer.Context, quick: Quick = False, out: ReproductionFolder = None) -> None:
    """Qsparse-local-SGD, NeurIPS 2019: sparsified, quantised, local updates, uplink and downlink counted."""
    from thriftgrad.lab.reproduce.qsparse import reproduction

    _reproduce(context, reproduction(quick), out)


@reproduce.command()
def powersgd(context: typer.Context, quick: Quick = False, out: ReproductionFolder = None) -> None:
    """PowerSGD, NeurIPS 2019: low rank with error feedback against its rivals; quality, bytes and time."""
    from thriftgrad.lab.reproduce.powersgd import reproduction

    _reproduce(context, reproduction(quick), out)


@app.command()
def methods() -> None:
    """List the recipes and the words of the algebra."""
    from thriftgrad.lab.explain import overview

    _console().print(overview())


def _writable_trace(trace: Path | None, processes: bool) -> Path | None:
    """Where a trace is to be written; complains before hours of training if it cannot be."""
    from thriftgrad.lab.comparison import ComparisonError

    if trace is not None and not processes:
        raise ComparisonError(
            f"compare: --trace records real processes, got {trace} without; add --processes or --lab."
        )
    if trace is not None and not trace.parent.is_dir():
        raise ComparisonError(f"compare: --trace writes a file, and there is no folder {trace.parent}; make it first.")
    return trace


def _run(context: typer.Context, request: Request, folder: Path, report_path: Path, trace: Path | None = None) -> None:
    from thriftgrad.lab.comparison import prepare, resolve
    from thriftgrad.lab.progress import shown_progress

    comparison = resolve(request, context.obj)
    if request.lab:
        from thriftgrad.lab.namespaces import Network
        from thriftgrad.lab.processes import launch
        from thriftgrad.lab.shape import Shape

        # Where there can be no network nothing is written.
        with Network(request.workers, Shape.of(request.lab)) as network, shown_progress() as progress:
            prepare(comparison, folder)
            launch(folder, request.workers, progress, network, trace)
        _show(folder, report_path)
        _tell_of(trace)
        return
    comparison = prepare(comparison, folder)
    with shown_progress() as progress:
        if request.processes:
            from thriftgrad.lab.processes import launch

            launch(folder, request.workers, progress, trace=trace)
        else:
            from thriftgrad.lab.cluster import Simulated
            from thriftgrad.lab.runner import execute

            execute(comparison, folder, Simulated(request.workers), progress)
    _show(folder, report_path)
    _tell_of(trace)


def _tell_of(trace: Path | None) -> None:
    if trace is not None:
        sys.stdout.write(f"trace: {trace} ({json.loads(trace.read_text())['otherData']['summary']})\n")


def _reproduce(context: typer.Context, reproduction: Reproduction, out: Path | None) -> None:
    from thriftgrad.lab.reproduce import page
    from thriftgrad.lab.reproduce.progress import shown_progress
    from thriftgrad.lab.reproduce.reproduction import reproduce as reproduced

    folder = out or Path("runs") / f"reproduce-{reproduction.name}{'-quick' if reproduction.quick else ''}"
    with shown_progress() as show:
        result = reproduced(reproduction, folder, show, command=context.obj)
    written = page.write(result, folder)
    _console().print(page.table(result))
    sys.stdout.write(f"\nreport: {written}\n")


def _show(folder: Path, report_path: Path, markdown: bool = False) -> None:
    from thriftgrad.lab import report, summary, table

    found = summary.read_summary(folder)
    written = report.write_report(folder, report_path)
    if markdown:
        sys.stdout.write(table.markdown(found))
    else:
        _console().print(table.table(found))
        sys.stdout.write(f"\nreport: {written}\n")


def _console() -> Console:
    """The terminal, or 100 columns where the output goes elsewhere and nobody set a width."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point. What is the user's to mend, and an interruption, is one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings():
        warnings.showwarning = _warner()
        try:
            command = shlex.join(["thriftgrad", *arguments])
            code = app(arguments or ["--help"], prog_name="thriftgrad", standalone_mode=False, obj=command)
        except typer.TyperException as error:
            code = _complain(_objection(error))
        except (ValueError, OSError, ImportError) as error:
            code = _complain(error)
    if code == INTERRUPTED:
        code = _complain("interrupted; what is finished is kept, and the same command goes on from there.")
    sys.exit(code or 0)


def _objection(error: typer.TyperException) -> str:
    """What the reader of the command line objects to, with the value that it was given."""
    from pydantic import ValidationError

    given = f", got {error.__cause__.errors()[0]['input']!r}" if isinstance(error.__cause__, ValidationError) else ""
    context = getattr(error, "ctx", None)
    return (
        f"{error.format_message().rstrip('.')}{given}; see {context.command_path if context else 'thriftgrad'} --help."
    )


def _complain(sentence: object) -> int:
    sys.stderr.write(f"thriftgrad: {' '.join(str(sentence).split())}\n")
    return 2


def _warner() -> Callable[..., None]:
    """Shows each warning once, as a sentence."""
    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:
            sys.stderr.write(f"thriftgrad: warning: {message}\n")
        told.add(str(message))

    return show
