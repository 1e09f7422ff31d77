"""Comparison directories made up for tests: small ones to compute by hand, and one that looks like a real one."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SLOW, FAST = "100mbit,1ms", "10gbit,0.1ms"


def method(label: str, slug: str | None = None, **changes: Any) -> Record:
    return {
        "label": label,
        "slug": slug or label,
        "expression": f"Method({label})",
        "paper": None,
        "momentum": "0.9, after aggregation",
        "learning_rate": 0.1,
        "tuning": None,
    } | changes


def configuration(methods: Sequence[Record], **changes: Any) -> Record:
    return {
        "schema": 1,
        "thriftgrad": "0.1.0",
        "task": {
            "name": "digits",
            "description": "1,797 images of 8 by 8 pixels, a small CNN",
            "quality": "test accuracy",
            "higher_is_better": True,
            "target": 0.95,
            "provenance": {"source": "scikit-learn load_digits", "sha256": "0f" * 32},
        },
        "parameters": 38282,
        "mode": "simulated",
        "workers": 4,
        "seeds": [0, 1, 2],
        "steps": 40,
        "batch_size": 32,
        "evaluate_every": 10,
        "links": [
            {"label": SLOW, "up_bits_per_second": 1e8, "down_bits_per_second": 1e8, "latency_seconds": 1e-3},
            {"label": FAST, "up_bits_per_second": 1e10, "down_bits_per_second": 1e10, "latency_seconds": 1e-4},
        ],
        "baseline_bytes": {"fp32": {"up": 800, "down": 800}, "bf16": {"up": 400, "down": 400}},
        "methods": list(methods),
        "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6", "platform": "Linux", "cpu": "x86_64"},
        "threads": 1,
        "started": "2026-01-02T03:04:05+00:00",
        "command": "thriftgrad compare sgd --task digits",
    } | changes


def start(slug: str, seed: int) -> Record:
    return {"kind": "start", "method": slug, "seed": seed, "time": "2026-01-02T03:04:05+00:00"}


def evaluation(step: int, quality: float | None, *, bytes_a_step: float = 100.0, **changes: Any) -> Record:
    """Costs grow in proportion to the step: per step 10 ms compute, 2 ms encode, 1 ms decode, 50 and 5 ms of link."""
    return {
        "kind": "eval",
        "step": step,
        "samples": step * 128,
        "loss": None if step == 0 else 1.0 / step,
        "quality": quality,
        "payload_up_bytes": step * bytes_a_step * 0.5,
        "payload_down_bytes": step * bytes_a_step * 0.25,
        "up_bytes": step * bytes_a_step,
        "down_bytes": step * bytes_a_step * 3,
        "compute_seconds": step * 0.010,
        "encode_seconds": step * 0.002,
        "decode_seconds": step * 0.001,
        "link_seconds": {SLOW: step * 0.050, FAST: step * 0.005},
        "relative_error": None if step == 0 else 0.5,
        "variance": None,
    } | changes


def end(steps: int, *, diverged: bool = False) -> Record:
    return {"kind": "end", "steps": steps, "wall_seconds": 1.0, "diverged": diverged}


def finished(slug: str, seed: int, qualities: Sequence[float | None], **changes: Any) -> list[Record]:
    """A whole run with an evaluation every 10 steps."""
    evaluations = [evaluation(10 * at, quality, **changes) for at, quality in enumerate(qualities)]
    return [start(slug, seed), *evaluations, end(10 * (len(qualities) - 1))]


def lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(directory: Path, settings: Record, runs: Mapping[tuple[str, int], str | Sequence[Record]]) -> Path:
    """Write a comparison directory; a run given as text is written as it is."""
    (directory / "runs").mkdir(parents=True, exist_ok=True)
    (directory / "comparison.json").write_text(json.dumps(settings))
    for (slug, seed), run in runs.items():
        text = run if isinstance(run, str) else lines(run)
        (directory / "runs" / f"{slug}-seed{seed}.jsonl").write_text(text)
    return directory


# label, link bytes as a share of fp32 ring, final accuracy, steps to get there, codec ms, relative error, paper
_ZOO = [
    ("sgd", 1.0, 0.972, 50, 0.0, 0.0, None),
    ("sgd(precision='bf16')", 0.5, 0.971, 50, 0.04, 0.0017, None),
    ("qsgd(bits=4, bucket=512)", 0.3, 0.969, 56, 0.9, 0.21, "Alistarh et al., QSGD, 2017, arXiv:1610.02132"),
    ("qsgd_inf(bits=4)", 0.3, 0.970, 52, 0.8, 0.11, "Alistarh et al., QSGD, 2017, arXiv:1610.02132"),
    ("qsgd(bits=2)", 0.16, 0.955, 95, 0.8, 0.93, "Alistarh et al., QSGD, 2017, arXiv:1610.02132"),
    ("top_k(fraction=0.01)", 0.04, 0.963, 110, 1.6, 0.71, "Stich et al., Sparsified SGD, 2018, arXiv:1809.07599"),
    ("random_k(fraction=0.01)", 0.02, 0.90, 160, 0.3, 0.98, "Stich et al., Sparsified SGD, 2018, arXiv:1809.07599"),
    ("sign_sgd", 0.13, 0.946, 90, 0.5, 0.81, "Bernstein et al., signSGD, 2018, arXiv:1802.04434"),
    ("signum(momentum=0.9)", 0.13, 0.958, 85, 0.5, 0.8, "Bernstein et al., signSGD, 2018, arXiv:1802.04434"),
    ("ef_sign_sgd", 0.13, 0.966, 70, 0.7, 0.55, "Karimireddy et al., 2019, arXiv:1901.09847"),
    ("power_sgd(rank=2)", 0.06, 0.968, 62, 1.9, 0.42, "Vogels et al., PowerSGD, 2019, arXiv:1905.13727"),
    ("AllGather(QSGD(bits=1)) <mine>", 0.09, 0.93, 70, 0.8, 2.1, None),
]


def _measured(step: int, error: float, share: float, noise: random.Random) -> Record:
    """Half the methods are biased; those with errors of 0.1 and 0.2 or above 2 are quantisers without bias."""
    if step == 0:
        return {"variance": None}
    variance = error**2 * 0.03 * (1 + noise.random() * 0.1) * math.exp(-step / 150)
    unbiased = error in (0.21, 0.11, 0.93, 2.1)
    floor = math.sqrt(variance / 4) if unbiased else 0.0
    return {
        "variance": variance if unbiased else 0.0,
        "coordinate_variance": (variance if unbiased else 0.0) * 1e-6 * math.exp(-step / 60),
        "bias": floor * (1 + noise.gauss(0, 0.02)) if unbiased else error,
        "bias_floor": floor,
        "cosine": 1 / math.sqrt(1 + error**2),
        "bits_per_coordinate": 32 * share,
        "symbol_width_bits": 4.0 if unbiased else None,
        "symbol_entropy_bits": 1.5 + noise.random() * 0.2 if unbiased else None,
    }


def _adapted(step: int) -> Record:
    inner = 0.02 + 0.03 * (step // 40) / 5
    return {"tensor": "layer.weight", "version": 1 + step // 40, "values": [-1, -0.2, -inner, 0, inner, 0.2, 1]}


def realistic(directory: Path, *, steps: int = 200) -> Path:
    """Twelve methods, three seeds, three links; one seed diverges, one run was killed, some miss the target."""
    fp32 = {"up": 229692.0, "down": 229692.0}
    links = {"20mbit,5ms": (2e7, 5e-3), SLOW: (1e8, 1e-3), FAST: (1e10, 1e-4)}
    grid = [0.01, 0.03, 0.1, 0.3]
    methods, runs = [], {}
    for at, (label, share, final, pace, codec, error, paper) in enumerate(_ZOO):
        slug = f"method-{at}"
        winner = at % len(grid)
        tuning = {
            "grid": grid,
            "loss": [0.2 + 0.02 * abs(i - winner) for i in range(3)] + [None if at == 6 else 0.2 + 0.02 * (3 - winner)],
            "steps": 60,
            "seed": 1000,
            "edge": winner in (0, len(grid) - 1),
        }
        methods.append(method(label, slug, paper=paper, learning_rate=grid[winner], tuning=tuning))
        for seed in range(3):
            noise = random.Random(f"{label}{seed}")
            records = [start(slug, seed)]
            diverges_at = 90 if (at, seed) == (11, 2) else None
            for step in range(0, steps + 1, 10):
                sent = fp32["up"] * share * step
                broken = diverges_at is not None and step >= diverges_at
                quality = 0.1 + (final - 0.1) * (1 - math.exp(-3.2 * step / pace)) + noise.gauss(0, 0.004) * (step > 0)
                if label == "sign_sgd":
                    quality = min(quality, 0.944 + noise.gauss(0, 0.001))
                records.append(
                    evaluation(
                        step,
                        None if broken else round(min(quality, 0.99), 4),
                        samples=step * 128,
                        payload_up_bytes=sent * 0.66,
                        payload_down_bytes=sent * 0.66,
                        up_bytes=sent,
                        down_bytes=sent,
                        compute_seconds=step * 0.011,
                        encode_seconds=step * codec * 0.7e-3,
                        decode_seconds=step * codec * 0.4e-3,
                        link_seconds={
                            name: step * (6 * latency + 8 * fp32["up"] * share / bandwidth)
                            for name, (bandwidth, latency) in links.items()
                        },
                        relative_error=None
                        if step == 0
                        else error * (1 + 0.15 * math.tanh(step / 80) + noise.gauss(0, 0.02)),
                        **_measured(step, error, share, noise),
                        levels=_adapted(step) if label.startswith("AllGather") else None,
                    )
                )
                if broken or ((at, seed) == (6, 1) and step == 120):
                    break
            if diverges_at is not None:
                records.append(end(diverges_at, diverged=True))
            elif (at, seed) != (6, 1):
                records.append(end(steps))
            runs[slug, seed] = records
    settings = configuration(
        methods,
        steps=steps,
        links=[
            {"label": name, "up_bits_per_second": b, "down_bits_per_second": b, "latency_seconds": latency}
            for name, (b, latency) in links.items()
        ],
        baseline_bytes={"fp32": fp32, "bf16": {"up": fp32["up"] / 2, "down": fp32["down"] / 2}},
        command="thriftgrad compare "
        + " ".join(f"'{row[0]}'" for row in _ZOO)
        + " --task digits --workers 4 --seeds 3",
    )
    return write(directory, settings, runs)
