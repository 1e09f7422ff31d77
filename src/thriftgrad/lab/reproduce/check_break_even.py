"""Checks of bandwidth: below which one a method pays, and whether the model foretells what real processes take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

from thriftgrad.comm import LinkModel
from thriftgrad.lab.reproduce.check_steps import loopback_bits_per_second
from thriftgrad.lab.reproduce.claims import Chart, Check, Curve, Finding, Reasons, Table, below, together, within
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import interval, ratio
from thriftgrad.lab.reproduce.records import Row
from thriftgrad.lab.reproduce.steptime import Exchange, break_even
from thriftgrad.lab.reproduce.timed_steps import (
    BASELINES,
    BF16,
    FP32,
    LATENCY_SECONDS,
    LINE,
    SERIAL,
    Draw,
    Network,
    against,
    draws_of,
    gbit,
    overlapping,
    plain_link,
    shapes_alone,
)

WORKERS = (2, 4, 8, 16, 32, 64)
SHOWN = (2, 4, 8, 16, 64)
"""The numbers of workers that have a chart."""
BANDWIDTHS = tuple(1e8 * 2**at for at in range(13))
"""0.1 to 410 Gbit/s."""
MANY = 16


def pays(network: Network, labels: Sequence[str], judged: str, reasons: Reasons) -> Check:
    """B* of ``judged`` on 16 workers, against overlapped fp32 and bf16, is above the paper's 10 Gbit/s."""

    def check(evidence: Evidence) -> Finding:
        draws = draws_of(evidence, network)
        found = {base: [b_star(d, judged, base, MANY, as_paper=True) for d in draws] for base in BASELINES}
        needed = {
            base: ratio([1e10] * len(each), [min(max(b, 1e3), 1e15) for b in each]) for base, each in found.items()
        }
        verdict = together([below(each, 1.0) for each in needed.values()])
        listed = ", ".join(f"{gbit(median(each))} against {base}" for base, each in found.items())
        ours = f"{judged} pays below {listed}; {MANY} workers that compute as fast as the paper's."
        name = f"{network.model}, batch {network.batch} a worker"
        paper = f"{name}, everything as much faster as the paper's workers compute"
        tables = (
            break_evens(draws, labels, BASELINES, paper, as_paper=True),
            break_evens(draws, labels, BASELINES, f"{name}, this thread as it is", as_paper=False),
        )
        shown = (*BASELINES, judged, overlapping(judged))
        charts = tuple(_curves(draws, shown, workers, paper, as_paper=True) for workers in SHOWN)
        return Finding(ours, verdict, reasons.of(verdict), (judged, *BASELINES), tables, charts)

    return check


def foretold(network: Network, judged: str, loopbacks: dict[int, str], load: str, reasons: Reasons) -> Check:
    """The model, at the loopback's own bandwidth, foretells the measured ratio of steps to within a quarter."""

    def check(evidence: Evidence) -> Finding:
        draws = draws_of(evidence, network)
        verdicts, said, charts = [], [], []
        for workers, measurement in loopbacks.items():
            speed = loopback_bits_per_second(evidence, measurement).mean
            rows = [row for row in evidence.rows(measurement) if row["what"] == "step" and row["load"] == load]
            modelled = against(
                draws, overlapping(judged), FP32, workers, partial(plain_link, bits_per_second=speed)
            ).mean
            seconds = {label: _seconds(rows, label) for label in (FP32, BF16, judged)}
            measured = ratio(seconds[judged], seconds[FP32])
            verdicts.append(within(measured, modelled / 1.25, modelled * 1.25))
            said.append(f"{workers} workers at {gbit(speed)}: modelled {modelled:.2f}, measured {measured.text()}")
            name = f"{network.model}, batch {network.batch} a worker, dots: gloo processes over loopback"
            chart = _curves(draws, (FP32, BF16, overlapping(judged)), workers, name, as_paper=False)
            dots = tuple(
                Curve(f"{label}, measured", (speed / 1e9,), (1000 * interval(each).mean,), dots=True)
                for label, each in seconds.items()
            )
            charts.append(Chart(chart.caption, chart.x, chart.y, (*chart.curves, *dots), chart.log_x, chart.log_y))
        verdict = together(verdicts)
        ours = f"{judged}'s step over that of SGD in fp32, both overlapped: {'; '.join(said)}."
        return Finding(ours, verdict, reasons.of(verdict), (judged, FP32), (), tuple(charts))

    return check


def _seconds(rows: Sequence[Row], label: str) -> list[float]:
    here = sorted((row for row in rows if row["label"] == label), key=lambda row: row["draw"])
    return [row["step_seconds"] for row in here]


def shape_set(shapes: str, labels: Sequence[str], judged: str, reasons: Reasons) -> Check:
    """On 16 workers, this thread's codec for these shapes costs less than it saves SGD at 10 Gbit/s, no overlap."""

    def check(evidence: Evidence) -> Finding:
        draws = shapes_alone(evidence, shapes)
        found = [draw.exchanges[judged] for draw in draws]
        codec = [each.encoding(MANY) + each.decoding(MANY) for each in found]
        link = LinkModel(1e10, latency_seconds=LATENCY_SECONDS)
        saved = [d.exchanges[SERIAL].seconds_on(link, MANY) - d.exchanges[judged].seconds_on(link, MANY) for d in draws]
        share = ratio(codec, saved)
        verdict = below(share, 1.0)
        rows = []
        for label in labels:
            each = [draw.exchanges[label] for draw in draws]
            columns = ([e.encoding(MANY) for e in each], [e.decoding(MANY) for e in each])
            shown = (f"{1000 * interval(column).mean:.0f}" for column in columns)
            rows.append((label, f"{each[0].payload_bytes / 1e6:.3g}", *shown, f"{_exchanged(each[0], 1e10):.0f}"))
        caption = (
            f"{shapes}, random gradients: milliseconds of one step on one thread (measured), and of an exchange "
            f"between {MANY} workers at 10 Gbit/s (modelled, ring, no overlap)"
        )
        costs = Table(caption, ("method", "MB", "encode", f"decode, {MANY} workers", "exchange"), tuple(rows))
        ours = (
            f"{judged}: encoding and decoding take {1000 * interval(codec).mean:.0f} ms on one thread, {share.text()} "
            f"times the {1000 * interval(saved).mean:.0f} ms that it saves on the link."
        )
        compressed = [each for each in labels if each not in (SERIAL, BF16)]
        name = f"{shapes}, this thread as it is, nothing hidden"
        even = break_evens(draws, compressed, (SERIAL, BF16), name, as_paper=False)
        return Finding(ours, verdict, reasons.of(verdict), (judged, SERIAL), (costs, even))

    return check


def break_evens(
    draws: Sequence[Draw], labels: Sequence[str], baselines: Sequence[str], of: str, *, as_paper: bool
) -> Table:
    """B* of each method, W = 2 ... 64; ``as_paper``: of a worker that does everything as fast as the paper's."""
    rows = []
    for label in labels:
        for base in baselines:
            found = [[b_star(d, label, base, w, as_paper=as_paper) for d in draws] for w in WORKERS]
            rows.append((label, base, *(gbit(median(each)) for each in found)))
    caption = (
        f"Break-even bandwidth B*, below which the method's step is shorter than the baseline's: {of}; {LINE}, "
        f"{1e6 * LATENCY_SECONDS:.0f} us a hop"
    )
    return Table(caption, ("method", "against", *(f"{w} workers" for w in WORKERS)), tuple(rows))


def b_star(draw: Draw, label: str, base: str, workers: int, *, as_paper: bool) -> float:
    """B* in bits per second; a worker k times as fast has k times the B*, on a link of 1 / k times the latency."""
    latency = LATENCY_SECONDS * (draw.slowness if as_paper else 1.0)
    found = break_even(draw.exchanges[label], draw.exchanges[base], workers, draw.compute, latency)
    return found * (draw.narrowness if as_paper else 1.0)


def _curves(draws: Sequence[Draw], labels: Sequence[str], workers: int, of: str, *, as_paper: bool) -> Chart:
    """Milliseconds a step over bandwidth."""
    curves = []
    for label in labels:
        y = []
        for speed in BANDWIDTHS:
            link = Draw.link if as_paper else plain_link
            scale = [draw.slowness if as_paper else 1.0 for draw in draws]
            steps = [draw.step(label, workers, link(draw, speed)).seconds for draw in draws]
            y.append(1000 * interval([a / b for a, b in zip(steps, scale, strict=True)]).mean)
        curves.append(Curve(label, tuple(speed / 1e9 for speed in BANDWIDTHS), tuple(y)))
    caption = f"{of}, {workers} workers; lines: {LINE}"
    return Chart(caption, "Gbit/s", "ms a step", tuple(curves), log_x=True, log_y=True)


def _exchanged(exchange: Exchange, bits_per_second: float) -> float:
    """Milliseconds on a link, 16 workers."""
    return 1000 * exchange.seconds_on(LinkModel(bits_per_second, latency_seconds=LATENCY_SECONDS), MANY)
