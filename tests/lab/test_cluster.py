"""The two homes of a comparison's workers."""

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from lab.toys import normed, trained
from thriftgrad import recipes
from thriftgrad.comm import all_reduce
from thriftgrad.lab.cluster import Processes, Simulated
from thriftgrad.lab.training import train


def test_simulated_workers_all_live_here_and_write():
    cluster = Simulated(3)
    assert (cluster.world, list(cluster.ranks), cluster.writes) == (3, [0, 1, 2], True)
    answers = cluster.exchange([all_reduce(torch.tensor([x])) for x in (1.0, 2.0, 4.0)])
    assert [answer.item() for answer in answers] == [7.0] * 3
    assert cluster.mean([1.5, 2.0]) == [1.5, 2.0]


def told(at):
    return at.step, at.samples, at.loss, at.quality, at.up_bytes, at.relative_error, at.variance


def on_a_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    cluster = Processes()
    buffers = [torch.tensor([1.0 + rank]), torch.tensor(rank + 5)]
    cluster.follow(buffers)
    seen = {
        "place": (cluster.world, tuple(cluster.ranks), cluster.writes),
        "sum": [answer.item() for answer in cluster.exchange([all_reduce(torch.tensor([1.0 + rank]))])],
        "mean": cluster.mean([rank, 10.0 * rank]),
        "buffers": [buffer.item() for buffer in buffers],
        "evaluations": [
            told(at)
            for at in train(
                normed(), recipes.qsgd(), cluster, seed=0, learning_rate=0.1, steps=3, evaluate_every=1, links={}
            )
        ],
    }
    cluster.barrier()
    torch.save(seen, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_real_ranks_agree_with_each_other_and_with_the_simulation(tmp_path):
    spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert first["place"] == (2, (0,), True)
    assert second["place"] == (2, (1,), False)
    simulated = [told(at) for at in trained(normed(), recipes.qsgd(), steps=3)]
    for seen in (first, second):
        assert seen["sum"] == [3.0]
        assert seen["mean"] == [0.5, 5.0]
        assert seen["buffers"] == [1.0, 5]
        assert seen["evaluations"] == simulated
