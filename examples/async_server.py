"""Train a small CNN on images of digits with an asynchronous server: no worker waits for another.

A server and three workers, the last of which is slow:
torchrun --nproc-per-node 4 examples/async_server.py --slow-rank 2

As processes that may be killed and come back (a worker goes on from DIR/worker1.pt):
python examples/async_server.py --server localhost:29555 --rank server --checkpoints DIR
python examples/async_server.py --server localhost:29555 --rank 0 --checkpoints DIR
python examples/async_server.py --server localhost:29555 --rank 1 --checkpoints DIR
python examples/async_server.py --server localhost:29555 --rank 2 --checkpoints DIR
"""

import argparse
import logging
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import thriftgrad
from thriftgrad import ErrorFeedback, TopK, tasks
from thriftgrad.local import AsyncServer, InnerSGD, LocalMethod, RandomGaps
from thriftgrad.tasks.task import Task
from thriftgrad.train import AsyncUpdates, Server

METHOD = LocalMethod(
    AsyncServer(up=ErrorFeedback(TopK(fraction=0.02))), schedule=RandomGaps(8), inner=InnerSGD(momentum=0.9)
)


def main() -> None:
    """Be the server or a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help='"host:port"; left out under torchrun, whose rank 0 is the server')
    parser.add_argument("--rank", default=None, help='"server", or the worker\'s number; left out under torchrun')
    parser.add_argument("--workers", type=int, default=3, help="how many there are; under torchrun all but rank 0")
    parser.add_argument("--slow-rank", type=int, help="a worker that takes 20 ms longer for each step")
    parser.add_argument("--steps", type=int, default=200, help="of each worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, help="a folder to save to, and to resume from")
    parser.add_argument("--patience", type=float, default=60.0, help="of the server with a silent worker, seconds")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if arguments.checkpoints:
        arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    if arguments.server is None:
        rank = int(os.environ["RANK"]) - 1
        arguments.workers = int(os.environ["WORLD_SIZE"]) - 1
    else:
        rank = -1 if arguments.rank == "server" else int(arguments.rank)
    serve(arguments) if rank < 0 else work(arguments, rank)


def serve(arguments: argparse.Namespace) -> None:
    """The server: its model is the result."""
    task = tasks.load("digits")
    model = task.build(arguments.seed)

    def save(server: Server) -> None:
        keep(arguments, "server", server.state_dict())

    report = thriftgrad.serve(
        model,
        METHOD,
        arguments.workers,
        address=arguments.server,
        seed=arguments.seed,
        patience_seconds=arguments.patience,
        resume=kept(arguments, "server"),
        after_commit=save if arguments.checkpoints else None,
    )
    print(f"{task.quality} {task.evaluate(model):.4f}")
    print(report)


def work(arguments: argparse.Namespace, rank: int) -> None:
    """A worker: plain PyTorch, and one call after each step."""
    task = tasks.load("digits")
    model = task.build(arguments.seed)
    optimizer = METHOD.optimizer(model.parameters(), task.learning_rate)
    saved = kept(arguments, f"worker{rank}") or {}
    with AsyncUpdates(
        model,
        METHOD,
        optimizer,
        rank=rank,
        workers=arguments.workers,
        address=arguments.server,
        seed=arguments.seed,
        resume=saved.get("caller"),
    ) as remote:
        done = remote.caller.step
        if saved:
            optimizer.load_state_dict(saved["optimizer"])
        for batch in islice(task.batches(arguments.seed, rank, arguments.workers), done, arguments.steps):
            step(model, optimizer, task, batch)
            remote.step()
            if arguments.checkpoints:
                keep(
                    arguments,
                    f"worker{rank}",
                    {"caller": remote.state_dict(), "optimizer": optimizer.state_dict()},
                )
            if rank == arguments.slow_rank:
                time.sleep(0.02)
    print(f"worker {rank}: {remote.stats()}")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, batch: Any) -> None:
    """One step of the inner optimiser."""
    optimizer.zero_grad()
    task.loss(model, batch).backward()
    optimizer.step()


def keep(arguments: argparse.Namespace, name: str, state: dict[str, Any]) -> None:
    """Save whole or not at all."""
    path = arguments.checkpoints / f"{name}.pt"
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def kept(arguments: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """What was saved, if anything."""
    path = arguments.checkpoints and arguments.checkpoints / f"{name}.pt"
    return torch.load(path) if path and path.exists() else None


if __name__ == "__main__":
    main()
