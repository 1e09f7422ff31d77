"""The two homes of a comparison's workers."""

import pytest
import torch

from distributed.ranks import on_ranks
from lab.toys import normed, trained
from thriftgrad import recipes
from thriftgrad.comm import all_reduce
from thriftgrad.lab.cluster import Processes, Simulated
from thriftgrad.lab.training import train


def told(at):
    return at.step, at.samples, at.loss, at.quality, at.up_bytes, at.relative_error, at.variance


def test_simulated_workers_all_live_here_and_write():
    cluster = Simulated(3)
    assert (cluster.world, list(cluster.ranks), cluster.writes) == (3, [0, 1, 2], True)
    answers = cluster.exchange([all_reduce(torch.tensor([x])) for x in (1.0, 2.0, 4.0)])
    assert [answer.item() for answer in answers] == [7.0] * 3
    assert cluster.mean([1.5, 2.0]) == cluster.latest([1.5, 2.0]) == [1.5, 2.0]


def on_a_rank():
    cluster = Processes()
    (rank,) = cluster.ranks
    buffers = [torch.tensor([1.0 + rank]), torch.tensor(rank + 5)]
    cluster.follow(buffers)
    cluster.barrier()
    return {
        "place": (cluster.world, rank, cluster.writes),
        "sum": [answer.item() for answer in cluster.exchange([all_reduce(torch.tensor([1.0 + rank]))])],
        "mean": cluster.mean([rank, 10.0 * rank, 1e16 if rank == 0 else 1.0]),
        "latest": cluster.latest([rank, 5.0 - rank]),
        "buffers": [buffer.item() for buffer in buffers],
        "evaluations": [
            told(at)
            for at in train(
                normed(), recipes.qsgd(), cluster, seed=0, learning_rate=0.1, steps=3, evaluate_every=1, links={}
            )
        ],
    }


@pytest.mark.parametrize("world", [2, 3])
def test_real_ranks_agree_with_each_other_and_with_the_simulation(world):
    simulated = [told(at) for at in trained(normed(), recipes.qsgd(), workers=world, steps=3)]
    for rank, seen in enumerate(on_ranks(world, on_a_rank)):
        assert seen["place"] == (world, rank, rank == 0)
        assert seen["sum"] == [sum(range(1, world + 1))]
        # In the order of ranks, 1e16 swallows each 1.0 that follows it.
        assert seen["mean"] == [(world - 1) / 2, 5.0 * (world - 1), 1e16 / world]
        assert seen["latest"] == [world - 1, 5.0]
        assert seen["buffers"] == [1.0, 5]
        assert seen["evaluations"] == simulated
