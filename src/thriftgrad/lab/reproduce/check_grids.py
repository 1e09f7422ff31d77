"""Checks of theory and of grids on vectors of known distributions."""

from __future__ import annotations

from collections.abc import Sequence

from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, Verdict, below, together
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval, interval
from thriftgrad.lab.reproduce.records import Row

FIXED_GRIDS = ("NUQSGD", "QSGD", "QSGDinf")


def variance_bound(measurement: str, reasons: Reasons) -> Check:
    """NUQSGD's measured variance <= the exact worst case <= the paper's bound."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(measurement)
        lines, kept, reached = [], [], []
        for s, d in _settings(rows):
            here = [row for row in rows if (row["s"], row["d"]) == (s, d)]
            exact, bound = here[0]["exact"], here[0]["bound"]
            gaussian, adversarial = (interval([row[name] for row in here]) for name in ("gaussian", "adversarial"))
            # Draws scatter around the mean that the theorem bounds.
            kept.append(exact <= bound and gaussian.low <= exact and adversarial.low <= exact)
            reached.append(adversarial.mean / exact)
            lines.append((f"{s}", f"{d:,}", gaussian.text(), adversarial.text(), f"{exact:.4g}", f"{bound:.4g}"))
        verdict = Verdict.HOLDS if all(kept) else Verdict.CONTRADICTED
        ours = (
            f"measured <= exact worst case <= bound in {sum(kept)} of {len(lines)} settings; adversarial vectors reach "
            f"at least {min(reached):.1%} of the worst case."
        )
        columns = ("s", "d", "Gaussian", "adversarial", "worst case", "bound")
        return Finding(
            ours,
            verdict,
            reasons.of(verdict),
            ("NUQSGD",),
            (Table("Variance / |v|^2 of one bucket", columns, tuple(lines)),),
        )

    return check


def code_length(measurement: str, reasons: Reasons) -> Check:
    """NUQSGD's real sparse Elias code is shorter than the paper's bound, with fewer nonzeros than its bound."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(measurement)
        lines, verdicts = [], []
        for s, d in _settings(rows):
            here = [row for row in rows if (row["s"], row["d"]) == (s, d)]
            cells = []
            for name in ("nonzeros", "bits"):
                found, bound = interval([row[name] for row in here]), here[0][f"{name}_bound"]
                verdicts.append(below(found, bound))
                cells += [f"{found.mean:,.0f}", f"{bound:,.0f}"]
            lines.append((f"{s}", f"{d:,}", *cells))
        verdict = together(verdicts)
        ours = "; ".join(f"s = {line[0]}, d = {line[1]}: {line[4]} of {line[5]} bits" for line in lines) + "."
        table = Table("Gaussian vectors", ("s", "d", "nonzeros", "bound", "bits", "bound"), tuple(lines))
        return Finding(ours, verdict, reasons.of(verdict), ("NUQSGD",), (table,))

    return check


def bound_without_zero(measurement: str, bounds: dict[tuple[str, int], float], reasons: Reasons) -> Check:
    """Grids without a zero level obey the bounds, which were proved with one; ``bounds`` by method and bits."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(measurement)
        found = {
            f"{method}, {bits} bits": (_grid(rows, method, bits, False), bound)
            for (method, bits), bound in bounds.items()
        }
        verdict = together([below(measured, bound) for measured, bound in found.values()])
        listed = "; ".join(f"{name} {measured.text()} (bound {bound:g})" for name, (measured, bound) in found.items())
        ours = f"Without 0, on a Gaussian bucket: {listed}."
        judged = tuple(dict.fromkeys(f"{method} without 0" for method, _ in bounds))
        return Finding(ours, verdict, reasons.of(verdict), judged, (zero_table(rows),))

    return check


def zero_table(rows: Sequence[Row]) -> Table:
    """Every fixed grid with and without zero."""
    lines = tuple(
        (
            f"{bits} bits, {shape}",
            *(_grid(rows, method, bits, zero, shape).text() for method in FIXED_GRIDS for zero in (True, False)),
        )
        for shape, bits in dict.fromkeys((row["shape"], row["bits"]) for row in rows)
    )
    columns = tuple(f"{method}, {'with' if zero else 'no'} 0" for method in FIXED_GRIDS for zero in (True, False))
    return Table("Variance / |v|^2 of one bucket of independent coordinates", ("data", *columns), lines)


def _grid(rows: Sequence[Row], method: str, bits: int, zero: bool, shape: str = "normal") -> Interval:
    wanted = (method, bits, zero, shape)
    keys = ("method", "bits", "include_zero", "shape")
    return interval([row["relative_variance"] for row in rows if tuple(row[key] for key in keys) == wanted])


def _settings(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((row["s"], row["d"]) for row in rows))
