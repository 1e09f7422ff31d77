"""Train a small transformer on text at several sites: DDP inside each, local updates across them.

torchrun --nproc-per-node 4 examples/diloco_text.py
torchrun --nproc-per-node 4 examples/diloco_text.py --method "sparse_loco(h=15)" --steps 150 --save here
torchrun --nproc-per-node 4 examples/diloco_text.py --method "sparse_loco(h=15)" --steps 300 --resume here

Inside a site every step all-reduces the gradients, as over a fast network. Across sites only the first rank of each
talks to the others, at syncs; it hands the result on to its site.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import thriftgrad
from thriftgrad import tasks


def main() -> None:
    """Join the other ranks, train, leave."""
    arguments = options().parse_args()
    dist.init_process_group("gloo")
    train(arguments)
    dist.destroy_process_group()


def options() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="diloco(h=20)", help="a local method (default: %(default)s)")
    parser.add_argument("--sites", type=int, default=2, help="the ranks are divided among them (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="in total, with those before a resumption")
    parser.add_argument("--save", type=Path, help="folder for a checkpoint at the end, a file for each rank")
    parser.add_argument("--resume", type=Path, help="folder of the checkpoint to go on from")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def train(arguments: argparse.Namespace) -> None:
    """Train; print loss and bytes across sites on rank 0; save and resume."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if world % arguments.sites:
        raise SystemExit(f"{world} ranks cannot be divided among {arguments.sites} sites")
    size = world // arguments.sites
    ranks = [list(range(first, first + size)) for first in range(0, world, size)]
    sites = [dist.new_group(site) for site in ranks]  # every rank makes every group
    site, leaders = sites[rank // size], dist.new_group([each[0] for each in ranks])

    task = tasks.load("text")
    model = DistributedDataParallel(task.build(arguments.seed), process_group=site)
    method = thriftgrad.parse(arguments.method)
    optimizer = method.optimizer(model.parameters(), task.learning_rate * method.learning_rate_scale)
    local = thriftgrad.LocalUpdates(model, method, optimizer, group=leaders, site=site, seed=arguments.seed)

    begun = 0
    if arguments.resume:
        # Only now: LocalUpdates starts all ranks from rank 0's model, and between syncs each site has its own.
        saved = torch.load(arguments.resume / f"rank{rank}.pt", weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        local.load_state_dict(saved["local"])
        begun = saved["step"]

    batches = islice(task.batches(arguments.seed, rank, world), begun, arguments.steps)
    for step, batch in enumerate(batches, begun + 1):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        local.step()  # the one line
        if rank == 0 and step % 20 == 0:
            syncs, sent_bytes = local.stats().syncs, local.ledger.up_bytes + local.ledger.down_bytes
            print(f"step {step}: loss {loss.item():.3f} nats, {syncs} syncs, {sent_bytes / 1e6:.2f} MB across sites")

    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "local": local.state_dict()}
        torch.save(state | {"step": arguments.steps}, arguments.save / f"rank{rank}.pt")
    if rank == 0:
        shared = task.build(arguments.seed)
        shared.load_state_dict(local.anchors(), strict=False)  # what the sites share; `model` is this site's own
        print(f"{task.quality} {task.evaluate(shared):.6f} after {arguments.steps} steps at {arguments.sites} sites")
        print(local.stats())
    local.close()


if __name__ == "__main__":
    main()
