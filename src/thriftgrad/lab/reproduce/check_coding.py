"""Checks of lossless coders on the symbols of real gradients."""

from __future__ import annotations

from importlib.util import find_spec
from statistics import fmean

from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, below, together
from thriftgrad.lab.reproduce.comparing import seedwise
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import interval, ratio
from thriftgrad.lab.reproduce.probes import AnyCompressor, Probe
from thriftgrad.wire.coders import ANS, Elias, Huffman, Zstd

PACKED = "packed"


def coders(has_zero: bool = True) -> dict[str, AnyCompressor]:
    """The coders that this installation has; Elias's sparse form is for symbols of which one is the zero."""
    found: dict[str, AnyCompressor] = {"Elias": Elias()}
    if has_zero:
        found["Elias, sparse"] = Elias(sparse=True)
    found["Huffman"] = Huffman()
    if find_spec("constriction"):
        found["ANS"] = ANS()
    if find_spec("zstandard"):
        found["zstd"] = Zstd()
    return found


def probes(quantisers: dict[str, AnyCompressor], steps: tuple[int, ...], without_zero: set[str]) -> list[Probe]:
    """Every quantiser, packed and with every coder: the sweeps "packed" and "coded: NAME"."""
    found = []
    for label, quantiser in quantisers.items():
        found.append(Probe(PACKED, label, quantiser, steps))
        for name, coder in coders(label not in without_zero).items():
            found.append(Probe(f"coded: {name}", label, quantiser >> coder, steps))
    return found


def shorter(gradients: str, label: str, names: tuple[str, ...], reasons: Reasons) -> Check:
    """Each of the coders makes fewer bits of a quantiser's symbols than packing does."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        packed = seedwise(rows, PACKED, label, value="bits")
        coded = {name: seedwise(rows, f"coded: {name}", label, value="bits") for name in names}
        verdict = together([below(ratio(bits, packed), 1.0) for bits in coded.values()])
        entropy = interval(seedwise(rows, PACKED, label, value="entropy_bits"))
        listed = ", ".join(f"{name} {interval(bits).text()}" for name, bits in coded.items())
        ours = (
            f"{label}'s symbols, packed in {fmean(packed):.3f} bits a coordinate with scales, have an "
            f"entropy of single symbols of {entropy.text()} bits and take: {listed}."
        )
        return Finding(ours, verdict, reasons.of(verdict), (label,), (coded_table(evidence, gradients),))

    return check


def near_entropy(gradients: str, name: str, label: str, excess_bits: float, reasons: Reasons) -> Check:
    """A coder of one quantiser's symbols takes at most so many bits more than their entropy, scales not counted.

    The entropy is that of single symbols: coders of groups, or of runs, can go below it where neighbours depend.
    """

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        excess = {}
        for each in (label, *(other for other in _labels(evidence, gradients) if other != label)):
            coded = seedwise(rows, f"coded: {name}", each, value="symbol_bits")
            entropy = seedwise(rows, PACKED, each, value="entropy_bits")
            excess[each] = interval([c - e for c, e in zip(coded, entropy, strict=True)])
        verdict = below(excess[label], excess_bits)
        lines = tuple((each, found.text(2)) for each, found in excess.items())
        caption = f"Bits a coordinate above the entropy of single symbols with {name}, scales not counted"
        ours = (
            f"{name} takes {excess[label].text(2)} bits a coordinate more than the entropy of {label}'s symbols one by "
            f"one; counted as close: below {excess_bits:g}."
        )
        table = Table(caption, ("method", "bits"), lines)
        return Finding(ours, verdict, reasons.of(verdict), (label,), (table, coded_table(evidence, gradients)))

    return check


def cheaper(gradients: str, name: str, a: str, b: str, reasons: Reasons) -> Check:
    """Coded by one coder, a's symbols take fewer bits than b's, scales included."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        bits = {label: seedwise(rows, f"coded: {name}", label, value="bits") for label in (a, b)}
        verdict = below(ratio(bits[a], bits[b]), 1.0)
        packed = {label: fmean(seedwise(rows, PACKED, label, value="bits")) for label in (a, b)}
        listed = "; ".join(f"{each} {interval(bits[each]).text()} (packed {packed[each]:.3f})" for each in (a, b))
        ours = f"Bits a coordinate with {name}: {listed}."
        return Finding(ours, verdict, reasons.of(verdict), (a, b), (coded_table(evidence, gradients),))

    return check


def coded_table(evidence: Evidence, gradients: str) -> Table:
    """Bits a coordinate of every quantiser with every coder."""
    rows = evidence.rows(gradients)
    columns = [name for name in coders() if any(row["sweep"] == f"coded: {name}" for row in rows)]
    lines = []
    for label in _labels(evidence, gradients):
        cells = [seedwise(rows, PACKED, label, value=value) for value in ("bits", "entropy_bits")]
        cells += [seedwise(rows, f"coded: {name}", label, value="bits") for name in columns]
        lines.append((label, *(interval(each).text() if each else "-" for each in cells)))
    caption = "Bits a coordinate really encoded, scales included; the entropy, of single symbols, without them"
    return Table(caption, ("method", "packed", "entropy of single symbols", *columns), tuple(lines))


def _labels(evidence: Evidence, gradients: str) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in evidence.rows(gradients) if row["sweep"] == PACKED))
