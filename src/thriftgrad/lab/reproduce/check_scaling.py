"""Checks of how step times change with workers, bandwidth and batch; every exchange here is modelled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from thriftgrad.lab.reproduce.claims import Chart, Check, Curve, Finding, Reasons, Table, below, together, within
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import interval, ratio
from thriftgrad.lab.reproduce.timed_steps import (
    BF16,
    FP32,
    LATENCY_SECONDS,
    LINE,
    SERIAL,
    Draw,
    Network,
    against,
    draws_by_batch,
    draws_of,
    gbit,
    plain_link,
    times,
)

FEW, MANY = 2, 16


def flat(network: Network, reduced: Sequence[str], gathered: Sequence[str], reasons: Reasons) -> Check:
    """From 2 to 16 workers exchange and decoding of the one take at most 2.5 times longer, of the other at least 5."""

    def check(evidence: Evidence) -> Finding:
        draws = draws_of(evidence, network)

        def seconds(label: str, workers: int) -> list[float]:
            found = [(draw.exchanges[label], draw.link(1e10)) for draw in draws]
            return [each.seconds_on(link, workers) + each.decoding(workers) for each, link in found]

        growth = {label: ratio(seconds(label, MANY), seconds(label, FEW)) for label in (*reduced, *gathered)}
        verdicts = [below(growth[label], 2.5) for label in reduced]
        verdicts += [below(ratio(seconds(label, FEW), seconds(label, MANY)), 1 / 5) for label in gathered]
        verdict = together(verdicts)
        listed = ", ".join(f"{label} {each.mean:.2f}" for label, each in growth.items())
        rows = [
            (label, *(f"{1000 * interval(seconds(label, w)).mean / draws[0].slowness:.3g}" for w in (2, 4, 8, 16)))
            for label in growth
        ]
        caption = (
            f"{network.model}: exchange (modelled, 10 Gbit/s, {1e6 * LATENCY_SECONDS:.0f} us a hop, ring) and decoding "
            "(measured on one thread, and as much faster as the paper's worker is), milliseconds"
        )
        table = Table(caption, ("method", *(f"{w} workers" for w in (2, 4, 8, 16))), tuple(rows))
        ours = f"From {FEW} to {MANY} workers exchange and decoding grow by these factors: {listed}."
        return Finding(ours, verdict, reasons.of(verdict), tuple(growth), (table,))

    return check


def backends(network: Network, power: str, gathered: str, slow: float, reasons: Reasons) -> Check:
    """On 16 workers SGD is within a tenth of PowerSGD; at 1 / ``slow`` of the bandwidth slower by more, in bf16 too."""

    def check(evidence: Evidence) -> Finding:
        draws, labels = draws_of(evidence, network), (SERIAL, FP32, BF16, power, gathered)
        speeds = {"full bandwidth": 1e10, f"a {slow:.0f}th of it": 1e10 / slow}
        fast = against(draws, power, FP32, MANY, partial(Draw.link, bits_per_second=1e10))
        starved = {
            base: against(draws, power, base, MANY, partial(Draw.link, bits_per_second=1e10 / slow))
            for base in (FP32, BF16)
        }
        verdict = together([within(fast, 0.9, 1.1), *(below(each, 0.9) for each in starved.values())])
        charts, rows = [], []
        for name, speed in speeds.items():
            found = {label: _speed_up(draws, label, speed) for label in labels}
            title = f"{network.model}, batch {network.batch} a worker, 10 Gbit/s, {name}; {LINE}"
            curves = tuple(Curve(label, (1.0, 2.0, 4.0, 8.0, 16.0), each) for label, each in found.items())
            charts.append(Chart(title, "workers", "samples a second, of one worker's", curves))
            rows += [(name, label, *(f"{each:.1f}" for each in speed_up)) for label, speed_up in found.items()]
        ours = (
            f"On {MANY} workers {power} takes {fast.text()} times the step of overlapped SGD where the backend has the "
            f"whole 10 Gbit/s; where it reaches a {slow:.0f}th, {starved[FP32].text()} times, and "
            f"{starved[BF16].text()} times that of {BF16}."
        )
        caption = f"{network.model}: samples a second, of one worker's; weak scaling; {LINE}"
        table = Table(caption, ("backend", "method", *(f"{w} workers" for w in (1, 2, 4, 8, 16))), tuple(rows))
        return Finding(ours, verdict, reasons.of(verdict), (power, FP32, BF16), (table,), tuple(charts))

    return check


def _speed_up(draws: Sequence[Draw], label: str, bits_per_second: float) -> tuple[float, ...]:
    found = []
    for workers in (1, 2, 4, 8, 16):
        seconds = times(draws, label, workers, partial(Draw.link, bits_per_second=bits_per_second))
        found.append(workers * ratio([d.compute.seconds for d in draws], seconds).mean)
    return tuple(found)


def strong_and_weak(
    network: Network, batches: Sequence[int], power: str, speeds: Sequence[float], why: Reasons
) -> Check:
    """On 16 workers PowerSGD saves a greater share of the step where the global batch is fixed than the worker's."""

    def check(evidence: Evidence) -> Finding:
        found = draws_by_batch(evidence, network, batches)
        largest = max(batches)
        verdicts, said, rows, charts = [], [], [], []
        for speed in speeds:
            link = partial(plain_link, bits_per_second=speed)
            gains: dict[str, list[list[float]]] = {"weak": [], "strong": []}
            worker_counts = [largest // batch for batch in sorted(batches, reverse=True)]
            for scaling, each in gains.items():
                for workers in worker_counts:
                    draws = found[largest if scaling == "weak" else largest // workers]
                    sgd, bf16, fast = (times(draws, label, workers, link) for label in (FP32, BF16, power))
                    each.append([1 - a / min(b, c) for a, b, c in zip(fast, sgd, bf16, strict=True)])
                    shown = (f"{1000 * interval(column).mean:.3g}" for column in (sgd, bf16, fast))
                    gain = f"{100 * interval(each[-1]).mean:.0f} %"
                    batch = largest if scaling == "weak" else largest // workers
                    rows.append((scaling, gbit(speed), f"{workers}", f"{batch}", *shown, gain))
            weak, strong = (gains[scaling][-1] for scaling in ("weak", "strong"))
            verdicts.append(below(interval([a - b for a, b in zip(weak, strong, strict=True)]), 0.0))
            means = [f"{100 * interval(each).mean:.0f} %" for each in (weak, strong)]
            said.append(f"at {gbit(speed)} {means[0]} under weak scaling, {means[1]} under strong")
            counts = tuple(float(workers) for workers in worker_counts)
            curves = tuple(Curve(name, counts, tuple(interval(g).mean for g in each)) for name, each in gains.items())
            title = f"{network.model}, {gbit(speed)}: share of the best SGD's step that {power} saves; {LINE}"
            charts.append(Chart(title, "workers", "share saved", curves))
        verdict = together(verdicts)
        ours = f"On {MANY} workers {power} saves, of the best overlapped SGD's step, {'; '.join(said)}."
        caption = f"{network.model}, milliseconds a step; {LINE}; SGD overlapped, {power} not"
        columns = ("scaling", "link", "workers", "batch each", FP32, BF16, power, "saved")
        table = Table(caption, columns, tuple(rows))
        return Finding(ours, verdict, why.of(verdict), (power, FP32, BF16), (table,), tuple(charts))

    return check
