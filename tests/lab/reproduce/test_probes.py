"""Quantisers on gradients that nobody trains with."""

import numpy as np
import pytest
import torch

from lab.reproduce.toy_reproduction import PROBES
from thriftgrad import tasks
from thriftgrad.compress import ALQ, NUQSGD, QSGD, TernGrad
from thriftgrad.core import Key
from thriftgrad.lab.reproduce.probes import Probe, ProbedGradients, probed, put_through, states_after
from thriftgrad.lab.reproduce.snapshots import along_sgd, sampling_variance
from thriftgrad.lab.reproduce.synthetic import CodeLengths, WorstCases, ZeroLevel
from thriftgrad.lab.reproduce.timing import Timing, gathered_seconds, reduced_seconds
from thriftgrad.wire.coders import Huffman


def test_snapshots_lie_on_the_path_of_sgd():
    task = tasks.load("logreg")
    found = along_sgd(task, 0, (0, 3), workers=2)
    model = task.build(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate, momentum=0.9)
    batches = [task.batches(0, rank, 2) for rank in range(2)]
    for step in range(4):
        each = [torch.autograd.grad(task.loss(model, next(b)), list(model.parameters()))[0] for b in batches]
        if step in found:
            for ours, theirs in zip(found[step], each, strict=True):
                torch.testing.assert_close(ours, theirs.reshape(-1))
        model.weight.grad = (each[0] + each[1]) / 2
        optimizer.step()
    assert set(found) == {0, 3}


def test_sampling_variance_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    found = [sampling_variance(list(torch.randn(4, 100, generator=generator) * 3)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(900, rel=0.02)  # 100 coordinates of variance 9


def test_a_row_says_variance_bits_and_entropy():
    x = [torch.randn(4096, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    probe = Probe("s", "QSGDinf", QSGD(bits=3, bucket=1024, norm="linf"), (1,), 3.0)
    row = probed(probe, 1, {0: x, 1: x}, Key(0))
    assert (row["sweep"], row["label"], row["x"], row["step"]) == ("s", "QSGDinf", 3.0, 1)
    exact = [put_through(probe.compressor, each, None, Key(7)).squared_error for each in x[::2]]
    size = [float(each.square().sum()) for each in x[::2]]
    assert row["relative_variance"] == pytest.approx(sum(exact) / sum(size), rel=0.1)
    assert row["in_sampling"] == pytest.approx(row["relative_variance"], rel=0.1)  # independent: |x|^2 is the variance
    assert row["bits"] == 3 + 32 / 1024
    assert row["symbol_bits"] == 3
    assert 1.5 < row["entropy_bits"] < 2.8
    assert row["zeros"] > 0.3


def test_coded_symbols_are_measured_in_bytes_on_the_wire():
    x = torch.randn(8192, generator=torch.Generator().manual_seed(0))
    quantiser = NUQSGD(bits=4, bucket=8192)
    plain = put_through(quantiser, x, None, Key(0))
    coded = put_through(quantiser >> Huffman(), x, (None, None), Key(0))
    assert coded.squared_error == plain.squared_error
    assert coded.entropy_bits is None
    assert plain.entropy_bits < coded.symbol_bits < plain.entropy_bits + 0.2


def test_levels_follow_the_schedule():
    assert [PROBES[1].fitted_before(step) for step in PROBES[1].steps] == [1, 3]
    assert [PROBES[2].fitted_before(step) for step in PROBES[2].steps] == [0, 0]
    late = Probe("s", "l", ALQ(bits=3), (5,), fitted=(0, 3, 9))
    assert late.fitted_before(5) == 3
    assert late.needs == {3, 5}


def test_workers_agree_on_levels_and_go_one_step_on():
    x = [torch.randn(512, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    states = states_after(ALQ(bits=3), x, Key(0))
    assert [(state.step, state.version) for state in states] == [(1, 2)] * 3
    assert all(torch.equal(state.levels, states[0].levels) for state in states)
    assert states_after(QSGD(bits=3), x, Key(0)) == [None] * 3
    # A shared scale is that of the gradient at hand, not of the one before.
    probe = Probe("s", "t", TernGrad(clip=None), (1,))
    row = probed(probe, 1, {0: [1e6 * each for each in x], 1: x}, Key(0))
    assert row["relative_variance"] < 5


def test_probes_are_measured_on_a_task():
    rows = list(ProbedGradients("g", "logreg", 3, PROBES, 1.0).rows())
    assert len(rows) == 8
    assert {row["seed"] for row in rows} == {3}
    assert all(row["relative_variance"] > 0 for row in rows)


def test_grids_with_and_without_zero():
    rows = list(ZeroLevel("z", n=16384, draws=2).rows())
    means = {
        (method, zero): np.mean(
            [
                row["relative_variance"]
                for row in rows
                if (row["shape"], row["bits"], row["method"], row["include_zero"]) == ("normal", 3, method, zero)
            ]
        )
        for method in ("NUQSGD", "QSGD", "QSGDinf")
        for zero in (True, False)
    }
    # The specification's table of Gaussian buckets of 16384 at 3 bits.
    expected = {"NUQSGD": (24.5, 255), "QSGD": (33.0, 333), "QSGDinf": (0.320, 0.235)}
    for method, (with_zero, without) in expected.items():
        assert means[method, True] == pytest.approx(with_zero, rel=0.1)
        assert means[method, False] == pytest.approx(without, rel=0.1)


def test_worst_cases_are_reached_by_the_adversary():
    (row,) = list(WorstCases("w", cases=((2, 16384),), draws=1).rows())
    assert (row["exact"], row["bound"]) == (pytest.approx(31.0, rel=1e-3), 31.125)
    assert row["gaussian"] < row["adversarial"] == pytest.approx(row["exact"], rel=0.05)


def test_code_lengths_of_the_paper():
    (row,) = list(CodeLengths("c", cases=((2, 100_000),), draws=1).rows())
    assert row["bits"] == pytest.approx(14176, rel=0.03)
    assert row["bits"] < row["bits_bound"] == pytest.approx(16046, abs=1)
    assert row["nonzeros"] < row["nonzeros_bound"]


def test_timing_and_the_modelled_exchange():
    compressors = (("QSGD", 64, QSGD(bits=3, bucket=64)), ("ALQ", 64, ALQ(bits=3, bucket=64)), ("T", 1000, TernGrad()))
    plain, adaptive, shared = list(Timing("t", compressors, n=1000, draws=1).rows())
    assert plain["update_seconds"] == 0 < adaptive["update_seconds"]
    assert plain["every_step_seconds"] == adaptive["every_step_seconds"] == 0
    assert 0 < shared["every_step_seconds"] == shared["update_seconds"]
    assert plain["nbytes"] == adaptive["nbytes"] == 375 + 64  # 3 bits each, 16 scales
    row = {"every_step_seconds": 0.25, "encode_seconds": 1.0, "decode_seconds": 0.5, "nbytes": 100}
    assert gathered_seconds(row, workers=3, bits_per_second=800) == 0.25 + 1 + 2 + 1.5
    assert reduced_seconds(100, workers=4, bits_per_second=4800) == 1.0
