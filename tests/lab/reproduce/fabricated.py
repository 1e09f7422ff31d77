"""Evidence made up for tests: rows of measurements and studies with the qualities one likes."""

import json

from lab.fabricate import configuration, evaluation, method, start, write
from thriftgrad.lab.reproduce.reproduction import as_json


def rows(folder, name, found):
    """A finished measurement."""
    path = folder / "measurements" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "start"}, *({"kind": "row"} | row for row in found), {"kind": "end"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def probed(sweep, label, seed, variance, x=0.0, step=10, **others):
    """A row of a probe."""
    return {
        "sweep": sweep,
        "label": label,
        "x": x,
        "step": step,
        "seed": seed,
        "relative_variance": variance,
        "in_sampling": variance,
        "bits": 4.0,
        "symbol_bits": 4.0,
        "entropy_bits": 2.0,
        "zeros": 0.5,
    } | others


def study(folder, name, qualities, diverged=(), **changes):
    """A finished study: by label, the final quality of each seed; the untrained model has 0.1."""
    labels = list(qualities)
    seeds = list(range(len(qualities[labels[0]])))
    runs = {}
    for label, finals in qualities.items():
        for seed, final in enumerate(finals):
            gone = (label, seed) in diverged
            middle = [] if gone else [evaluation(step, final) for step in (10, 20, 30)]
            last = [] if not gone else [evaluation(10, None)]
            end = {"kind": "end", "steps": 30, "wall_seconds": 1.0, "diverged": gone}
            runs[label, seed] = [start(label, seed), evaluation(0, 0.1), *middle, *last, end]
    settings = configuration([method(label) for label in labels], seeds=seeds, **changes)
    write(folder / "studies" / name, settings, runs)


def check_whole(result, claims):
    """Every claim, at least so many, is one of its own with whole sentences and something judged."""
    for answer in result.answers:
        assert answer.finding.ours.endswith(".")
        assert answer.finding.why.endswith(".")
        assert answer.claim.paper.endswith(".")
        assert answer.finding.judged
    statements = [answer.claim.statement for answer in result.answers]
    assert len(set(statements)) == len(statements) >= claims
    assert len(as_json(result)["claims"]) == len(statements)
