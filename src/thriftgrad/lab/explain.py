"""What an expression stands for: its parts, claims, bytes and papers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from math import isqrt
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thriftgrad import aggregate, compress, recipes, wire
from thriftgrad.aggregate import Aggregator
from thriftgrad.comm import Ledger, simulate
from thriftgrad.compress import Cast, Identity
from thriftgrad.core import Compressor, Key, LinearCompressor, TensorSpec
from thriftgrad.core.compressor import Expression
from thriftgrad.lab.comparison import ComparisonError, ring_traffic
from thriftgrad.lab.table import human_bytes
from thriftgrad.train.method import Method
from thriftgrad.vocabulary import parse


def explain(text: str, size: int, workers: int) -> Group:
    """The explanation of an expression, for a tensor of ``size`` elements and so many workers, to be printed.

    Raises ``ComparisonError`` for a size or number of workers below 1, and the errors of ``parse``.
    """
    if min(size, workers) < 1:
        raise ComparisonError(f"explain: it takes at least one element and one worker, got {size} and {workers}.")
    value = parse(text)
    shown = value.aggregator if isinstance(value, Method) else value
    blocks: list[RenderableType] = [Text(repr(value), style="bold"), Text("")]
    for part in parts(shown):
        blocks += [
            Text(type(part).__name__.removeprefix("Linear"), style="bold cyan"),
            Padding(Text(story(part)), (0, 0, 1, 2)),
        ]
    blocks.append(_numbers(value, size, workers))
    own = [value.paper] if isinstance(value, Method) and value.paper else []
    papers = own + sorted({paper for part in parts(shown) for paper in _papers(part) if paper not in "".join(own)})
    if papers:
        blocks.append(Text("\nPapers: " + "; ".join(papers)))
    return Group(*blocks)


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


def story(part: Any) -> str:
    """What the docstring says before its list of errors: one line, the formula, the wire, the claims."""
    paragraphs = re.split(r"\n\s*(?:Raises|>>>)", _doc(part))[0].replace("``", "").strip().split("\n\n")
    # Lines of a paragraph flow together; indented ones are lists and stay.
    return "\n\n".join(re.sub(r"\n(?! )", " ", paragraph) for paragraph in paragraphs)


def overview() -> Group:
    """The recipes and the words of the algebra, a line each."""
    tables = []
    for title, module in (("Recipes", recipes), ("Compressors", compress), ("Aggregators", aggregate)):
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for name in sorted(module.__all__, key=str.lower):
            thing = getattr(module, name)
            if not inspect.isabstract(thing) and not issubclass(thing if isinstance(thing, type) else Method, tuple):
                table.add_row(Text(name, style="cyan"), (inspect.getdoc(thing) or "").splitlines()[0].replace("``", ""))
        tables += [table, Text("")]
    return Group(*tables)


def _numbers(value: Any, size: int, workers: int) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    dense = ring_traffic(Identity(), [TensorSpec((size,))], workers)
    half = ring_traffic(Cast("bf16"), [TensorSpec((size,))], workers)
    if isinstance(value, Compressor):
        omega, delta = value.variance_bound(size), value.contraction(size)
        payload = value.layout(TensorSpec((size,))).nbytes
        table.add_row("unbiased", "yes" if value.unbiased else "no")
        table.add_row("variance bound omega", "none claimed" if omega is None else f"{omega:.4g}")
        table.add_row("contraction delta", "none claimed" if delta is None else f"{delta:.4g}")
        table.add_row("linear (all-reduce is legal)", "yes" if isinstance(value, LinearCompressor) else "no")
        table.add_row(f"payload of {size:,} float32", f"{human_bytes(payload)} + {wire.HEADER_BYTES} B header")
        table.add_row(
            "",
            f"{8 * payload / size:.3g} bits an element, {4 * size / payload:.3g} times less than float32"
            if payload
            else "",
        )
        return table
    aggregator = value.aggregator if isinstance(value, Method) else value
    if not isinstance(aggregator, Aggregator):
        raise ComparisonError(
            f"explain: there are no bytes to count for {value!r}; give a compressor, aggregator or method."
        )
    side = isqrt(size)
    while size % side:
        side -= 1
    shape = (side, size // side)
    ledger, spec = Ledger(), TensorSpec(shape)
    simulate([aggregator.aggregate([spec.zeros()], aggregator.init([spec]), Key(0)) for _ in range(workers)], ledger)
    if isinstance(value, Method):
        table.add_row("momentum", f"{value.momentum or ''} {value.momentum_place}".strip())
    table.add_row("tensor", f"float32, {shape[0]} x {shape[1]}; {workers} workers")
    table.add_row("collectives a step", ", ".join(f"{count} {kind}" for kind, count in ledger.requests.items()))
    table.add_row(
        "link bytes a worker and step", f"{human_bytes(ledger.up_bytes)} up, {human_bytes(ledger.down_bytes)} down"
    )
    both = ledger.up_bytes + ledger.down_bytes
    if both:
        fp32, bf16 = (dense.up + dense.down) / both, (half.up + half.down) / both
        table.add_row("against a ring all-reduce", f"{fp32:.3g} times less than fp32, {bf16:.3g} times less than bf16")
    return table


def _papers(part: Any) -> list[str]:
    """Every arXiv number that the docstring names."""
    return [f"arXiv:{number}" for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", _doc(part))]


def _doc(part: Any) -> str:
    return inspect.getdoc(type(part).__mro__[1] if type(part).__name__.startswith("Linear") else type(part)) or ""
