"""Times made up, and the verdicts on them; one small measurement of each kind."""

import json

import pytest
import torch

from lab.reproduce.fabricated import rows
from thriftgrad.aggregate import AllGather, AllReduce, PowerSGD
from thriftgrad.comm import all_gather, all_reduce, replicated
from thriftgrad.compress import Identity, Sign
from thriftgrad.core import TensorSpec
from thriftgrad.lab.reproduce import check_break_even, check_scaling, check_steps, loopback, powersgd_time
from thriftgrad.lab.reproduce.claims import Bars, Reasons, Verdict
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.loopback import NOOP, PLAIN, Load, LoopbackTimes
from thriftgrad.lab.reproduce.page import drawing
from thriftgrad.lab.reproduce.powersgd_steps import CodecTimes, ComputeTimes, alone, specs_of
from thriftgrad.lab.reproduce.records import ReproductionError
from thriftgrad.lab.reproduce.timed_steps import BF16, FP32, SERIAL, TOLD, Network, draws_of, gbit

REASONS = Reasons(holds="yes", contradicted="no")
THERE = Network("ResNet-18", 128)
ELEMENTS = TOLD["ResNet-18"].elements
POWER, SIGN, ATOMO = "PowerSGD r=2", "Sign+Norm", "Atomo r=2"


def timed(folder, forward=0.1, backward=0.145, codec=0.001, atomo=0.6, svd=0.5, batches=(128,), model="ResNet-18"):
    """A worker that computes as long as the paper's does, 245 ms, unless told otherwise; two draws, a hair apart."""
    compute, coded = [], []
    for draw, factor in enumerate((1.0, 1.0001)):
        for batch in batches:
            share = batch / max(batches) * factor
            known = {"model": model, "batch": batch, "draw": draw}
            compute.append(known | {"forward_seconds": forward * share, "backward_seconds": backward * share})
        for label, encode, each, collectives in (
            ("bf16", 0.0001, 0.0, []),
            ("SVD", svd, 0.0, []),
            (POWER, codec * factor, 0.0, [["AllReduce", 76920.0], ["AllReduce", 252120.0]]),
            (SIGN, codec, 0.001, [["AllGather", 1397014.0]]),
            (ATOMO, atomo, 0.001, [["AllGather", 329060.0]]),
        ):
            known = {"shapes": model, "label": label, "draw": draw, "elements": ELEMENTS}
            known |= {"encode_seconds": encode, "decode_seconds": 0.0, "decode_each_seconds": each}
            coded.append(known | {"collectives": collectives})
    rows(folder, "time-compute-resnet-18", compute)
    rows(folder, "time-codec-resnet-18", coded)
    return Evidence(folder)


def real(folder, workers=2, **milliseconds):
    """Steps of processes: by label, the milliseconds of each draw."""
    found = [
        {"what": "all-reduce", "workers": workers, "nbytes": nbytes, "draw": 0, "seconds": 0.01}
        for nbytes in (4, 2**24)
    ]
    for label, each in milliseconds.items():
        for draw, value in enumerate(each):
            row = {"what": "step", "workers": workers, "load": "GPT", "label": label, "draw": draw}
            row |= {"step_seconds": value / 1000, "encode_seconds": 0.001, "decode_seconds": 0.0005}
            found.append(row | {"payload_bytes": 10, "gradient_bytes": 100})
    rows(folder, "loop", found)
    return Evidence(folder)


def test_the_papers_own_figures():
    """SGD's exchange at 10 Gbit/s: 2 * 15 / 16 * 4 bytes of each element."""
    resnet, lstm = TOLD["ResNet-18"], TOLD["LSTM"]
    assert resnet.exchange_seconds == pytest.approx(2 * 15 / 16 * 4 * 11_173_962 * 8 / 1e10)
    assert resnet.compute_seconds == pytest.approx(0.245, abs=0.001)
    assert lstm.exchange_seconds / lstm.sgd_seconds == pytest.approx(0.579, abs=0.001)  # T3: -55 %


def test_the_link_is_scaled_to_the_papers_share(tmp_path):
    (draw, _) = draws_of(timed(tmp_path, forward=1.0, backward=1.45), THERE)
    link = draw.link(1e10)
    serial = draw.step(SERIAL, 16, link)
    latency = 30 * link.latency_seconds
    told = TOLD["ResNet-18"].exchange_seconds / TOLD["ResNet-18"].compute_seconds
    assert (serial.exposed - latency) / draw.compute.seconds == pytest.approx(told)
    assert link.latency_seconds == pytest.approx(50e-6 * draw.slowness)


def test_time_per_batch_against_each_baseline(tmp_path):
    def judged(told=TOLD["ResNet-18"], **settings):
        there = Network("ResNet-18", 128, told)
        return check_steps.time_per_batch(there, (POWER,), 2, REASONS)(timed(tmp_path, **settings))

    hidden = judged()  # 67 ms behind a backward pass of 145
    assert hidden.verdict is Verdict.IN_PART
    assert "saves 20 [" in hidden.ours
    assert "(the paper: 23 %)" in hidden.ours
    bare = {"forward": 0.235, "backward": 0.01}  # nothing to hide behind
    assert judged(**bare).verdict is Verdict.IN_PART  # bfloat16 saves as much as remains
    assert judged(TOLD["LSTM"], **bare).verdict is Verdict.HOLDS
    assert judged(codec=0.2).verdict is Verdict.CONTRADICTED
    table, paper = hidden.tables
    assert table.rows[0][0] == SERIAL
    assert paper.rows[1] == ("rank 1", "229", "27 %", "1.24")
    (bars,) = hidden.charts
    assert isinstance(bars, Bars)
    assert drawing(bars)["bars"][0] == {"name": "forward", "x": bars.bars, "y": bars.parts[0][1]}
    assert sum(heights[0] for _, heights in bars.parts) == pytest.approx(float(table.rows[0][9]), rel=1e-3)


def test_amdahl(tmp_path):
    check = check_steps.amdahl(THERE, (POWER,), REASONS)
    found = check(timed(tmp_path))
    assert found.verdict is Verdict.HOLDS
    assert "sends 136 times less" in found.ours
    assert "at most 1.28 times" in found.ours
    assert check(timed(tmp_path, codec=0.2)).verdict is Verdict.CONTRADICTED


@pytest.mark.parametrize(
    ("atomo", "svd", "verdict"),
    [(0.6, 0.5, Verdict.HOLDS), (0.6, 0.1, Verdict.IN_PART), (0.001, 0.0001, Verdict.CONTRADICTED)],
)
def test_atomo(tmp_path, atomo, svd, verdict):
    evidence = timed(tmp_path, atomo=atomo, svd=svd)
    assert check_steps.decomposing(THERE, ATOMO, REASONS)(evidence).verdict is verdict


def test_what_grows_with_the_workers(tmp_path):
    check = check_scaling.flat(THERE, (SERIAL,), (SIGN,), REASONS)
    found = check(timed(tmp_path))
    assert found.verdict is Verdict.HOLDS
    other = check_scaling.flat(THERE, (SIGN,), (SERIAL,), REASONS)
    assert other(timed(tmp_path)).verdict is Verdict.CONTRADICTED


def test_backends(tmp_path):
    check = check_scaling.backends(THERE, POWER, SIGN, 10.0, REASONS)
    found = check(timed(tmp_path))
    assert found.verdict is Verdict.HOLDS
    by_place = {row[:2]: row[2:] for row in found.tables[0].rows}
    assert by_place["full bandwidth", FP32] == ("1.0", "2.0", "4.0", "8.0", "16.0")
    assert float(by_place["a 10th of it", FP32][-1]) < 7 < float(by_place["a 10th of it", POWER][-1])
    assert check(timed(tmp_path, codec=2.0)).verdict is Verdict.CONTRADICTED


def test_whether_it_pays_at_ten_gigabits(tmp_path):
    check = check_break_even.pays(THERE, (POWER, SIGN), POWER, REASONS)
    found = check(timed(tmp_path))
    assert found.verdict is Verdict.IN_PART  # against what waits, not against what hides
    assert check(timed(tmp_path, forward=0.24, backward=0.005)).verdict is Verdict.HOLDS
    assert check(timed(tmp_path, codec=1.0)).verdict is Verdict.CONTRADICTED
    assert len(found.charts) == 5
    assert found.charts[0].curves[0].x[0] == 0.1


def test_shapes_alone(tmp_path):
    check = check_break_even.shape_set("ResNet-18", (SERIAL, BF16, POWER), POWER, REASONS)
    assert check(timed(tmp_path)).verdict is Verdict.HOLDS
    assert check(timed(tmp_path, codec=0.2)).verdict is Verdict.CONTRADICTED


def test_strong_and_weak_scaling(tmp_path):
    batches = (16, 8, 4, 2, 1)
    network = Network("ResNet-18", 16)

    def judged(speeds, **settings):
        return check_scaling.strong_and_weak(network, batches, POWER, speeds, REASONS)(
            timed(tmp_path, batches=batches, **settings)
        )

    found = judged((1e10,))
    assert found.verdict is Verdict.HOLDS
    table = {(row[0], row[2]): row for row in found.tables[0].rows}
    assert table["weak", "16"][3] == "16"
    assert table["strong", "16"][3] == "1"
    assert judged((1e13,), codec=0.1).verdict is Verdict.CONTRADICTED  # nothing to save, the codec stays
    assert judged((1e10, 1e13)).verdict is Verdict.IN_PART


def test_nothing_is_faster_than_no_exchange(tmp_path):
    check = check_steps.bounded(("loop",), REASONS)
    bound = {NOOP: (10.0, 10.1), PLAIN: (20.0, 20.1)}
    held = check(real(tmp_path, **bound, **{POWER: (15.0, 15.1)}))
    assert held.verdict is Verdict.HOLDS
    assert "cannot help" not in held.ours
    assert held.ours.endswith(f"the fastest is {POWER}.")
    close = check(real(tmp_path, **{NOOP: (10.0, 10.1), PLAIN: (10.5, 10.605)}))
    assert "saves 5 [5, 5] % of SGD's step: compression cannot help" in close.ours
    assert check(real(tmp_path, **{NOOP: (10.0, 10.1), PLAIN: (9.0, 9.1)})).verdict is Verdict.CONTRADICTED
    columns = held.tables[0].columns
    power = dict(zip(columns, held.tables[0].rows[2], strict=True))
    assert (power["exposed, ms"], power["encode, ms"], power["decode, ms"]) == ("5", "1", "0.5")


def test_steps_of_processes_against_sgd_and_the_model(tmp_path):
    check = check_steps.shorter("loop", POWER, REASONS)
    found = check(real(tmp_path, **{PLAIN: (20.0, 20.1), POWER: (15.0, 15.1)}))
    assert found.verdict is Verdict.HOLDS
    assert "over a loopback of 13 Gbit/s" in found.ours  # 16 MiB in 10 ms between two
    assert check(real(tmp_path, **{PLAIN: (20.0, 20.1), POWER: (25.0, 25.2)})).verdict is Verdict.CONTRADICTED
    timed(tmp_path)
    foretold = check_break_even.foretold(THERE, POWER, {2: "loop"}, "GPT", REASONS)
    alike = {PLAIN: (20.0, 20.1), BF16: (20.0, 20.1), POWER: (20.0, 20.1)}
    assert foretold(real(tmp_path, **alike)).verdict is Verdict.HOLDS
    assert foretold(real(tmp_path, **alike | {POWER: (40.0, 40.1)})).verdict is Verdict.CONTRADICTED


def test_shapes_have_the_parameters_of_their_networks():
    assert sum(spec.numel for spec in specs_of("ResNet-18")) == ELEMENTS
    assert sum(spec.numel for spec in specs_of("LSTM")) == TOLD["LSTM"].elements == 28_949_319
    assert len(specs_of("ResNet-50")) == 161
    assert sum(spec.numel for spec in specs_of("ResNet-50")) == 25_557_032


def test_a_worker_alone_meets_copies_of_itself():
    def worker():
        total = yield from all_reduce(torch.tensor([2.0]))
        parts = yield from all_gather(torch.ones(3, dtype=torch.uint8))
        count = yield from replicated(lambda: len(parts))
        return float(total), count

    result, found = alone(worker(), 5)
    assert result == (10.0, 5)
    assert found.collectives == (("AllReduce", 4), ("AllGather", 3))
    assert found.encode_seconds > 0
    assert found.decode_seconds > 0


def test_small_measurements(monkeypatch):
    shapes = (TensorSpec((8, 12)), TensorSpec((8,)))
    monkeypatch.setattr("thriftgrad.lab.reproduce.powersgd_steps.resnet50", lambda: shapes)
    methods = (("a", PowerSGD(rank=1, alternating=True)), ("s", AllGather(Sign())), ("i", AllReduce(Identity())))
    cast, svd, power, sign, plain = CodecTimes("c", "ResNet-50", methods, draws=1, svd=True).rows()
    assert [row["label"] for row in (cast, svd, power, sign, plain)] == ["bf16", "SVD", "a", "s", "i"]
    assert power["elements"] == 104
    assert power["collectives"] == [["AllReduce", 4 * (8 + (8 + 12) / 2)]]  # the vector, and either side by turns
    assert power["decode_each_seconds"] == plain["decode_each_seconds"] == 0
    assert plain["collectives"] == [["AllReduce", 416]]
    assert all(row["encode_seconds"] > 0 for row in (cast, svd, power, sign, plain))
    timings = list(ComputeTimes("t", (("GPT", (2, 1)),), draws=2, repeats=1).rows())
    assert [(row["batch"], row["draw"]) for row in timings] == [(2, 0), (1, 0), (2, 1), (1, 1)]
    assert all(row["forward_seconds"] > 0 and row["backward_seconds"] > 0 for row in timings)


def test_steps_of_two_processes(tmp_path):
    methods = ((POWER, "PowerSGD(rank=1)"),)
    work = LoopbackTimes("loop", 2, (Load(16, 8, 1),), methods, draws=1, steps=2)
    work.perform(tmp_path)
    assert work.done(tmp_path)
    found = Evidence(tmp_path).rows("loop")
    steps = {row["label"]: row for row in found if row["what"] == "step"}
    assert list(steps) == [NOOP, PLAIN, POWER]
    assert steps[NOOP]["payload_bytes"] == 0 < steps[POWER]["payload_bytes"] < steps[PLAIN]["payload_bytes"]
    assert steps[POWER]["encode_seconds"] > 0
    assert {row["nbytes"] for row in found if row["what"] == "all-reduce"} == {4, 2**20, 2**24}


def test_processes_that_fail_are_a_sentence(tmp_path, monkeypatch):
    told = {}

    def fails(module, arguments, workers, log, hear):
        told.update(json.loads(*arguments))
        return "RuntimeError: no"

    monkeypatch.setattr(loopback, "torchrun", fails)
    with pytest.raises(
        ReproductionError, match=r"^reproduce: the processes failed \(RuntimeError: no\); all they said"
    ):
        LoopbackTimes("loop", 2, (Load(16, 8, 1),), (), draws=1, steps=2).perform(tmp_path)
    assert told == {"loads": [[16, 8, 1]], "methods": [], "draws": 1, "steps": 2}


@pytest.mark.parametrize("quick", [True, False])
def test_every_claim_looks_at_what_is_measured(quick):
    names = {each.name for each in powersgd_time.measurements(quick)}
    assert len(names) == len(powersgd_time.measurements(quick))
    asked = set()

    class AskedError(Exception):
        pass

    class Watch(Evidence):
        def rows(self, measurement):
            asked.add(measurement)
            raise AskedError

    for claim in powersgd_time.claims(quick):
        with pytest.raises(AskedError):
            claim.measure(Watch(None))
    assert asked <= names


def test_bandwidths_in_words():
    assert [gbit(each) for each in (0.0, float("inf"), 2.5e9)] == ["none", "any", "2.5 Gbit/s"]
