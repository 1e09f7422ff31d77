"""Schedules: their steps, their gaps against counting, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from thriftgrad import AllGather, Identity, TensorSpec
from thriftgrad.local import (
    AsyncServer,
    At,
    Every,
    LocalMethod,
    PerWorker,
    PostLocal,
    RandomGaps,
    Schedule,
    Streaming,
)
from thriftgrad.local.schedule import _drawn, split

SCHEDULES = (
    Every(1),
    Every(4),
    Every(8, offset=1),
    Every(5, offset=4),
    At((2, 4, 9)),
    At((7,)),
    PostLocal(switch=3, h=4),
    PostLocal(switch=1, h=1),
    RandomGaps(3),
    RandomGaps(6, seed=9),
    PerWorker((Every(3), Every(7, offset=2), RandomGaps(4))),
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Every(1), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (Every(4), [4, 8, 12]),
        (Every(5, offset=1), [1, 6, 11]),  # as the authors' code of Qsparse-local-SGD: step % period of its first step
        (At((2, 4, 9)), [2, 4, 9]),
        (PostLocal(switch=3, h=4), [1, 2, 3, 7, 11]),
        (PostLocal(switch=12, h=99), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (Streaming(h=4, fragments=1), [4, 8, 12]),
        (Streaming(h=6, fragments=3), [2, 4, 6, 8, 10, 12]),
        (Streaming(h=6, fragments=2, delay=2), [1, 4, 7, 10]),
    ],
)
def test_steps(schedule: Schedule, expected: list[int]) -> None:
    assert [step for step in range(1, 13) if schedule.due(step)] == expected


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_what_starts_is_the_whole_model_when_it_is_due(schedule: Schedule) -> None:
    for rank in range(3):
        due = [step for step in range(1, 21) if schedule.due(step, rank)]
        assert due
        assert [step for step in range(1, 21) if schedule.starting(step, rank) == (0,)] == due
        assert all(schedule.starting(step, rank) == () for step in range(1, 21) if step not in due)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_gap_is_the_longest_wait_that_occurs(schedule: Schedule) -> None:
    waits = []
    for rank in range(3):
        steps = [0, *(step for step in range(1, 400) if schedule.due(step, rank))]
        waits.append(max(b - a for a, b in pairwise(steps)))
    assert max(waits) == schedule.gap()


@pytest.mark.parametrize(
    "schedule",
    [
        Streaming(h=12, fragments=3),
        Streaming(12, 3, delay=3, mixing=0.5),
        Streaming(10, 5, delay=1),
        Streaming(3, 1, 2),
    ],
    ids=repr,
)
def test_streaming_starts_and_lands_each_part_every_h_steps(schedule: Streaming) -> None:
    turn = schedule.h // schedule.fragments
    starts: dict[int, list[int]] = {part: [] for part in range(schedule.fragments)}
    for step in range(1, 10 * schedule.h + 1):
        for part in schedule.starting(step):
            starts[part].append(step)
    for part, found in starts.items():
        landing = [step + schedule.delay for step in found]
        assert landing[0] == (part + 1) * turn
        assert {b - a for a, b in pairwise(landing)} == {schedule.h}
        assert max(b - a for a, b in pairwise([0, *found])) == schedule.gap() == schedule.h
    assert len({step for found in starts.values() for step in found}) == sum(map(len, starts.values()))  # one at a time
    assert schedule.parts == schedule.fragments
    assert (schedule.delay_steps, schedule.kept) == (schedule.delay, schedule.mixing)


def test_schedules_of_the_whole_model_have_one_part_without_delay() -> None:
    for schedule in SCHEDULES:
        assert (schedule.parts, schedule.delay_steps, schedule.kept) == (1, 0, 0.0)
        assert schedule.common == (not isinstance(schedule, RandomGaps | PerWorker))


def gaps_of(schedule: RandomGaps, rank: int, count: int) -> np.ndarray[Any, Any]:
    steps, step = [0], 0
    while len(steps) <= count:
        step += 1
        if schedule.due(step, rank):
            steps.append(step)
    return np.diff(steps)


def test_random_gaps_are_uniform_on_one_to_h() -> None:
    gaps = np.concatenate([gaps_of(RandomGaps(6, seed=4), rank, 500) for rank in range(4)])
    counts = np.bincount(gaps, minlength=7)
    assert counts[0] == 0
    assert len(counts) == 7
    assert chisquare(counts[1:]).pvalue > 1e-3
    assert chisquare(counts[1:], [2000 / 21 * g for g in range(1, 7)]).pvalue < 1e-9  # this test can tell


def test_random_gaps_of_two_workers_have_nothing_to_do_with_each_other() -> None:
    schedule = RandomGaps(4, seed=1)
    one, other = gaps_of(schedule, 0, 1500), gaps_of(schedule, 1, 1500)
    table = np.zeros((4, 4))
    np.add.at(table, (one - 1, other - 1), 1)
    assert chi2_contingency(table).pvalue > 1e-3
    own = np.zeros((4, 4))  # nor has a worker's gap with its next one
    np.add.at(own, (one[:-1] - 1, one[1:] - 1), 1)
    assert chi2_contingency(own).pvalue > 1e-3
    assert not np.array_equal(gaps_of(RandomGaps(4, seed=2), 0, 50), one[:50])


def test_random_gaps_need_no_memory_of_the_steps_before() -> None:
    schedule = RandomGaps(5, seed=77)
    whole = [step for step in range(1, 200) if schedule.due(step, 1)]
    _drawn.cache_clear()  # as in another process
    assert [step for step in range(199, 0, -1) if schedule.due(step, 1)] == whole[::-1]


def test_a_worker_each() -> None:
    schedule = PerWorker([Every(3), At((5,))])  # type: ignore[arg-type]  # a list is made a tuple
    assert schedule == PerWorker((Every(3), At((5,))))
    assert [[step for step in range(1, 10) if schedule.due(step, rank)] for rank in (0, 1)] == [[3, 6, 9], [5]]


def test_split_keeps_modules_whole_and_deals_them_out() -> None:
    names = ["a.weight", "a.bias", "b.weight", "c.d.weight", "c.d.bias", "e.weight", "scale"]
    assert split(names, 1) == [[0, 1, 2, 3, 4, 5, 6]]
    assert split(names, 2) == [[0, 1, 3, 4, 6], [2, 5]]
    assert split(names, 5) == [[0, 1], [2], [3, 4], [5], [6]]
    assert split(["a.weight", "b.weight", "a.bias"], 2) == [[0, 2], [1]]  # a module that is named twice stays one


SPECS = [TensorSpec((3,), name="0.weight"), TensorSpec((2,), name="1.weight")]
H = "h, the steps between two syncs, must be an integer of at least 1, got"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Every(0), f"Every: {H} 0."),
        (lambda: Every(2.5), f"Every: {H} 2.5."),  # type: ignore[arg-type]
        (lambda: PostLocal(3, -1), f"PostLocal: {H} -1."),
        (lambda: RandomGaps(0), f"RandomGaps: {H} 0."),
        (lambda: Streaming(0, 1), f"Streaming: {H} 0."),
        (lambda: Every(4, offset=4), "Every: the offset must lie in [0, h) = [0, 4), got 4."),
        (lambda: Every(4, offset=-1), "Every: the offset must lie in [0, h) = [0, 4), got -1."),
        (lambda: At(()), "At: no steps given, so the workers would never synchronise; name one at least."),
        (lambda: At((2, 2)), "At: steps must ascend and start from 1, got (2, 2)."),
        (lambda: At((0, 2)), "At: steps must ascend and start from 1, got (0, 2)."),
        (lambda: RandomGaps(2, seed=-1), "Key: seed must lie in [0, 2**64), got -1."),
        (lambda: PostLocal(0, 4), "PostLocal: the switch must come after step 1 or later, got 0; use Every."),
        (lambda: PerWorker(()), "PerWorker: no schedules given; name one for each worker."),
        (
            lambda: Streaming(10, 3),
            "Streaming: h must be a multiple of the number of fragments, got h=10 and fragments=3.",
        ),
        (
            lambda: Streaming(3, 0),
            "Streaming: h must be a multiple of the number of fragments, got h=3 and fragments=0.",
        ),
        (lambda: Streaming(6, 2, delay=3), "Streaming: the delay must lie in [0, h / fragments) = [0, 3), got 3."),
        (lambda: Streaming(6, 2, delay=-1), "Streaming: the delay must lie in [0, h / fragments) = [0, 3), got -1."),
        (lambda: Streaming(6, 2, mixing=1.0), "Streaming: mixing must lie in [0, 1), got 1.0."),
        (
            lambda: split(["0.weight", "0.bias"], 2),
            "Streaming: a model of 1 modules cannot be divided into 2 fragments.",
        ),
        (lambda: PerWorker((Every(2),)).check(3), "PerWorker: 1 schedules for 3 workers; give one for each."),
    ],
)
def test_what_cannot_be_a_schedule(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


@pytest.mark.parametrize("wrong", ["Every(2)", Streaming(4, 2)])
def test_a_worker_each_takes_schedules_of_the_whole_model(wrong: Any) -> None:
    sentence = f"PerWorker needs schedules of the whole model, such as Every(8), got {wrong!r}."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        PerWorker((Every(2), wrong))


GATHER = AllGather(Identity())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: LocalMethod(GATHER, RandomGaps(4)),
            f"LocalMethod: with RandomGaps(h=4) workers come at different steps, and {GATHER!r} needs all at once; "
            "use an AsyncServer.",
        ),
        (
            lambda: LocalMethod(AsyncServer(Identity()), Streaming(4, 2)),
            "LocalMethod: an AsyncServer answers with the whole model, and Streaming(h=4, fragments=2) divides it; "
            "use Every or RandomGaps.",
        ),
        (
            lambda: LocalMethod(GATHER, Every(8)).check(SPECS, world=2, steps=7),
            "Every(h=8): worker 0 would not synchronise once in 7 steps; train longer or synchronise more often than "
            "every 8 steps.",
        ),
        (
            lambda: LocalMethod(AsyncServer(Identity()), PerWorker((Every(2), Every(9)))).check(SPECS, 2, 8),
            "PerWorker(schedules=(Every(h=2), Every(h=9))): worker 1 would not synchronise once in 8 steps; train "
            "longer or synchronise more often than every 9 steps.",
        ),
        (
            lambda: LocalMethod(AsyncServer(Identity()), PerWorker((Every(2),))).check(SPECS, 2, 8),
            "PerWorker: 1 schedules for 2 workers; give one for each.",
        ),
        (
            lambda: LocalMethod(GATHER, Streaming(6, 3)).check(SPECS, 2, 60),
            "Streaming: a model of 2 modules cannot be divided into 3 fragments.",
        ),
    ],
)
def test_methods_say_which_schedules_do_not_suit_them(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


def test_a_method_that_suits_says_nothing() -> None:
    LocalMethod(GATHER, Every(8)).check(SPECS, world=2, steps=8)
    LocalMethod(GATHER, Streaming(4, 2, delay=1)).check(SPECS, world=2, steps=4)
