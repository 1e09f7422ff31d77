"""Checks that need no training: bits of a sync from the layouts of real networks' tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from thriftgrad.compress import Identity, QTopK, SignTopK, TopK
from thriftgrad.core import Compressor, TensorSpec
from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, together, within
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval


def resnet50() -> Iterator[TensorSpec]:
    """The 161 trained tensors of ResNet-50, 25,557,032 parameters; He et al., 2015, arXiv:1512.03385."""

    def conv(out: int, into: int, size: int) -> Iterator[TensorSpec]:
        yield TensorSpec((out, into, size, size))
        yield from (TensorSpec((out,)), TensorSpec((out,)))  # batch norm's scale and shift

    yield from conv(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from conv(width, into, 1)
            yield from conv(width, width, 3)
            yield from conv(4 * width, width, 1)
            if block == 0:
                yield from conv(4 * width, into, 1)
            into = 4 * width
    yield from (TensorSpec((1000, 2048)), TensorSpec((1000,)))


def honest(workers: int, gap: int, reasons: Reasons) -> Check:
    """SignTopK's saving of bits on ResNet-50, up alone and both ways, with the numbers of the specification.

    Values and indices without the 20 bytes of a message's head, which are nothing beside them.
    """

    def check(evidence: Evidence) -> Finding:
        specs = list(resnet50())
        operators: dict[str, Compressor[Any, Any]] = {
            "dense": Identity(),
            "TopK": TopK(k=1000),
            "QTopK, s = 15": QTopK(k=1000),
            "SignTopK": SignTopK(k=1000),
        }
        bits = {name: 8 * sum(each.layout(spec).nbytes for spec in specs) for name, each in operators.items()}
        dense, up = bits["dense"], bits["SignTopK"]
        downs = {"none counted": 0, "dense": dense, f"forwarded, {workers} messages": workers * up}
        lines = [
            (name, f"{sent:,}", *(f"{h * dense / sent:,.0f}" for h in (1, gap // 2, gap)))
            for name, sent in bits.items()
        ]
        ways = [
            (name, f"{up + down:,}", f"{gap * (2 * dense if down else dense) / (up + down):,.4g}")
            for name, down in downs.items()
        ]
        found = [gap * dense / up, 2 * gap * dense / (up + dense), 2 * gap * dense / ((1 + workers) * up)]
        published = (4408.0, 16.0, 980.0)
        verdict = together(
            [within(Interval(a, a, a, 1), 0.99 * b, 1.01 * b) for a, b in zip(found, published, strict=True)]
        )
        ours = (
            f"SignTopK with k = min(d, 1000) at H = {gap}: {found[0]:,.0f} times fewer bits up; both ways counted "
            f"{found[1]:.1f} times with a dense downlink, {found[2]:,.0f} times with the {workers} messages forwarded."
        )
        tables = (
            Table(
                f"ResNet-50, {sum(spec.numel for spec in specs):,} parameters, {len(specs)} tensors, from the layouts",
                ("operator", "bits up a sync", "times fewer, H = 1", f"H = {gap // 2}", f"H = {gap}"),
                tuple(lines),
            ),
            Table(
                f"SignTopK at H = {gap}, {workers} workers, against dense fp32 at every step, both ways where counted",
                ("downlink", "bits a sync", "times fewer"),
                tuple(ways),
            ),
        )
        return Finding(ours, verdict, reasons.of(verdict), tuple(operators), tables)

    return check
