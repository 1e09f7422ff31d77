"""What a worker waited, and how much of it for the last one: by hand."""

import pytest

from thriftgrad import LinkModel
from thriftgrad.comm import Round, Traffic
from thriftgrad.comm.rounds import Moments
from thriftgrad.lab.books import Books, Meter
from thriftgrad.lab.cluster import Simulated


class Pair(Simulated):
    """This worker and one that comes to every collective 0.2 s later."""

    def __init__(self):
        super().__init__(2)

    def latest(self, moments):
        return [moment + 0.2 for moment in moments]

    def mean(self, numbers):
        return [number + 0.1 for number in numbers]


def exchanged(issued, landed):
    """A collective of this worker, and the end of the exchange."""
    traffic = {rank: Traffic(1000, 1000, 1000, 1000, 2) for rank in range(2)}
    moments = Moments(0, issued - 0.05, issued, issued, landed)
    yield Round("AllReduce", 2, traffic, {0: 0.05}, landed - issued, moments)
    yield Round("end", 2, {}, {0: 0.01}, moments=Moments(0, landed, landed + 0.01, landed + 0.01, landed + 0.01))


def test_the_mean_worker_waits_half_of_what_one_is_late_by():
    meter = Meter({"1mbit": LinkModel(1e6, latency_seconds=0.001)})
    books = Books(Pair(), 1000, meter)
    for issued in (10.0, 20.0):
        for finished in exchanged(issued, issued + 0.3):
            meter(finished)
    assert meter.waited_seconds == pytest.approx(0.6)
    assert meter.link_seconds["1mbit"] == pytest.approx(2 * (2 * 0.001 + 8 * 1000 / 1e6))
    assert (meter.encode_seconds, meter.decode_seconds) == pytest.approx((0.1, 0.02))
    assert books.skew() == pytest.approx(0.2)
    assert books.skew() == pytest.approx(0.2)  # nothing has come since
    for finished in exchanged(30.0, 30.3):
        meter(finished)
    assert books.skew() == pytest.approx(0.3)
