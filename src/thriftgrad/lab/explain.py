"""What an expression stands for: its parts, claims, bytes and papers."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thriftgrad import vocabulary, wire
from thriftgrad.aggregate import Aggregator
from thriftgrad.core import Compressor, Key, LinearCompressor
from thriftgrad.core.compressor import Expression
from thriftgrad.lab import explain_local
from thriftgrad.lab.comparison import ComparisonError, read, ring_traffic
from thriftgrad.lab.explain_local import Facts
from thriftgrad.lab.table import human_bytes, significant
from thriftgrad.local import AsyncServer, Inner, LocalMethod, Outer, Schedule
from thriftgrad.train.method import Method
from thriftgrad.wire.coders import Coder

MOST_ELEMENTS = 100_000_000
"""Bytes are counted in a real exchange, so the tensors must fit into memory."""

ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}")


def explain(text: str, size: int, workers: int) -> Group:
    """The explanation of an expression, for a tensor of ``size`` elements and so many workers, to be printed.

    Raises ``ComparisonError`` for what is no expression of a compressor, aggregator, schedule or method, and for a
    size or a number of workers out of range.
    """
    if not (1 <= size <= MOST_ELEMENTS and workers >= 1):
        raise ComparisonError(
            f"explain: it takes 1 to {MOST_ELEMENTS:,} elements and at least one worker, got {size:,} and {workers}."
        )
    value = read(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        facts, more = _told(value, text, size, workers)
    facts += {str(warning.message): ("note", str(warning.message)) for warning in caught}.values()
    value = replace(value, paper="") if isinstance(value, Method | LocalMethod) else value
    shown = value.aggregator if isinstance(value, Method) else value

    stories = [(type(part).__name__.removeprefix("Linear"), story(part)) for part in parts(shown)]
    first = re.match(r"\w*", text.strip())[0]  # type: ignore[index]  # it matches everything
    word = vocabulary.names().get(first)
    if word is not None and not isinstance(word, type):  # a function, of which the value shows no trace
        stories.insert(0, (first, prose(word)))
    blocks: list[RenderableType] = [Text(repr(value), style="bold"), Text("")]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for fact in facts:
        table.add_row(*fact)
    blocks += [table, *more, Text("")] if facts else []
    for name, told in stories:
        blocks += [Text(name, style="bold cyan"), Padding(Text(told), (0, 0, 1, 2))]
    papers = sorted({paper for _, told in stories for paper in ARXIV.findall(told)})
    if papers:
        blocks.append(Text("Papers: " + ", ".join(papers)))
    return Group(*blocks)


def _told(value: Any, text: str, size: int, workers: int) -> tuple[Facts, list[RenderableType]]:
    """The numbers of a value, and what stands below them."""
    match value:
        case LocalMethod():
            facts = [*_paper(value), *explain_local.of_method(value, size, workers)]
            return facts, [Text(""), explain_local.of_bytes(value, size, workers)]
        case Schedule():
            return explain_local.of_schedule(value, workers), []
        case AsyncServer() | Inner() | Outer():
            return [], []
        case Method():
            return [
                *_paper(value),
                ("momentum", value.momentum_described),
                *_traffic(value.aggregator, size, workers),
            ], []
        case Aggregator():
            return _traffic(value, size, workers), []
        case Compressor():
            return _claims(value, size), []
    raise ComparisonError(
        f"explain: {text!r} is no compressor, aggregator, schedule or method; try qsgd, TopK(k=10) or Every(8)."
    )


def _paper(method: Method | LocalMethod) -> Facts:
    return [("paper", method.paper)] if method.paper else []


def overview() -> Group:
    """Every word an expression may use, a line each."""
    groups: dict[str, list[tuple[str, Any]]] = {
        title: [] for title in (*RECIPES.values(), "Compressors", *KINDS.values(), AND)
    }
    for name, word in sorted(vocabulary.names().items(), key=lambda pair: pair[0].lower()):
        groups[_kind(word)].append((name, word))
    tables: list[RenderableType] = []
    for title, words in groups.items():
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, word in words:
            table.add_row(Text(name, style="cyan"), prose(word).splitlines()[0])
        tables += [table, Text("")]
    return Group(*tables)


def parts(value: Any) -> Iterator[Any]:
    """The expression and every expression inside it, each kind once."""
    seen: set[type] = set()

    def walk(node: Any) -> Iterator[Any]:
        if isinstance(node, tuple):
            for each in node:
                yield from walk(each)
        elif isinstance(node, Expression):
            if type(node) not in seen:
                seen.add(type(node))
                yield node
            for field in fields(node):  # type: ignore[arg-type]  # every expression is a dataclass
                yield from walk(getattr(node, field.name))

    yield from walk(value)


def story(part: Expression) -> str:
    """What the part's class says of itself; a linear variant has the words of the class it is a variant of."""
    linear = type(part).__name__.startswith("Linear")
    return prose(type(part).__mro__[1] if linear else type(part))


def prose(thing: Any) -> str:
    """A docstring as text to read: its lines flow, and what it raises and its examples are left out.

    >>> prose(story)
    "What the part's class says of itself; a linear variant has the words of the class it is a variant of."
    """
    text = (inspect.getdoc(thing) or "").partition(">>>")[0].replace("``", "")
    text = re.sub(r"Raises\s.*?\.(?:\s+(?=[A-Z])|\s*$)", "", text, flags=re.DOTALL).strip()
    # Indented lines are lists and stay.
    return "\n\n".join(re.sub(r"\s*\n(?! )", " ", block).strip("\n") for block in re.split(r"\n\s*\n", text))


KINDS = {  # a coder is a compressor too
    Coder: "Coders",
    Compressor: "Compressors",
    Aggregator: "Aggregators",
    AsyncServer: "Aggregators",
    Schedule: "Schedules",
    Inner: "Inner and outer optimisers",
    Outer: "Inner and outer optimisers",
}

RECIPES = {Method: "Recipes: gradients at every step", LocalMethod: "Recipes: local updates"}
AND = "And"


def _kind(word: Any) -> str:
    """Its heading: that of its class, or of what the function returns."""
    made = word if isinstance(word, type) else get_type_hints(word)["return"]
    titles = KINDS if isinstance(word, type) else KINDS | RECIPES
    return next((title for kind, title in titles.items() if issubclass(made, kind)), AND)


def _claims(compressor: Compressor[Any, Any], size: int) -> list[tuple[str, str]]:
    """What theory says of the compressor at this size, and its payload."""
    omega, delta = compressor.variance_bound(size), compressor.contraction(size)
    spec = explain_local.spec_of(size)
    try:
        nbytes = compressor.layout(spec).nbytes
    except TypeError as error:  # a coder alone
        raise ComparisonError(f"explain: {error}") from error
    if compressor.layout(spec).variable:
        nbytes = compressor.compress(explain_local.gaussian(spec), compressor.init(spec), Key(0))[0].nbytes
    of = "Gaussian numbers" if compressor.layout(spec).variable else "float32"
    return [
        ("unbiased", "yes" if compressor.unbiased else "no"),
        ("variance bound omega", "none claimed" if omega is None else f"{omega:.4g}"),
        ("contraction delta", "none claimed" if delta is None else f"{delta:.4g}"),
        ("linear (all-reduce is legal)", "yes" if isinstance(compressor, LinearCompressor) else "no"),
        (f"payload of {size:,} {of}", f"{human_bytes(nbytes)} + {wire.HEADER_BYTES} B header"),
        (
            "bits an element",
            f"{significant(8 * nbytes / size)}, {significant(4 * size / nbytes)} times less than float32",
        ),
    ]


def _traffic(aggregator: Aggregator[Any], size: int, workers: int) -> list[tuple[str, str]]:
    """What one exchange of a matrix of this size moves, counted in a simulation."""
    spec = explain_local.spec_of(size)
    first, ledger = explain_local.exchanged(aggregator, spec, workers)
    begun, going = ((_listed(book.requests), f"{human_bytes(book.up_bytes)} up") for book in (first, ledger))
    facts = [
        ("tensor", f"float32, Gaussian, {spec.shape[0]:,} x {spec.shape[1]:,}; {workers} workers"),
        *([("the first step", ", ".join(begun))] if begun != going else []),
        ("collectives a step", _listed(ledger.requests)),
        ("link bytes a worker and step", f"{human_bytes(ledger.up_bytes)} up, {human_bytes(ledger.down_bytes)} down"),
    ]
    if ledger.up_bytes:
        fp32, bf16 = (
            ring_traffic(size, dtype, workers).both / (ledger.up_bytes + ledger.down_bytes)
            for dtype in (torch.float32, torch.bfloat16)
        )
        facts.append(
            (
                "against a ring all-reduce",
                f"{significant(fp32)} times less than fp32, {significant(bf16)} times less than bf16",
            )
        )
    return facts


def _listed(requests: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in requests.items())
