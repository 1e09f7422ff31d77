"""What is measured at an evaluation, against closed forms, numpy and frequencies counted by hand."""

import math
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import pytest
import torch

from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    ErrorFeedback,
    Identity,
    Key,
    Ledger,
    ParameterServer,
    Shrink,
    Sign,
    TensorSpec,
    TopK,
    parse,
    simulate,
)
from thriftgrad.aggregate import TensorState
from thriftgrad.lab.cluster import Simulated
from thriftgrad.lab.distortion import (
    DRAWS,
    Distortion,
    Symbols,
    distortion,
    entropy_bits,
    levels_of,
    mean_gradient,
    measure,
    symbols,
    watched,
)
from thriftgrad.lab.load import Levels

X = torch.randn(1200, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.2, 2, 1200)


def once(aggregator, workers, key=None, observe=None):
    """One exchange of these workers' tensors: cluster, gradients, states and the estimate."""
    specs = [TensorSpec.of(x, f"w{i}") for i, x in enumerate(workers[0])]
    states = [aggregator.init(specs) for _ in workers]
    key = key or Key(0)
    comms = [aggregator.aggregate(x, state, key) for x, state in zip(workers, states, strict=True)]
    return Simulated(len(workers)), workers, states, simulate(comms, observe)[0][0]


def looked(aggregator, workers, key=None, draws=DRAWS):
    key = key or Key(0)
    cluster, gradients, states, estimate = once(aggregator, workers, key)
    mean = mean_gradient(cluster, gradients)
    return measure(cluster, aggregator, gradients, states, key, mean, estimate, draws)


def over_keys(compressor, count, draws=2):
    """The distortion of one worker's X under many keys."""
    return [looked(AllGather(compressor), [[X]], Key(seed), draws).distortion for seed in range(count)]


def within_5_sigma(values, expected):
    return abs(fmean(values) - expected) < 5 * stdev(values) / math.sqrt(len(values))


def test_figures_are_numpys():
    rng = np.random.default_rng(0)
    mean, estimates = rng.normal(size=50), rng.normal(size=(5, 50))
    found = distortion(torch.from_numpy(mean), map(torch.from_numpy, estimates))
    length, bias = np.linalg.norm(mean), np.linalg.norm(estimates.mean(0) - mean)
    total = estimates.var(axis=0, ddof=1).sum()
    assert found.coordinate_variance == pytest.approx(total / 50)
    assert found.variance == pytest.approx(total / length**2)
    assert found.bias == pytest.approx(bias / length)
    assert found.bias_floor == pytest.approx(math.sqrt(total / 5) / length)
    assert found.relative_error == pytest.approx(np.linalg.norm(estimates[0] - mean) / length)
    assert found.cosine == pytest.approx(estimates[0] @ mean / length / np.linalg.norm(estimates[0]))


def test_two_estimates_are_enough_and_not_inflated():
    """Half the squared distance, which has expectation sigma^2; a deviation from a mean of ten has 1.1 sigma^2."""
    one, two = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    assert distortion(torch.ones(2).double(), [one, two]).coordinate_variance == (1 + 4) / 2 / 2


@pytest.mark.parametrize(("count", "given"), [(0, "none"), (1, "1")])
def test_too_few_estimates(count, given):
    with pytest.raises(
        ValueError, match=f"distortion: a variance takes at least two estimates, got {given}; draw more"
    ):
        distortion(torch.ones(2), [torch.ones(2)] * count)


def test_the_mean_itself_has_no_distortion():
    found = looked(AllReduce(Identity()), [[X], [2 * X]]).distortion
    assert (found.variance, found.coordinate_variance, found.bias_floor) == (0, 0, 0)
    assert found.relative_error == found.bias < 1e-7
    assert found.cosine == pytest.approx(1)


def test_a_mean_of_zero_has_a_variance_and_nothing_relative():
    found = distortion(torch.zeros(2).double(), [torch.ones(2).double(), -torch.ones(2).double()])
    assert found == Distortion(coordinate_variance=2.0)


def test_an_estimate_of_zero_has_no_angle():
    found = distortion(torch.ones(4).double(), [torch.zeros(4).double()] * 2)
    assert (found.cosine, found.bias, found.relative_error) == (None, 1, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_measured(bad):
    broken = torch.tensor([bad, 1.0]).double()
    assert distortion(torch.ones(2).double(), [torch.ones(2).double(), broken]) == Distortion()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_qsgds_variance_of_a_coordinate_is_the_closed_form(norm):
    compressor, s = QSGD(bits=3, bucket=400, norm=norm), 3
    found = over_keys(compressor, 60)
    rows = X.double().numpy().reshape(3, 400)
    c = np.linalg.norm(rows, axis=1) if norm == "l2" else np.abs(rows).max(1)
    r = np.abs(rows) / c[:, None]
    low, high = np.floor(r * s) / s, np.ceil(r * s) / s
    expected = (c[:, None] ** 2 * (high - r) * (r - low)).sum()
    assert within_5_sigma([each.coordinate_variance for each in found], expected / 1200)
    assert within_5_sigma([each.variance for each in found], expected / (rows**2).sum())
    # Two draws each leave the same noise in the plain bias of an unbiased method, and none in the difference.
    assert within_5_sigma([each.bias**2 for each in found], expected / 2 / (rows**2).sum())
    assert within_5_sigma([each.bias**2 - each.bias_floor**2 for each in found], 0)


def test_a_shrunk_quantiser_has_the_bias_it_is_built_to_have():
    """E C(x) = x / (1 + omega), so the bias is omega / (1 + omega) of x, beneath twice as much noise."""
    compressor = Shrink(QSGD(bits=3, bucket=400))
    omega = compressor.compressor.variance_bound(1200)
    found = over_keys(compressor, 60)
    assert within_5_sigma([each.bias**2 - each.bias_floor**2 for each in found], (omega / (1 + omega)) ** 2)


def test_top_k_has_a_bias_a_cosine_and_no_variance():
    found = looked(AllGather(TopK(k=120)), [[X]]).distortion
    squares = np.sort(X.double().numpy() ** 2)[::-1]
    kept = squares[:120].sum() / squares.sum()
    assert (found.variance, found.bias_floor) == (0, 0)
    assert found.bias == found.relative_error == pytest.approx(math.sqrt(1 - kept))
    assert found.cosine == pytest.approx(math.sqrt(kept))


def test_the_variance_of_a_mean_of_equal_workers_is_one_over_their_number():
    single, many = (
        [looked(AllGather(QSGD(bits=3)), [[X]] * n, Key(seed)).distortion.variance for seed in range(12)]
        for n in (1, 4)
    )
    assert fmean(many) == pytest.approx(fmean(single) / 4, rel=0.1)


def test_more_draws_are_other_draws():
    found = [looked(AllGather(QSGD(bits=2)), [[X]], draws=draws).distortion for draws in (2, 3, 4)]
    assert len({each.variance for each in found}) == 3
    assert len({each.relative_error for each in found}) == 1  # that of the applied estimate


def test_measuring_leaves_states_and_books_alone():
    aggregator, ledger = AllGather(ErrorFeedback(TopK(k=50))), Ledger()
    cluster, gradients, states, estimate = once(aggregator, [[X], [-2 * X]], observe=ledger)
    booked = ledger.up_bytes
    memories = [state[0].inner.memory.clone() for state in states]
    measure(cluster, aggregator, gradients, states, Key(0), mean_gradient(cluster, gradients), estimate)
    assert all(torch.equal(a, state[0].inner.memory) for a, state in zip(memories, states, strict=True))
    assert ledger.up_bytes == booked


def test_entropy_of_counted_frequencies():
    carrier = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2, dtype=torch.uint8)
    assert entropy_bits(carrier) == pytest.approx(1 / 2 * 1 + 1 / 4 * 2 + 2 / 8 * 3)
    assert entropy_bits(torch.zeros(9, dtype=torch.uint8)) == 0
    assert entropy_bits(torch.arange(256)) == pytest.approx(8)


def payload(compressor, x):
    return compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(0))[0]


def test_every_payload_has_frequencies_of_its_own_and_weighs_by_its_symbols():
    ones, mixed = payload(Sign(), torch.ones(30)), payload(Sign(), torch.tensor([1.0, -1.0] * 5))
    found = symbols([ones, mixed])
    assert found.symbol_entropy_bits == pytest.approx((30 * 0 + 10 * 1) / 40)
    assert found.symbol_width_bits == 8 * (4 + 2) / 40  # 30 bits in 4 bytes, 10 in 2


def test_three_symbols_are_packed_five_to_a_byte():
    assert symbols([payload(QSGD(levels=1), X)]).symbol_width_bits == 1.6


def test_carriers_that_are_no_symbols_have_no_entropy():
    assert symbols([payload(TopK(k=3), X)]) == symbols([]) == Symbols()


def entropy_of(numbers):
    p = np.bincount(numbers) / len(numbers)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize(
    "text",
    [
        "AllGather(QSGD(bits=3))",
        "AllGather(Shrink(QSGD(bits=3)))",
        "AllGather(QSGD(bits=3) >> Zstd())",
        "AllGather(QSGD(bits=3) >> Elias())",
        "ParameterServer(QSGD(bits=3), QSGD(bits=8))",
        "Partition({'rest': AllGather(QSGD(bits=3))})",
        "LocalMomentum(AllGather(QSGD(bits=3)), beta=0.0)",
    ],
)
def test_symbols_are_those_that_worker_0_sends_up(text):
    key = Key(5)
    found = looked(parse(text), [[X], [X.flip(0)]], key).symbols
    sent, _ = QSGD(bits=3).compress(X, None, key.fold("again", 1).fold("w0").private(0))
    assert found.symbol_entropy_bits == pytest.approx(entropy_of(sent.carrier.numpy()))
    assert found.symbol_width_bits == 3


def test_symbols_of_what_was_kept_and_of_shards():
    kept = looked(parse("AllGather(TopK(k=100) >> QSGD(bits=4))"), [[X], [X]]).symbols
    assert kept.symbol_width_bits == 4
    assert 0 < kept.symbol_entropy_bits < 4
    shards = looked(parse("ScatterReduce(QSGD(bits=3), QSGD(bits=8))"), [[X], [X]]).symbols
    assert shards.symbol_width_bits == 3


@pytest.mark.parametrize("text", ["AllReduce(Cast('bf16'))", "PowerSGD(rank=1)", "AllGather(ErrorFeedback(TopK(k=9)))"])
def test_methods_without_symbols(text):
    assert looked(parse(text), [[X.view(30, 40)], [X.view(30, 40)]]).symbols == Symbols()


def test_a_watched_aggregator_is_the_same_one():
    aggregator = ParameterServer(ErrorFeedback(TopK(k=100) >> Shrink(QSGD(bits=3))), Sign())
    seen = []
    twin = watched(aggregator, seen)
    assert twin == aggregator
    assert repr(twin) == repr(aggregator)
    plain, noted = (once(each, [[X], [2 * X]])[3][0] for each in (aggregator, twin))
    assert torch.equal(plain, noted)
    assert [each.layout.carrier.alphabet for each in seen] == [None, 7] * 2  # two stages of two workers; no way down
    seen.clear()
    once(aggregator, [[X]])
    assert seen == []  # the original still keeps to itself


class Fitted(NamedTuple):
    levels: torch.Tensor
    version: int


def state(name, numel, inner):
    return TensorState(TensorSpec((numel,), name=name), inner)


def test_levels_are_those_of_the_largest_tensor_wherever_its_state_holds_them():
    small, large = Fitted(torch.tensor([0.0, 1.0]), 7), Fitted(torch.tensor([-1.0, 0.25, 1.0], dtype=torch.float64), 3)
    states = [state("bias", 10, small), state("plain", 999, None), state("weight", 90, (None, ((), large)))]
    assert levels_of(states) == Levels("weight", 3, (-1.0, 0.25, 1.0))
    assert levels_of(states[:2]) == Levels("bias", 7, (0.0, 1.0))
    assert levels_of(states[1:2]) is None


@pytest.mark.parametrize(
    "text",
    [
        "AllGather({})",
        "AllGather({} >> Huffman())",
        "AllGather(TopK(k=600) >> {})",
        "ScatterReduce({0}, {0})",
        "LocalMomentum(AllGather({}))",
    ],
)
def test_adapted_levels_are_found_before_and_after_they_are_agreed_on(text):
    aggregator = parse(text.format("ALQ(bits=3, update_at=(0,))"))
    specs = [TensorSpec.of(X, "w")]
    states = [aggregator.init(specs) for _ in range(2)]
    after = simulate([aggregator.aggregate([X], each, Key(0)) for each in states])[0][1]
    if "Scatter" not in text:  # whose states are made at the first step
        assert levels_of(states[0]).version == 1
    found = levels_of(after)
    assert (found.tensor, found.version, len(found.values)) == ("w", 2, 7)
    assert found.values == tuple(sorted(found.values))
    assert (found.values[0], found.values[3], found.values[-1]) == (-1, 0, 1)
