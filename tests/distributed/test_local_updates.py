"""Local updates on real ranks: as simulated, across sites, through checkpoints, and where something is wrong."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import on_ranks
from samples import same_bits, same_leaf
from thriftgrad import (
    QSGD,
    AllGather,
    ErrorFeedback,
    Identity,
    LocalUpdates,
    ParameterServer,
    Shrink,
    Sign,
    TopK,
    recipes,
    simulate,
)
from thriftgrad.core import memories
from thriftgrad.local import (
    Every,
    InnerAdamW,
    InnerSGD,
    LocalMethod,
    OuterSGD,
    Replica,
    Streaming,
    learning_rates_of,
)
from thriftgrad.local.replica import Exchanged

pytestmark = pytest.mark.xdist_group("distributed")

SEED, RATE = 5, 0.05
TOP = ErrorFeedback(TopK(k=4))
GATHERED: dict[str, LocalMethod] = {
    "qsparse": recipes.qsparse_local_sgd(k=6, h=3),
    "quantised": LocalMethod(AllGather(ErrorFeedback(TopK(k=9) >> Shrink(QSGD(bits=4)))), Every(3), InnerAdamW()),
    "server": LocalMethod(ParameterServer(TOP, ErrorFeedback(Sign())), Every(2), outer=OuterSGD(0.7, 0.5)),
    "streaming": recipes.streaming_diloco(h=4, fragments=2, delay=1, mixing=0.5),
    "late": LocalMethod(ParameterServer(TOP, Identity()), Streaming(6, 2, delay=2), InnerSGD(0.9)),
    "demo": recipes.demo(k=3, chunk=8),
}
REDUCED: dict[str, LocalMethod] = {
    "local_sgd": recipes.local_sgd(h=3),
    "diloco": recipes.diloco(h=3),
    "slow_mo": recipes.slow_mo(h=2),
}
METHODS = GATHERED | REDUCED
STEPS = 9


def net(seed: int = 0) -> nn.Sequential:
    """Two layers, averages of a BatchNorm between them and a frozen parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.Linear(3, 3))
        made[4].requires_grad_(False)
        return made


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x, target = torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)
    return nn.functional.cross_entropy(model(x + rank), target)


def inner_step(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    optimizer.zero_grad()
    loss_of(model, rank, step).backward()
    optimizer.step()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def optimizer_of(method: LocalMethod, model: nn.Module) -> torch.optim.Optimizer:
    return method.optimizer([p for p in model.parameters() if p.requires_grad], RATE)


def simulated(
    method: LocalMethod, world: int, steps: int = STEPS, skips: Callable[[int, int], bool] = lambda rank, step: False
) -> list[nn.Module]:
    """The models of all workers after the same training in one process; ``skips(rank, step)``: no optimiser step."""
    models = [net() for _ in range(world)]
    optimizers = [optimizer_of(method, model) for model in models]
    replicas = [
        Replica(method, {n: p for n, p in m.named_parameters() if p.requires_grad}, dict(m.named_buffers()), SEED)
        for m in models
    ]
    waiting: dict[int, list[Exchanged]] = {}
    for step in range(steps):
        for rank, (model, optimizer, replica) in enumerate(zip(models, optimizers, replicas, strict=True)):
            if not skips(rank, step):
                inner_step(model, optimizer, rank, step)
            replica.advance()
        for part in replicas[0].starting():
            rates = [learning_rates_of(o, r.parameters) for o, r in zip(optimizers, replicas, strict=True)]
            waiting[part] = simulate([r.exchange(part, each) for r, each in zip(replicas, rates, strict=True)])
        for part in replicas[0].landing():
            for replica, exchanged in zip(replicas, waiting.pop(part), strict=True):
                replica.land(part, exchanged)
    return models


def parameters_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in state.items() if not name.startswith("2.") or "running" not in name}


# As simulated


def train_all(names: Sequence[str]) -> dict[str, Any]:
    """Each method from different models; every second optimiser step of rank 1 is skipped in a second run."""
    rank, results = dist.get_rank(), {}
    for name in names:
        for skipping in (False, True) if name in ("qsparse", "streaming") else (False,):
            model = net(seed=10 * rank)
            optimizer = optimizer_of(METHODS[name], model)
            with LocalUpdates(model, METHODS[name], optimizer, seed=SEED) as local:
                started = values(model)
                for step in range(STEPS):
                    if not (skipping and skips(rank, step)):
                        inner_step(model, optimizer, rank, step)
                    local.step()
                results[name, skipping] = {"start": started, "end": values(model), "stats": local.stats()}
    return results


def skips(rank: int, step: int) -> bool:
    return rank == 1 and step % 2 == 1


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_train_as_simulated(world: int) -> None:
    results = on_ranks(world, train_all, list(METHODS))
    for name, skipping in results[0]:
        expected = simulated(METHODS[name], world, skips=skips if skipping else lambda rank, step: False)
        exact = name in GATHERED or world == 2  # a sum of two has one order
        for rank, model in enumerate(expected):
            result, what = results[rank][name, skipping], f"{name} on rank {rank}, {skipping=}"
            assert all(same_bits(x, result["start"][at]) for at, x in values(net()).items()), what
            for at, x in values(model).items():
                if exact and (world == 2 or "running" not in at):  # averages of buffers are always all-reduced
                    assert same_bits(result["end"][at], x), f"{at}, {what}"
                else:
                    torch.testing.assert_close(result["end"][at], x, rtol=1e-6, atol=1e-6, msg=f"{at}, {what}")
            moved = [at for at, x in result["end"].items() if not torch.equal(x, result["start"][at])]
            assert {"0.weight", "2.weight", "3.bias", "2.running_mean"} <= set(moved)
            assert "4.weight" not in moved
            stats = result["stats"]
            assert (stats.steps, stats.world, stats.skipped_syncs) == (STEPS, world, 0)
            assert stats.elements == 6 * 8 + 8 + 8 + 8 + 8 * 3 + 3
            assert stats.up_bytes > 0
            assert (stats.memory_norm > 0) == any(f in name for f in ("qsparse", "quant", "server", "late", "demo"))


# Sites


def train_at_sites() -> dict[str, Any]:
    rank = dist.get_rank()
    sites = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    site, leaders = sites[rank // 2], dist.new_group([0, 2])
    model = net(seed=rank)
    ddp = DistributedDataParallel(model, process_group=site)
    method = LocalMethod(AllGather(TOP), Every(3), InnerSGD(0.9))
    optimizer = optimizer_of(method, model)
    trace = []
    with LocalUpdates(ddp, method, optimizer, group=leaders, site=site, seed=SEED) as local:
        for step in range(7):
            inner_step(ddp, optimizer, rank, step)
            local.step()
            trace.append(values(model))
        state, stats = local.state_dict(), local.stats()
        if rank in (0, 2):
            told = {name: x.clone() for name, x in local.anchors().items()}
        else:
            with pytest.raises(RuntimeError, match=r"^anchors: the first rank of a site keeps them; call it there\.$"):
                local.anchors()
            told = {}
        again = net(seed=rank + 7)
        other = LocalUpdates(again, method, optimizer_of(method, again), group=leaders, site=site, seed=SEED)
        other.load_state_dict(state)
        returned = other.state_dict()
        other.close()
    return {"trace": trace, "state": state, "returned": returned, "stats": stats, "anchors": told}


def test_ddp_inside_a_site_and_local_updates_across() -> None:
    results = on_ranks(4, train_at_sites)
    traces = [result["trace"] for result in results]
    for step in range(7):
        parameters = [parameters_of(trace[step]) for trace in traces]
        for name in parameters[0]:
            inside = [same_bits(parameters[a][name], parameters[b][name]) for a, b in ((0, 1), (2, 3))]
            across = same_bits(parameters[0][name], parameters[2][name])
            assert all(inside), f"{name} at step {step}"
            if name in ("0.weight", "3.weight"):
                assert across == ((step + 1) % 3 == 0), f"{name} at step {step}"
        if (step + 1) % 3 == 0:  # the averages of BatchNorm too
            assert all(same_bits(trace[step]["2.running_var"], traces[0][step]["2.running_var"]) for trace in traces)
    assert all(same_bits(x, results[2]["anchors"][name]) for name, x in results[0]["anchors"].items())
    # Two syncs of two sites. Their messages: of each of six tensors four values and indices, behind a header of 20.
    indices_bits = [4 * bits for bits in (6, 3, 3, 3, 5)] + [3 * 2]
    message = 20 + sum(-(-bits // 8) for bits in indices_bits) + 4 * (5 * 4 + 3)
    averages = 16 * 4  # of running mean and variance
    for rank, result in enumerate(results):
        stats, leads = result["stats"], rank in (0, 2)
        assert (stats.up_bytes, stats.down_bytes) == (2 * (message + averages),) * 2 if leads else (0, 0)
        assert stats.world == 2
        assert result["state"]["rank"] == rank // 2
        assert any(key.startswith("memory/") for key in result["state"]) == leads
        assert same_state(result["state"], result["returned"])


# Checkpoints


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(same_leaf(value, other[key]) for key, value in one.items())


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def stop_and_go_on() -> dict[str, Any]:
    """Each method for nine steps; the same stopped and saved after none, three and five."""
    rank, results = dist.get_rank(), {}
    for name, method in METHODS.items():
        model = net()
        optimizer = optimizer_of(method, model)
        local = LocalUpdates(model, method, optimizer, seed=SEED)
        saved = {}
        for step in range(STEPS):
            if step in (0, 3, 5):
                parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "local": local.state_dict()}
                saved[step] = {part: through_a_file(state) for part, state in parts.items()}
            inner_step(model, optimizer, rank, step)
            local.step()
        result = {"whole": (values(model), local.state_dict()), "stopped": [], "keys": list(saved[5]["local"])}
        local.close()
        for stop, states in saved.items():
            other = net(seed=99)
            optimizer = optimizer_of(method, other)
            local = LocalUpdates(other, method, optimizer, seed=SEED)
            for _ in range(2):  # what was under way here is forgotten
                inner_step(other, optimizer, rank, 50)
                local.step()
            other.load_state_dict(states["model"])
            optimizer.load_state_dict(states["optimizer"])
            local.load_state_dict(states["local"])
            assert same_state(local.state_dict(), states["local"])
            fresh = local.stats()
            assert (fresh.steps, fresh.syncs, fresh.up_bytes) == (0, 0, 0)
            for step in range(stop, STEPS):
                inner_step(other, optimizer, rank, step)
                local.step()
            stats = local.stats()
            assert stats.steps == STEPS - stop
            result["stopped"].append((values(other), local.state_dict()))
            local.close()
        results[name] = result
    return results


def test_save_load_continue_equals_continue() -> None:
    for rank, results in enumerate(on_ranks(2, stop_and_go_on)):
        for name, result in results.items():
            model, state = result["whole"]
            for other, other_state in result["stopped"]:
                assert all(same_bits(x, other[at]) for at, x in model.items()), name
                assert same_state(state, other_state), name
            owned = [key for key in result["keys"] if "memory/" in key]
            assert all(f"memory/rank0000{rank}/" in key for key in owned)
            assert bool(owned) == (name not in REDUCED and name != "streaming"), name
            # After step 5 of "streaming" (turns end after even steps) and "late" (after multiples of 3, two late).
            assert any(key.startswith("arrived/") for key in result["keys"]) == (name in ("streaming", "late")), name


ANOTHER_WORLD = {
    "qsparse": GATHERED["qsparse"],
    "server": GATHERED["server"],
    "late": LocalMethod(AllGather(TOP), Streaming(6, 2, delay=2), InnerSGD(0.9), OuterSGD()),
}


def save_distributed(folder: str) -> dict[str, Any]:
    rank, states = dist.get_rank(), {}
    for name, method in ANOTHER_WORLD.items():
        model = net()
        optimizer = optimizer_of(method, model)
        local = LocalUpdates(model, method, optimizer, seed=SEED)
        for step in range(5):
            inner_step(model, optimizer, rank, step)
            local.step()
        states[name] = local.state_dict()
        checkpoint.save({"local": states[name]}, checkpoint_id=f"{folder}/{name}")
        local.close()
    return states


def load_distributed(folder: str) -> dict[str, Any]:
    """The state that each method finds, and whether it can be loaded by this number of ranks and trains on."""
    rank, states = dist.get_rank(), {}
    for name, method in ANOTHER_WORLD.items():
        model = net(seed=3)
        optimizer = optimizer_of(method, model)
        local = LocalUpdates(model, method, optimizer, seed=SEED)
        found = read_all(f"{folder}/{name}")
        local.load_state_dict(found)
        states[name] = through_a_file(local.state_dict())
        with torch.no_grad():
            for at, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(local.anchors()[at])
        for step in range(5, 12):
            inner_step(model, optimizer, rank, step)
            local.step()
        states[name, "after"] = {at: x.clone() for at, x in local.anchors().items()}
        local.close()
    return states


def read_all(folder: str) -> dict[str, Any]:
    """Everything in a distributed checkpoint, whoever saved it."""
    reader = checkpoint.FileSystemReader(folder)
    metadata = reader.read_metadata().state_dict_metadata
    template = {
        key: torch.empty(each.size, dtype=each.properties.dtype) if hasattr(each, "size") else None
        for key, each in metadata.items()
    }
    checkpoint.load(template, storage_reader=reader)
    return {key.removeprefix("local."): value for key, value in template.items()}


def sum_of_memories(states: Sequence[dict[str, Any]], down: bool, at: str = "") -> dict[str, Tensor]:
    """By parameter, over ranks; what was not sent up, or what the server did not send back."""
    sums: dict[str, Tensor] = {}
    for state in states:
        for key, value in state.items():
            match = re.fullmatch(rf"{at}memory/rank\d+/(.*?)/(.*/)?memory", key)
            if match and ("down" in key) == down:
                sums[match[1]] = sums.get(match[1], torch.zeros(())) + value.double()
    return sums


@pytest.mark.parametrize(("before", "after"), [(3, 3), (3, 2), (2, 3)])
def test_another_number_of_ranks_keeps_the_sum_of_memories_over_their_number(
    before: int, after: int, tmp_path: Path
) -> None:
    saved, loaded = on_ranks(before, save_distributed, str(tmp_path)), on_ranks(after, load_distributed, str(tmp_path))
    for name in ANOTHER_WORLD:
        then, now = [state[name] for state in saved], [state[name] for state in loaded]
        for at in ("", "arrived/1/") if name == "late" else ("",):
            ups = sum_of_memories(then, False, at), sum_of_memories(now, False, at)
            assert ups[0]
            for parameter, total in ups[0].items():
                torch.testing.assert_close(ups[1][parameter] / after, total / before, rtol=1e-6, atol=1e-7)
        # A server's own memory counts once, and rank 0 is the server.
        downs = sum_of_memories(then, True), sum_of_memories(now[:1], True)
        assert any(total.any() for total in downs[0].values()) == (name == "server")
        for parameter, total in downs[0].items():
            torch.testing.assert_close(downs[1][parameter], total, rtol=1e-6, atol=1e-7)
        assert not any(x.any() for x in sum_of_memories(now[1:], True).values())
        for state in now:
            anchors = [key for key in then[0] if "anchor/" in key or "outer/" in key]
            assert all(same_bits(state[key], then[0][key]) for key in anchors)
        if before == after:
            own = [{k: v for k, v in state.items() if k != "rank"} for state in now]
            assert all(
                same_state(a, {k: v for k, v in b.items() if k != "rank"}) for a, b in zip(own, then, strict=True)
            )
        for state in loaded:
            assert all(same_bits(x, loaded[0][name, "after"][at]) for at, x in state[name, "after"].items())
            assert not all(same_bits(x, state[name][f"anchor/{at}"]) for at, x in state[name, "after"].items())


# Something is wrong


def told_by(action: Callable[[], Any]) -> str:
    try:
        action()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def load_what_does_not_fit() -> dict[str, str]:
    rank, method = dist.get_rank(), GATHERED["qsparse"]
    streamed = LocalMethod(AllGather(TOP), Streaming(6, 2, delay=2), InnerSGD(), OuterSGD())

    def trained(method: LocalMethod, model: nn.Module, seed: int = SEED, steps: int = 3) -> LocalUpdates:
        local = LocalUpdates(model, method, optimizer_of(method, model), seed=seed)
        for step in range(steps):
            inner_step(model, local.optimizer, rank, step)
            local.step()
        return local

    local, late = trained(method, net()), trained(streamed, net(), steps=5)
    state, flying = local.state_dict(), late.state_dict()
    everyone: list[Any] = [None, None]
    dist.all_gather_object(everyone, state)
    key = f"memory/rank0000{rank}/0.weight/memory"
    assert key in state
    assert "arrived/1/anchor/0.weight" not in flying
    assert "arrived/1/anchor/2.weight" in flying
    without = {k: v for k, v in state.items() if k != key}
    bad = {
        "none": {"step": 3},
        "another rank's": everyone[1 - rank],
        "another method": trained(recipes.qsparse_local_sgd(k=7, h=3), net()).state_dict(),
        "another seed": trained(method, net(), seed=6).state_dict(),
        "another model": trained(method, nn.Sequential(*net()[:4], nn.Linear(3, 3))).state_dict(),
        "three ranks, one missing": state | {"world_size": 3},
        "no memory": without,
        "memory of another shape": state | {key: torch.zeros(3)},
        "memory of another type": state | {key: state[key].double()},
        "no anchor": {k: v for k, v in state.items() if k != "anchor/0.bias"},
        "anchor of another shape": state | {"anchor/0.bias": torch.zeros(2)},
        "no steps": state | {"step": "three"},
        "format": state | {"version": 0},
    }
    bad_flying = {
        "no result": {k: v for k, v in flying.items() if k != "arrived/1/skipped"},
        "no mean": {k: v for k, v in flying.items() if k != "arrived/1/mean/0"},
        "no buffer": {k: v for k, v in flying.items() if k != "arrived/1/buffer/1"},
        "no outer": {k: v for k, v in flying.items() if k != "outer/0.bias"},
    }
    told = {}
    for each, cases in ((local, bad), (late, bad_flying)):
        before = copy.deepcopy(each.state_dict())
        for name, case in cases.items():
            told[name] = told_by(lambda each=each, case=case: each.load_state_dict(case))
            assert same_state(each.state_dict(), before), name
    return told


def test_states_that_do_not_fit_are_told_in_a_sentence_and_change_nothing() -> None:
    method, cure = GATHERED["qsparse"], "make LocalUpdates as it was then, or go on with empty memories."
    altered = "the state is incomplete or altered, so use another checkpoint."
    no_state = f"is no state of {method.aggregator!r}; it is incomplete or altered, so use another checkpoint."
    for rank, told in enumerate(on_ranks(2, load_what_does_not_fit)):
        other = 1 - rank
        expected = {
            "none": "this is no state of LocalUpdates; pass what state_dict() gave.",
            "another rank's": f"the state of 2 ranks holds the memories of [{other}] and rank {rank} of 2 needs "
            f"those of [{rank}] too; load rank {rank}'s own.",
            "another method": f"the state was saved with method {recipes.qsparse_local_sgd(k=7, h=3)!r}, here it is "
            f"{method!r}; {cure}",
            "another seed": f"the state was saved with seed 6, here it is 5; {cure}",
            "another model": "the state was saved with parameter/4.weight float32[3, 3], here it is absent; " + cure,
            "three ranks, one missing": f"the state of 3 ranks holds the memories of [{rank}] and rank {rank} of 2 "
            f"needs those of {[other, 2]} too; load the merged states of all 3 ranks.",
            "no memory": f"what was saved for parameter '0.weight' {no_state}",
            "memory of another shape": f"what was saved for parameter '0.weight' {no_state}",
            "memory of another type": f"what was saved for parameter '0.weight' {no_state}",
            "no anchor": f"'anchor/0.bias' is missing or is not torch.float32 of shape (8,); {altered}",
            "anchor of another shape": f"'anchor/0.bias' is missing or is not torch.float32 of shape (8,); {altered}",
            "no steps": f"'step' is missing or no count, got 'three'; {altered}",
            "format": f"the state was saved with version 0, here it is 1; {cure}",
            "no result": f"'arrived/1/skipped' is missing or no count, got None; {altered}",
            "no mean": f"'arrived/1/mean/0' is missing or is not torch.float32 of shape (8,); {altered}",
            "no buffer": f"'arrived/1/buffer/1' is missing or is not torch.float32 of shape (8,); {altered}",
            "no outer": f"'outer/0.bias' is missing or is not torch.float32 of shape (8,); {altered}",
        }
        assert told == {name: f"ValueError: load_state_dict: {sentence}" for name, sentence in expected.items()}


def disagree() -> list[str]:
    rank = dist.get_rank()
    odd = nn.Sequential()
    odd.add_module(f"layer{rank}", nn.Linear(3, 2))
    told = []
    for model, method, seed in [
        (net(), recipes.local_sgd(h=2 + rank), 0),
        (net(), recipes.local_sgd(), rank),
        (odd, recipes.local_sgd(), 0),
    ]:
        optimizer = optimizer_of(method, model)
        told.append(told_by(lambda m=model, a=method, o=optimizer, s=seed: LocalUpdates(m, a, o, seed=s)))
    return told


def test_ranks_that_disagree_are_told_both_sides() -> None:
    one, other = on_ranks(2, disagree)
    assert one == other
    cure = "; give every rank the same."
    assert one == [
        f"ValueError: LocalUpdates: the ranks disagree on method: rank 0 has {recipes.local_sgd(h=2)!r}, rank 1 has "
        f"{recipes.local_sgd(h=3)!r}{cure}",
        f"ValueError: LocalUpdates: the ranks disagree on seed: rank 0 has 0, rank 1 has 1{cure}",
        "ValueError: LocalUpdates: the ranks disagree on parameter/layer0.weight: rank 0 has float32[2, 3], rank 1 has "
        f"absent{cure}",
    ]


def meet_a_nan() -> dict[str, Any]:
    """Three steps, three with a NaN in a parameter of rank 1, three more."""
    rank, results = dist.get_rank(), {}
    for name in ("qsparse", "server", "local_sgd"):
        method = METHODS[name]
        model = net()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)  # keeps no NaN
        local = LocalUpdates(model, method, optimizer, seed=SEED)
        h = method.schedule.gap()
        for step in range(h):
            inner_step(model, optimizer, rank, step)
            local.step()
        before = copy.deepcopy(local.state_dict())
        for step in range(h):
            inner_step(model, optimizer, rank, step)
            if rank == 1 and step == h - 1:
                with torch.no_grad():
                    model[3].weight[0, 0] = torch.nan
            local.step()
        after, model_after = copy.deepcopy(local.state_dict()), values(model)
        for step in range(h):
            inner_step(model, optimizer, rank, step)
            local.step()
        results[name] = {
            "unchanged": same_state(after, before | {"step": 2 * h}),
            "at the anchor": all(same_bits(model_after[at], x) for at, x in local_anchors(before).items()),
            "moved on": not same_state(after | {"step": 3 * h}, local.state_dict()),
            "finite": all(x.isfinite().all() for x in values(model).values()),
            "stats": (local.stats().syncs, local.stats().skipped_syncs),
            "printed": str(local.stats()),
        }
    return results


def local_anchors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key.removeprefix("anchor/"): x for key, x in state.items() if key.startswith("anchor/")}


def test_a_nan_on_one_rank_changes_no_anchor_and_no_memory_on_any() -> None:
    for results in on_ranks(2, meet_a_nan):
        for name, result in results.items():
            assert all(result[what] for what in ("unchanged", "at the anchor", "moved on", "finite")), (name, result)
            assert result["stats"] == (2, 1)
            assert "2 syncs (1 skipped)" in result["printed"]


# A world of one, in this process


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE)


@pytest.mark.usefixtures("alone")
def test_unsuitable_arguments() -> None:
    model, method = net(), recipes.local_sgd()
    optimizer = sgd(model)
    late = recipes.qsparse_local_sgd(asynchronous=True)
    general = "take one such as recipes.local_sgd(h=8), or attach(...) for methods that exchange gradients."
    site = dist.new_group([0])
    lonely = nn.Linear(2, 2)
    of_lonely = torch.optim.SGD(lonely.parameters(), lr=0.1)
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (
            lambda: LocalUpdates(model, "local_sgd(h=2)", optimizer),  # type: ignore[arg-type]
            TypeError,
            "LocalUpdates: method must be a LocalMethod, got 'local_sgd(h=2)'; "
            "write thriftgrad.parse('local_sgd(h=2)').",
        ),
        (
            lambda: LocalUpdates(model, recipes.top_k(), optimizer),  # type: ignore[arg-type]
            TypeError,
            f"LocalUpdates: method must be a LocalMethod, got {recipes.top_k()!r}; {general}",
        ),
        (
            lambda: LocalUpdates(model, AllGather(TOP), optimizer),  # type: ignore[arg-type]
            TypeError,
            f"LocalUpdates: method must be a LocalMethod, got {AllGather(TOP)!r}; {general}",
        ),
        (
            lambda: LocalUpdates(model, late, optimizer),
            ValueError,
            f"LocalUpdates: the workers of {late!r} call a server, each when it suits them; use serve(...) there and "
            "AsyncUpdates(...) here.",
        ),
        (
            lambda: LocalUpdates(nn.Tanh(), method, optimizer),
            ValueError,
            "LocalUpdates: there are no parameters that require gradients; pass the module to be trained.",
        ),
        (
            lambda: LocalUpdates(net().requires_grad_(False), method, optimizer),
            ValueError,
            "LocalUpdates: there are no parameters that require gradients; pass the module to be trained.",
        ),
        (
            lambda: LocalUpdates(model, method, optimizer, seed=-1),
            ValueError,
            "Key: seed must lie in [0, 2**64), got -1.",
        ),
        (
            lambda: LocalUpdates(model, method, optimizer, site=site),
            ValueError,
            "LocalUpdates: a site is one of several; give the group of their first ranks as group=...",
        ),
        (
            lambda: LocalUpdates(nn.Linear(2, 2), method, optimizer),
            ValueError,
            "LocalUpdates: the optimizer does not hold parameter 'weight' and 1 more; pass the one that trains this "
            "model.",
        ),
        (
            lambda: LocalUpdates(model, method, "sgd"),
            TypeError,
            "LocalUpdates: optimizer must be the inner torch.optim.Optimizer, got 'sgd'; pass that.",
        ),
        (
            lambda: LocalUpdates(model.parameters(), method, optimizer),
            TypeError,
            "expected a module or its named_parameters(), got generator of Parameter; pass the module itself.",
        ),
        (
            lambda: LocalUpdates({"x": torch.ones(2, dtype=torch.int64)}, method, optimizer),
            TypeError,
            "parameter 'x' must be a tensor of floating-point numbers, got torch.int64; leave it out.",
        ),
        (
            lambda: LocalUpdates([("x", torch.ones(2)), ("x", torch.ones(3))], method, optimizer),
            ValueError,
            "two parameters are named 'x'; give each a name of its own.",
        ),
        (
            lambda: LocalUpdates(lonely, recipes.streaming_diloco(h=6, fragments=3), of_lonely),
            ValueError,
            "Streaming: a model of 1 modules cannot be divided into 3 fragments.",
        ),
    ]
    for make, kind, sentence in cases:
        with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
            make()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["qsparse", "streaming", "local_sgd"])
def test_a_world_of_one_is_the_simulation_of_one(name: str) -> None:
    model = net()
    optimizer = optimizer_of(METHODS[name], model)
    with LocalUpdates(model, METHODS[name], optimizer, seed=SEED) as local:
        for step in range(STEPS):
            inner_step(model, optimizer, 0, step)
            local.step()
    (expected,) = simulated(METHODS[name], 1)
    assert all(same_bits(x, values(expected)[at]) for at, x in values(model).items())


@pytest.mark.usefixtures("alone")
def test_parameters_by_name_are_the_modules_without_its_buffers() -> None:
    ends = []
    for given in (dict, list, iter):
        model = net()
        optimizer = optimizer_of(REDUCED["local_sgd"], model)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        with LocalUpdates(given(named), REDUCED["local_sgd"], optimizer) as local:
            assert list(local.anchors()) == [name for name, _ in named]
            for step in range(4):
                inner_step(model, optimizer, 0, step)
                local.step()
        ends.append(values(model))
    (expected,) = simulated(REDUCED["local_sgd"], 1, steps=4)
    for end in ends:
        assert all(same_bits(x, values(expected)[at]) for at, x in end.items())


@pytest.mark.usefixtures("alone")
def test_steps_of_the_optimiser_and_its_learning_rate_are_the_callers() -> None:
    # Two groups of different rates, of which the outer optimiser sees each parameter's own, as it is at the sync.
    x, y = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([{"params": [x], "lr": 0.5}, {"params": [y], "lr": 0.25}])
    method = recipes.demo(k=1, chunk=1)
    with LocalUpdates({"x": x, "y": y}, method, optimizer) as local:
        x.grad, y.grad = torch.tensor([3.0]), torch.tensor([-3.0])
        optimizer.step()
        optimizer.param_groups[1]["lr"] = 0.125
        local.step()
    assert (x.item(), y.item()) == (0.5, 1.125)  # by the sign times the learning rate


@pytest.mark.usefixtures("alone")
def test_after_closing_there_is_no_step() -> None:
    model = net()
    local = LocalUpdates(model, recipes.local_sgd(h=9), sgd(model))
    local.step()
    local.close()
    local.close()
    sentence = "LocalUpdates: this one is closed and synchronises no more; make another to train on."
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        local.step()
    assert local.stats().steps == 1  # what it has counted is still there
    assert list(memories(local._replica.parts[0].exchange)) == []
