"""How a task divides its training set: deterministic, disjoint between workers, complete within an epoch."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thriftgrad.tasks.task import Task, device_of, evaluation, spread


def numbers_task(samples: int, batch_size: int) -> Task:
    """A task whose batches are the sample numbers themselves, beside one random number each."""

    def draw(indices, generator):
        return torch.from_numpy(indices), torch.from_numpy(generator.random(len(indices)))

    return Task(
        name="numbers",
        description="",
        quality="",
        higher_is_better=True,
        target=1.0,
        batch_size=batch_size,
        steps=1,
        learning_rate=0.1,
        evaluate_every=1,
        provenance={},
        samples=samples,
        build=lambda seed: nn.Linear(1, 1),
        draw=draw,
        loss=lambda model, batch: torch.zeros(()),
        evaluate=lambda model: 0.0,
    )


def drawn(task: Task, seed: int, rank: int, world: int, steps: int) -> list[int]:
    return [int(number) for numbers, _ in islice(task.batches(seed, rank, world), steps) for number in numbers]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32), st.integers(1, 8))
def test_shards_partition_the_samples_and_every_epoch_visits_each_once(samples, batch_size, seed, world):
    world = min(world, samples)
    task = numbers_task(samples, batch_size)
    visited: list[int] = []
    for rank in range(world):
        epochs = 3
        stream = drawn(task, seed, rank, world, steps=-(-samples * epochs // batch_size) + epochs)
        shard = set(stream)
        assert len(shard) in (samples // world, -(-samples // world))
        for epoch in range(epochs):
            assert set(stream[epoch * len(shard) : (epoch + 1) * len(shard)]) == shard
        visited += shard
    assert sorted(visited) == list(range(samples))


def test_every_batch_is_full_even_if_the_shard_is_smaller():
    batch, _ = next(numbers_task(samples=3, batch_size=8).batches(0, 0, 1))
    assert sorted(Counter(batch.tolist()).values()) == [2, 3, 3]


def test_the_order_changes_between_epochs_workers_and_seeds():
    task = numbers_task(samples=40, batch_size=20)
    first, second = drawn(task, 0, 0, 1, 2), drawn(task, 0, 0, 1, 4)[40:]
    assert first != second
    assert first != drawn(task, 1, 0, 1, 2)
    positions = [np.argsort(drawn(task, 0, rank, 2, 1)).tolist() for rank in (0, 1)]
    assert positions[0] != positions[1]


def test_batches_are_a_function_of_seed_rank_and_world_alone():
    task = numbers_task(samples=30, batch_size=4)
    torch.manual_seed(1)
    one = list(islice(task.batches(3, 1, 2), 20))
    torch.manual_seed(2)
    interleaved, other = task.batches(3, 1, 2), task.batches(3, 0, 2)
    for numbers, augmentation in one:
        next(other)
        again = next(interleaved)
        assert torch.equal(numbers, again[0])
        assert torch.equal(augmentation, again[1])


def test_the_order_is_frozen():
    # Golden: another order means that results of one version cannot be compared with those of the next.
    assert drawn(numbers_task(samples=10, batch_size=5), seed=0, rank=0, world=2, steps=2) == [
        4,
        9,
        3,
        2,
        8,
        8,
        3,
        2,
        9,
        4,
    ]


def test_a_replaced_batch_size_takes_effect():
    task = replace(numbers_task(samples=10, batch_size=5), batch_size=2)
    assert len(next(task.batches(0, 0, 1))[0]) == 2


@pytest.mark.parametrize(
    ("seed", "rank", "world", "message"),
    [
        (0, 4, 4, r"Workers are numbered from 0 to world - 1, and rank is 4 of a world of 4\."),
        (0, -1, 4, "rank is -1"),
        (0, 0, 0, "a world of 0"),
        (-1, 0, 1, r"The seed must be zero or more, not -1\."),
        (0, 0, 11, r"11 workers cannot share the 10 training samples of 'numbers'; use at most 10 workers\."),
    ],
)
def test_impossible_workers_are_refused_at_once(seed, rank, world, message):
    with pytest.raises(ValueError, match=message):
        numbers_task(samples=10, batch_size=5).batches(seed, rank, world)


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_spread_reaches_from_the_first_to_the_last_sample_without_repeating(samples, count):
    chosen = spread(samples, count)
    assert len(chosen) == min(samples, count)
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen[0] == 0
    assert count == 1 or chosen[-1] == samples - 1


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode_after_an_error(training):
    model = nn.Sequential(nn.Dropout()).train(training)

    def fail():
        with evaluation(model):
            assert not model[0].training
            assert not torch.is_grad_enabled()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert model.training is model[0].training is training
    assert torch.is_grad_enabled()


def test_the_device_is_that_of_the_parameters():
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
