"""What a short message costs, as the lab measures it."""

from dataclasses import replace

import pytest

from thriftgrad.comm import Round, Traffic
from thriftgrad.lab.cluster import Simulated
from thriftgrad.lab.comparison import ComparisonError, Request, prepare, resolve
from thriftgrad.lab.latency import ROUNDS, calibrated, hop_seconds


class Slow(Simulated):
    """Collectives of three hops that take 3, 6, 9, ... ms."""

    def __init__(self):
        super().__init__(2)
        self.calls = 0

    def exchange(self, comms, observe=None):
        self.calls += 1
        traffic = {rank: Traffic(4, 4, 4, 4, 3) for rank in range(2)}
        observe(Round("AllReduce", 2, traffic, {0: 0.5}, 0.003 * self.calls))
        observe(Round("end", 2, {}, {0: 0.5}, 0.0))
        return []


def test_it_is_the_median_by_the_hops_and_computing_does_not_count():
    assert hop_seconds(Slow()) == pytest.approx(0.001 * (ROUNDS + 1) / 2)


def test_in_a_simulation_there_is_none():
    assert hop_seconds(Simulated(3)) == 0.0


def test_it_is_measured_once_kept_in_the_folder_and_modelled(tmp_path):
    asked = resolve(Request(("sgd",), "digits", 2, 1, 5, (), None, False, True, None, lab="100mbit"))
    begun = calibrated(prepare(asked, tmp_path), tmp_path, Slow())
    seconds = pytest.approx(0.001 * (ROUNDS + 1) / 2)
    assert begun.links["100mbit"].latency_seconds == begun.configuration.links[0].latency_seconds == seconds
    again = prepare(asked, tmp_path)
    assert again.links == begun.links
    assert again.configuration == begun.configuration
    assert calibrated(again, tmp_path, Simulated(2)) is again
    with pytest.raises(ComparisonError, match="lab is '100mbit' there and '1gbit' here"):
        prepare(resolve(replace(asked.request, lab="1gbit")), tmp_path)
