"""The tuning appendix: for every study and method the grid, what each rate gave, and the winner."""

from __future__ import annotations

from collections.abc import Sequence

from thriftgrad.lab.reproduce.claims import Check, Finding, Table, Verdict
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.studies import Study


def alike(studies: Sequence[Study]) -> Check:
    """Every method of a study had the study's grid and budget; in part where winners stand at a grid's edge."""

    def check(evidence: Evidence) -> Finding:
        lines, edges, grids = [], 0, set()
        for study in studies:
            configuration = evidence.study(study.name).configuration
            for row in configuration.methods:
                tuning = row.tuning
                if tuning is None:
                    continue
                edges += tuning.edge
                grids.add((study.name, tuning.grid, tuning.steps, tuning.seed))
                losses = (
                    f"{rate:g}: {'diverged' if loss is None else f'{loss:.4g}'}"
                    for rate, loss in zip(tuning.grid, tuning.loss, strict=True)
                )
                winner = f"{row.learning_rate:g}{' (edge)' if tuning.edge else ''}"
                lines.append((study.name, row.label, "; ".join(losses), winner))
        verdict = Verdict.IN_PART if edges else Verdict.HOLDS
        if len(grids) > len(studies):
            verdict = Verdict.CONTRADICTED
        ours = (
            f"{len(lines)} methods in {len(studies)} studies, each on its study's grid and budget, by training loss "
            f"under a seed of its own; {edges} winners stand at an edge of the grid."
        )
        why = "A better rate may lie beyond the edge for those." if edges else "All winners have tried neighbours."
        table = Table(
            "Learning rates tried, the mean training loss over the last half of the tuning run, and the winner",
            ("study", "method", "rate: loss", "winner"),
            tuple(lines),
        )
        return Finding(ours, verdict, why, tuple(dict.fromkeys(line[1] for line in lines)), (table,))

    return check
