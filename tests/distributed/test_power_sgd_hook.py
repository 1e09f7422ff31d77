"""PowerSGD against the independent implementation that PyTorch carries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import on_ranks
from thriftgrad import PowerSGD, attach

pytestmark = pytest.mark.xdist_group("distributed")

RANK, STEPS, START = 2, 20, 2  # PyTorch's hook all-reduces at least two steps first
SHAPES = {"0.weight": (24, 16), "2.weight": (24, 24), "4.weight": (6, 24)}


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6))


def start() -> dict[str, Tensor]:
    """The right factor of each matrix, with orthonormal columns: float32[m, r]."""
    generator = torch.Generator().manual_seed(11)
    return {name: torch.linalg.qr(torch.randn(m, RANK, generator=generator)).Q for name, (_, m) in SHAPES.items()}


def train(model: DistributedDataParallel) -> list[Tensor]:
    """All parameters after each step, in one vector."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trajectory = []
    for t in range(STEPS):
        generator = torch.Generator().manual_seed(100 * t + dist.get_rank())
        x, y = torch.randn(16, 16, generator=generator), torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        trajectory.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    return trajectory


def ours_and_theirs() -> dict[str, Any]:
    model = DistributedDataParallel(net())
    with attach(model, PowerSGD(rank=RANK, start_after=START, min_compression_rate=1)) as handle:
        saved = handle.state_dict()
        rank = dist.get_rank()
        factors = {f"memory/rank{rank:05d}/{name}/factor": q for name, q in start().items()}
        handle.load_state_dict(saved | factors)
        ours = train(model)

    model = DistributedDataParallel(net())
    state = PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=START, min_compression_rate=1)
    # DDP's bucket holds the last layer first; the hook keeps all factors of a bucket in one vector.
    ordered = list(reversed(SHAPES))
    state.p_memory_dict[0] = torch.empty(sum(SHAPES[name][0] * RANK for name in ordered))
    state.q_memory_dict[0] = torch.cat([start()[name].reshape(-1) for name in ordered])
    model.register_comm_hook(state, powerSGD_hook)
    return {"ours": ours, "theirs": train(model), "uncompressed": train(DistributedDataParallel(net()))}


def test_power_sgd_follows_pytorchs_hook() -> None:
    for result in on_ranks(2, ours_and_theirs):
        for t, (ours, theirs) in enumerate(zip(result["ours"], result["theirs"], strict=True)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=lambda text, t=t: f"step {t}: {text}")
        assert (result["ours"][-1] - result["uncompressed"][-1]).abs().max() > 1e-3  # so the agreement says something
