"""Steps per second under DDP: PowerSGD attached, PyTorch's powerSGD_hook, and DDP's own all-reduce.

    python benchmarks/power_sgd_hook.py [--rounds R] [--worlds 1 2] [--ranks 1 2 4]

One DDP bucket, gloo, one thread a process. The candidates take turns within each round and a ratio is the median of the
rounds' ratios, so that other work on the machine meets all of them; above one is in our favour. "CPU ms": of rank 0 in
one step, less what a step with DDP's own all-reduce takes; it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from thriftgrad import PowerSGD, attach
from thriftgrad.tasks.models import GPT, resnet18

ONE_BUCKET = {"bucket_cap_mb": 1000}
START = 2  # the least that PyTorch's hook takes
WARM_UP_STEPS = 4
Step = Callable[[], None]


class Gpt(nn.Module):
    """A language model of 1.9 M parameters, forward and backward on two sequences of 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = GPT(width=192, depth=4)
        self.tokens = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(dist.get_rank()))

    def forward(self) -> Tensor:
        return self.gpt(self.tokens).square().mean()


class Shapes(nn.Module):
    """A model's parameters with random gradients: next to no forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(p.detach().clone() for p in model.parameters())
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.gradients = [torch.randn(p.shape, generator=generator) for p in self.weights]

    def forward(self) -> Tensor:
        return torch.stack([(p * g).sum() for p, g in zip(self.weights, self.gradients, strict=True)]).sum()


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and steps in a round
    "GPT, 1.9 M": (Gpt, 5),
    "GPT's shapes": (lambda: Shapes(Gpt()), 5),
    "ResNet-18's shapes, 11.2 M": (lambda: Shapes(resnet18()), 2),
}
HOOKS = ("hook", "hook, batched")


def candidates(model: Callable[[], nn.Module], rank: int) -> dict[str, Step]:
    """One training step of each."""
    plain = DistributedDataParallel(model(), **ONE_BUCKET)
    ours = DistributedDataParallel(model(), **ONE_BUCKET)
    attach(ours, PowerSGD(rank=rank, start_after=START))
    found = {"all-reduce": plain, "ours": ours}
    for name, batched in zip(HOOKS, (False, True), strict=True):
        found[name] = DistributedDataParallel(model(), **ONE_BUCKET)
        found[name].register_comm_hook(hook_state(rank, batched), powerSGD_hook)
    return {name: one_step(ddp) for name, ddp in found.items()}


def hook_state(rank: int, batched: bool) -> PowerSGDState:
    """What PyTorch's hook is given, from the second step on; ``batched``: equal shapes together."""
    return PowerSGDState(
        None,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=START,
        orthogonalization_epsilon=1e-8,
        batch_tensors_with_same_shape=batched,
    )


def one_step(ddp: DistributedDataParallel) -> Step:
    """Forward, backward and SGD."""
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        ddp().backward()
        optimizer.step()

    return step


class Cost(NamedTuple):
    """Of one candidate in one round."""

    per_second: float  # steps
    cpu_ms: float  # of a step


def costs(steps: dict[str, Step], rounds: int, steps_each: int) -> dict[str, list[Cost]]:
    """What each candidate costs, round by round; the ranks start each measurement together."""
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    found: dict[str, list[Cost]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            dist.barrier()
            start, cpu_start = perf_counter(), process_time()
            for _ in range(steps_each):
                step()
            cpu_seconds, seconds = process_time() - cpu_start, perf_counter() - start
            found[name].append(Cost(steps_each / seconds, 1e3 * cpu_seconds / steps_each))
    return found


def row(found: dict[str, list[Cost]]) -> list[str]:
    """The numbers of one line of the table."""
    rate = {name: [cost.per_second for cost in rounds] for name, rounds in found.items()}
    cpu_ms = {name: median(cost.cpu_ms for cost in rounds) for name, rounds in found.items()}
    ratios = [median(a / b for a, b in zip(rate["ours"], rate[hook], strict=True)) for hook in HOOKS]
    return [
        *(f"{median(rate[each]):.1f}" for each in ("ours", *HOOKS, "all-reduce")),
        *(f"{ratio:.2f}" for ratio in ratios),
        *(f"{cpu_ms[each] - cpu_ms['all-reduce']:.1f}" for each in ("ours", *HOOKS)),
    ]


def be_a_rank(rank: int, world: int, folder: str, ranks: list[int], rounds: int) -> None:
    """Measure everything; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    for name, (model, steps_each) in MODELS.items():
        for low_rank in ranks:
            found = costs(candidates(model, low_rank), rounds, steps_each)
            if rank == 0:
                print(f"| {' | '.join([str(world), name, str(low_rank), *row(found)])} |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    titles = ["processes", "model", "rank", *("ours", *HOOKS, "all-reduce"), *(f"ours / {hook}" for hook in HOOKS)]
    titles += [f"CPU ms: {each}" for each in ("ours", *HOOKS)]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for world in options.worlds:
        with tempfile.TemporaryDirectory() as folder:
            arguments: tuple[Any, ...] = (world, folder, options.ranks, options.rounds)
            torch.multiprocessing.spawn(be_a_rank, arguments, nprocs=world)


if __name__ == "__main__":
    main()
