"""The model of a step against schedules worked out by hand, and against bounds that no schedule can leave."""

from __future__ import annotations

import random

import pytest

from thriftgrad.lab.advise.step import Compute, Flight, Way, fair, step_seconds

FORWARD, BACKWARD = 10.0, 20.0
COMPUTE = Compute(FORWARD, BACKWARD)


def seconds(*ways: Way, lanes: float = 2.0, in_turn: bool = False) -> float:
    return step_seconds(COMPUTE, ways, lanes, in_turn)


def test_nothing_to_exchange_is_forward_and_backward() -> None:
    assert seconds() == FORWARD + BACKWARD
    assert seconds(lanes=0.5) == 2 * (FORWARD + BACKWARD) == COMPUTE.seconds(0.5)
    assert COMPUTE.seconds(8) == FORWARD + BACKWARD


def test_one_bucket_that_is_ready_last_waits_for_everything_of_its_own() -> None:
    way = Way(BACKWARD, ((1.0, Flight(5.0)),), 0.5)
    for lanes in (1.0, 2.0):
        assert seconds(way, lanes=lanes) == pytest.approx(30 + 1 + 5 + 0.5)
    assert seconds(way, lanes=0.5) == pytest.approx(60 + 2 + 5 + 1)  # a link is no faster for fewer processors


def test_bound_by_computing_an_early_bucket_costs_nothing_on_a_lane_of_its_own() -> None:
    assert seconds(Way(5.0, ((1.0, Flight(5.0)),), 0.5)) == 30


def test_on_one_lane_what_is_encoded_and_decoded_delays_the_backward_pass() -> None:
    """Ready at 5, it encodes and decodes while the backward pass runs: work of 1.5 on top of 20."""
    assert seconds(Way(5.0, ((1.0, Flight(5.0)),), 0.5), lanes=1.0) == pytest.approx(30 + 1 + 0.5)


def test_bound_by_the_link_flights_follow_one_another() -> None:
    """Ready at 4 and 20; the first flies until 10 + 4 + 1 + 40, the second after it."""
    ways = Way(4.0, ((1.0, Flight(40.0)),), 2.0), Way(20.0, ((1.0, Flight(30.0)),), 2.0)
    assert seconds(*ways) == pytest.approx(10 + 4 + 1 + 40 + 30 + 2)


def test_bound_by_the_codec_a_flight_hides_behind_the_next_bucket() -> None:
    """Encoding starts at 14 and takes 9 + 9 = until 32; the first's answer has come, but it decodes afterwards."""
    ways = Way(4.0, ((9.0, Flight(1.0)),), 3.0), Way(9.0, ((9.0, Flight(1.0)),), 3.0)
    assert seconds(*ways) == pytest.approx(14 + 9 + 9 + 3 + 3)


def test_two_rounds_of_two_buckets_fill_each_others_waits() -> None:
    """Encode 1 (30-31), fly 4 (31-35); the other's flight (35-39); second rounds at 35-36 and 39-40, flights behind."""
    rounds = ((1.0, Flight(4.0)), (1.0, Flight(4.0)))
    one, two = Way(BACKWARD, rounds, 1.0), Way(BACKWARD, rounds, 1.0)
    assert seconds(one) == pytest.approx(30 + 1 + 4 + 1 + 4 + 1)
    assert seconds(one, two) == pytest.approx(30 + 1 + 4 * 4 + 1)


def test_a_second_round_is_held_until_the_next_bucket_has_begun_where_turns_are_kept() -> None:
    """A1 (10-11), then B1 (30-31), A2 (31-32), B2 (32-33); otherwise A is over long before B begins."""
    rounds = ((0.0, Flight(1.0)), (0.0, Flight(1.0)))
    one, two = Way(0.0, rounds), Way(BACKWARD, rounds)
    assert seconds(one) == seconds(one, in_turn=True) == 30
    assert seconds(one, two, in_turn=True) == pytest.approx(33)
    assert seconds(one, two) == pytest.approx(32)


def test_a_flight_that_takes_the_processor_slows_the_backward_pass() -> None:
    """A flight of 10 from 14 on that keeps half a processor busy: on one lane the backward pass has the other half."""
    way = Way(4.0, ((0.0, Flight(10.0, busy=0.5)),))
    assert seconds(way, lanes=1.0) == pytest.approx(10 + 4 + 10 + (20 - 4 - 5))
    assert seconds(way, lanes=2.0) == pytest.approx(30)


def test_ddps_own_exchange_needs_no_thread() -> None:
    assert seconds(Way(20.0, ((0.0, Flight(7.0)),))) == pytest.approx(37)
    assert seconds(Way(20.0, ((0.0, Flight(0.0)),))) == pytest.approx(30)


def test_lanes_are_shared_fairly() -> None:
    assert fair([1.0, 1.0, 1.0], 3) == [1.0, 1.0, 1.0]
    assert fair([1.0, 1.0, 0.4], 1) == pytest.approx([1 / 3, 1 / 3, 1 / 3 / 0.4])
    assert fair([1.0, 1.0, 0.2], 1) == pytest.approx([0.4, 0.4, 1.0])
    assert fair([1.0], 0.25) == [0.25]


@pytest.mark.parametrize("in_turn", [False, True], ids=["as computed", "in turn"])
@pytest.mark.parametrize("seed", range(40))
def test_no_step_is_shorter_than_its_parts_or_longer_than_their_sum(seed: int, in_turn: bool) -> None:
    draw = random.Random(seed)
    compute = Compute(draw.uniform(1, 20), draw.uniform(1, 20))
    lanes = draw.choice((0.5, 1.0, 1.5, 2.0, 8.0))
    ready = sorted(draw.uniform(0, compute.backward_seconds) for _ in range(draw.randint(0, 5)))
    ways = [
        Way(
            at,
            tuple((draw.uniform(0, 5), Flight(draw.uniform(0, 9))) for _ in range(draw.randint(1, 3))),
            draw.uniform(0, 4),
        )
        for at in ready
    ]
    codec = [sum(each for each, _ in way.rounds) + way.decode_seconds for way in ways]
    flights = [sum(flight.seconds for _, flight in way.rounds) for way in ways]
    found = step_seconds(compute, ways, lanes, in_turn)
    slow = 1 / min(1.0, lanes)
    work = compute.forward_seconds * slow + (compute.backward_seconds + sum(codec)) / lanes
    chains = [
        (compute.forward_seconds + way.ready_seconds + spent) * slow + flown
        for way, spent, flown in zip(ways, codec, flights, strict=True)
    ]
    first = (compute.forward_seconds + ready[0]) * slow + sum(flights) if ways else 0.0
    assert found >= max(work if lanes <= 2 else 0.0, compute.seconds(lanes), first, *chains, 0.0) - 1e-9
    assert found <= (compute.forward_seconds + compute.backward_seconds + sum(codec)) * slow + sum(flights) + 1e-9
