"""Parts of the wrong kind, and finite numbers at the edge of their type."""

import pytest
import torch

from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    ErrorFeedback,
    Key,
    LinkModel,
    ParameterServer,
    Partition,
    PowerSGD,
    RandomK,
    ScatterReduce,
    Shrink,
    Sign,
    TensorSpec,
    TopK,
    parse,
    simulate,
)
from thriftgrad.aggregate import LocalMomentum


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AllGather("x"), "AllGather needs a compressor"),
        (lambda: AllReduce(3), "AllReduce needs a compressor"),
        (lambda: ScatterReduce("x", Sign()), r"ScatterReduce \(up\) needs a compressor"),
        (lambda: ScatterReduce(Sign(), None), r"ScatterReduce \(down\) needs a compressor"),
        (lambda: ParameterServer(1, Sign()), r"ParameterServer \(up\) needs a compressor"),
        (lambda: ErrorFeedback(PowerSGD()), "ErrorFeedback needs a compressor"),
        (lambda: Shrink("a"), "Shrink needs a compressor"),
        (lambda: LocalMomentum(TopK(k=1)), "LocalMomentum needs an aggregator"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_a_dictionary_key_given_twice_is_refused():
    with pytest.raises(ValueError, match="the key 'rest' is given twice"):
        parse("Partition({'rest': PowerSGD(), 'rest': AllReduce(Identity())})")


def test_a_latency_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="a latency cannot be negative"):
        LinkModel(1e8, latency_seconds=float("nan"))


def test_wrappers_know_what_travels_uncompressed():
    specs = [TensorSpec((64, 64), name="w"), TensorSpec((64,), name="b"), TensorSpec((2, 2), name="small")]
    plain = PowerSGD(rank=1)
    assert plain.uncompressed(specs) == ("b", "small")
    assert LocalMomentum(plain).uncompressed(specs) == ("b", "small")
    assert Partition({"vector": AllGather(Sign()), "rest": plain}).uncompressed(specs) == ("small",)
    assert AllGather(Sign()).uncompressed(specs) == ()


def test_a_mean_within_float16_survives_estimates_beyond_it():
    """Two levels of a bucket's norm exceed 65504, but what the workers send averages to less."""
    x = torch.full((512,), 2.2e4, dtype=torch.float16)
    aggregator, workers = AllGather(QSGD(bits=4)), 64
    results = simulate([aggregator.aggregate([x], aggregator.init([TensorSpec.of(x)]), Key(0)) for _ in range(workers)])
    mean = results[0][0][0]
    assert 2.2e4 * 512**0.5 / 7 > 65504  # one level alone is beyond the type
    assert mean.dtype == torch.float16
    assert mean.isfinite().all()


def test_a_memory_that_would_overflow_stays_and_shows_it():
    """x + memory leaves float32's range in a coordinate that the compressor might not draw."""
    compressor = ErrorFeedback(RandomK(k=1, rescale=False))
    x = torch.full((50,), 3e38)
    spec = TensorSpec.of(x)
    state = compressor.init(spec)._replace(memory=x.clone())
    payload, after = compressor.compress(x, state, Key(0))
    assert after is state
    assert not compressor.decompress(payload).isfinite().all()
