"""Train a small CNN on images of digits under DistributedDataParallel, its gradients compressed or as they are.

torchrun --nproc-per-node 2 examples/ddp_digits.py
torchrun --nproc-per-node 2 examples/ddp_digits.py --method "power_sgd(rank=2)"
"""

import argparse

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import thriftgrad
from thriftgrad import tasks
from thriftgrad.aggregate import Aggregator
from thriftgrad.train import Method


def main() -> None:
    """Train, then print accuracy and bytes on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", help='such as "qsgd(bits=4)"; without it, DDP all-reduces as usual')
    parser.add_argument("--steps", type=int, help="the task's own number if left out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    task = tasks.load("digits")
    steps = arguments.steps or task.steps
    batches = task.batches(arguments.seed, rank, world)

    model = DistributedDataParallel(task.build(arguments.seed))
    method = thriftgrad.parse(arguments.method or "sgd")
    if isinstance(method, Aggregator):
        method = Method(method)  # which has an optimiser, with momentum 0.9
    handle = None
    if arguments.method:
        handle = thriftgrad.attach(model, method, seed=arguments.seed)  # the one line
    optimizer = method.optimizer(model.parameters(), task.learning_rate * method.learning_rate_scale)

    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        optimizer.step()

    if rank == 0:
        print(f"{task.quality} {task.evaluate(model):.4f} after {steps} steps on {world} workers")
        if handle is not None:
            print(handle.stats())
        else:
            elements = sum(parameter.numel() for parameter in model.parameters())
            ring_bytes = 2 * (world - 1) / world * 4 * elements
            print(f"per step {ring_bytes:.0f} bytes up, {ring_bytes:.0f} bytes down: a ring all-reduce in fp32")
    if handle is not None:
        handle.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
