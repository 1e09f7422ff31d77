"""What a modelled step takes, and the break-even bandwidth against a search."""

import itertools
from math import inf

import pytest

from thriftgrad.comm import LinkModel
from thriftgrad.lab.reproduce.steptime import MIB, Compute, Exchange, break_even, step, uncompressed

COMPUTE = Compute(0.010, 0.020)


def test_a_ring_all_reduce_and_a_gather_by_their_closed_forms():
    link, n, size = LinkModel(1e9, latency_seconds=1e-4), 5, 1e6
    reduced = Exchange("a", 0.0, 0.0, 0.0, (("AllReduce", size),), overlapped=False)
    gathered = Exchange("b", 0.0, 0.0, 0.0, (("AllGather", size), ("AllGather", 4.0)), overlapped=False)
    assert reduced.seconds_on(link, n) == pytest.approx(2 * 4 * (1e-4 + 8 * size / n / 1e9))
    assert gathered.seconds_on(link, n) == pytest.approx(4 * (2e-4 + 8 * (size + 4) / 1e9))
    assert reduced.seconds_on(link, 1) == gathered.seconds_on(link, 1) == 0.0


def test_a_step_is_the_sum_of_its_parts_and_overlap_hides_at_most_the_backward_pass():
    codec = (0.003, 0.001, 0.0005)
    link = LinkModel(1e9)
    for size, exposed in ((4e6, 0.012), (1e6, 0.0)):  # 32 and 8 ms between two workers
        found = step(COMPUTE, Exchange("m", *codec, (("AllReduce", size),), overlapped=True), 2, link)
        assert found.exposed == pytest.approx(exposed)
        assert found.exposed + found.hidden == pytest.approx(8 * size / 1e9)
        assert found.seconds == pytest.approx(0.030 + 0.003 + 0.002 + exposed)
        plain = step(COMPUTE, Exchange("m", *codec, (("AllReduce", size),), overlapped=False), 2, link)
        assert (plain.hidden, plain.exposed) == (0.0, pytest.approx(8 * size / 1e9))


def test_one_worker_alone_exchanges_nothing():
    found = step(COMPUTE, Exchange("m", 1.0, 1.0, 1.0, (("AllGather", 1e6),), overlapped=False), 1, LinkModel(1e9))
    assert found.seconds == COMPUTE.seconds


def test_ddps_buckets():
    found = uncompressed(20 * MIB, 4, overlapped=True)
    assert [size / MIB for _, size in found.collectives] == [1, 25, 25, 25, 4]
    assert [size / MIB for _, size in uncompressed(20 * MIB, 2, overlapped=True).collectives] == [
        0.5,
        12.5,
        12.5,
        12.5,
        2,
    ]
    assert uncompressed(20 * MIB, 4, overlapped=False).collectives == (("AllReduce", 80 * MIB),)
    assert uncompressed(100, 4, overlapped=True).collectives == (("AllReduce", 400),)


def test_break_even_without_overlap_and_latency_is_bits_saved_over_codec_seconds():
    sgd = uncompressed(1_000_000, 4, overlapped=False)
    method = Exchange("m", 0.004, 0.002, 0.0, (("AllReduce", 40_000.0),), overlapped=False)
    for workers in (2, 16, 64):
        ring = 2 * (workers - 1) / workers
        expected = 8 * ring * (4e6 - 4e4) / 0.006
        assert break_even(method, sgd, workers, COMPUTE, 0.0) == pytest.approx(expected, rel=1e-4)


def searched(method, baseline, workers, latency):
    """The highest bandwidth of a grid, forty to the decade, below which the method always wins."""
    found = 0.0
    for at in range(-160, 240):
        link = LinkModel(1e9 * 10 ** (at / 40), latency_seconds=latency)
        if step(COMPUTE, method, workers, link).seconds >= step(COMPUTE, baseline, workers, link).seconds:
            return found
        found = link.up_bits_per_second
    return inf


CODECS = ((0.004, 0.001, 0.0), (0.030, 0.010, 0.002), (0.0001, 0.0, 0.0))
METHODS = [
    Exchange("m", *codec, collectives, overlapped)
    for codec in CODECS
    for collectives in ((("AllReduce", 3e4), ("AllReduce", 6e4)), (("AllGather", 4e4),))
    for overlapped in (False, True)
]


@pytest.mark.parametrize("latency", [0.0, 1e-3])
@pytest.mark.parametrize("method", METHODS)
def test_break_even_is_what_a_search_finds(method, latency):
    for workers, overlapped, nbytes in itertools.product((2, 16), (False, True), (2, 4)):
        baseline = uncompressed(1_000_000, nbytes, overlapped, (0.0005, 0.0002) if nbytes == 2 else (0.0, 0.0))
        found = break_even(method, baseline, workers, COMPUTE, latency)
        expected = searched(method, baseline, workers, latency)
        assert found == pytest.approx(expected, rel=0.06)


def test_a_method_of_more_bytes_never_pays_and_a_free_one_always_does():
    sgd = uncompressed(1000, 4, overlapped=False)
    more = Exchange("m", 0.0, 0.0, 0.0, (("AllGather", 4000.0),), overlapped=False)
    assert break_even(more, sgd, 16, COMPUTE, 0.0) == 0.0
    free = Exchange("m", 0.0, 0.0, 0.0, (("AllReduce", 40.0),), overlapped=False)
    assert break_even(free, sgd, 16, COMPUTE, 0.0) == inf
