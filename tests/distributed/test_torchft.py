"""DiLoCo and streaming DiLoCo against torchft, whose own code runs on two processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from distributed.ranks import on_ranks
from distributed.torchft_oracle import (
    INNER_STEPS,
    REPLICAS,
    SETTINGS,
    SYNC_EVERY,
    Trace,
    adamw,
    loss_of,
    model,
    torchft_traces,
)
from local import oracles
from thriftgrad import AllReduce, Every, Identity, LocalMethod, LocalUpdates, OuterSGD, Streaming

pytestmark = pytest.mark.xdist_group("distributed")


@pytest.fixture(scope="module")
def traces() -> list[dict[str, Trace]]:
    """What torchft made of every setting, by replica."""
    return on_ranks(REPLICAS, torchft_traces)


def vectors(trace: Trace, which: str) -> np.ndarray:
    return np.array([torch.cat([p.flatten() for p in after.values()]).numpy() for after in trace[which]])


def gradient(replica: int) -> oracles.Gradient:
    net = model()

    def of(x: oracles.Array, t: int) -> oracles.Array:
        vector_to_parameters(torch.from_numpy(x), net.parameters())
        grads = torch.autograd.grad(loss_of(net, replica, t + 1), list(net.parameters()))
        return torch.cat([g.flatten() for g in grads]).numpy()

    return of


@pytest.mark.parametrize("name", SETTINGS)
def test_the_plain_account_of_streaming_is_torchft_s(traces: list[dict[str, Trace]], name: str) -> None:
    setting, start = SETTINGS[name], parameters_to_vector(model().parameters()).detach().numpy()
    first = sum(p.numel() for p in model()[0].parameters())
    fragments = [range(start.size)] if setting.fragments == 1 else [range(first), range(first, start.size)]
    is_adamw = setting.inner is adamw
    ours = oracles.streaming(
        [gradient(replica) for replica in range(REPLICAS)],
        start,
        fragments,
        SYNC_EVERY,
        setting.delay,
        setting.alpha,
        [0.02 if is_adamw else 0.1] * INNER_STEPS,
        INNER_STEPS,
        inner=oracles.adamw((0.9, 0.95), weight_decay=0.1) if is_adamw else oracles.sgd(),
        outer=oracles.outer_sgd(),
    )
    for replica in range(REPLICAS):
        theirs = traces[replica][name]
        np.testing.assert_allclose([after.x for after in ours], vectors(theirs, "anchor"), rtol=0, atol=1e-10)
        np.testing.assert_allclose(
            [after.local[replica] for after in ours], vectors(theirs, "local"), rtol=0, atol=1e-10
        )


def our_traces() -> dict[str, Trace]:
    """What ``LocalUpdates`` makes of every setting on this rank; a function for ``on_ranks``."""
    traces: dict[str, Trace] = {}
    for name, setting in SETTINGS.items():
        streams = setting.fragments > 1 or setting.delay
        schedule = (
            Streaming(SYNC_EVERY, setting.fragments, setting.delay, setting.alpha) if streams else Every(SYNC_EVERY)
        )
        net = model()
        optimizer = setting.inner(net)
        with LocalUpdates(net, LocalMethod(AllReduce(Identity()), schedule, outer=OuterSGD()), optimizer) as local:
            trace = traces[name] = {"local": [], "anchor": []}
            for step in range(INNER_STEPS + 1):
                if step:
                    optimizer.zero_grad()
                    loss_of(net, dist.get_rank(), step).backward()
                    optimizer.step()
                    local.step()
                trace["local"].append({each: p.detach().clone() for each, p in net.named_parameters()})
                trace["anchor"].append({each: x.clone() for each, x in local.anchors().items()})
    return traces


def test_local_updates_train_as_torchft_does(traces: list[dict[str, Trace]]) -> None:
    """The same inner and outer settings give the same parameters on every replica after every step."""
    ours = on_ranks(REPLICAS, our_traces)
    for name in SETTINGS:
        for mine, theirs in zip(ours, traces, strict=True):
            for which in ("local", "anchor"):
                for here, there in zip(mine[name][which], theirs[name][which], strict=True):
                    for each, x in here.items():
                        torch.testing.assert_close(x, there[each], rtol=0, atol=1e-14)


def test_replicas_of_torchft_part_and_meet(traces: list[dict[str, Trace]]) -> None:
    """Anchors are always equal; locals are equal right after a sync and only there; mixing keeps them apart."""
    for name in SETTINGS:
        a, b = (vectors(replica[name], "anchor") for replica in traces)
        np.testing.assert_array_equal(a, b)
    a, b = (vectors(replica["diloco-adamw"], "local") for replica in traces)
    assert [step for step in range(INNER_STEPS + 1) if np.array_equal(a[step], b[step])] == [0, 4, 8, 12]
    a, b = (vectors(replica["streaming-adamw"], "local") for replica in traces)
    assert [step for step in range(INNER_STEPS + 1) if np.array_equal(a[step], b[step])] == [0]
