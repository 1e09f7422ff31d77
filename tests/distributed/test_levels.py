"""Quantisers under DDP on real processes: levels agreed on, streams of varying length, shared scales, checkpoints."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import on_ranks
from distributed.training import SEED, SMALL_BUCKETS, Net, attached, simulated, train, trained
from samples import same_bits
from thriftgrad import QSGD, AllGather, ErrorFeedback, ParameterServer, ScatterReduce, TopK, attach, recipes
from thriftgrad.compress import ALQ, AMQ, AMQ_N, Lloyd, TernGrad
from thriftgrad.wire.coders import Elias, GolombRice, Huffman

pytestmark = pytest.mark.xdist_group("distributed")

STEPS = 10
OFTEN: dict[str, Any] = {"bucket": 64, "update_at": (0, 2), "update_every": 8}

PER_TENSOR = (
    recipes.terngrad().aggregator,
    AllGather(QSGD(bits=3, bucket=64) >> Elias()),
    AllGather(ALQ(bits=2, **OFTEN) >> Huffman()),
    ScatterReduce(QSGD(bits=3) >> Elias(), AMQ(bits=3, **OFTEN)),
    ParameterServer(TernGrad(), QSGD(bits=4) >> Huffman()),
    AllGather(ErrorFeedback(TopK(fraction=0.2, index_coder=GolombRice()) >> Lloyd(bits=2, **OFTEN))),
)
AS_ONE = (
    recipes.alq().aggregator,
    AllGather(AMQ(bits=3, per_tensor=False, **OFTEN)),
)


def levels_of(state: dict[str, Any]) -> dict[str, Any]:
    """Versions and levels of all parameters, by names without the rank."""
    return {
        path.split("/", 2)[2]: leaf
        for path, leaf in state.items()
        if path.split("/")[-1] in ("version", "levels", "updated", "step") and "/" in path
    }


def train_each() -> list[dict[str, Any]]:
    results = []
    for method in PER_TENSOR + AS_ONE:
        model, handle = attached(method, **SMALL_BUCKETS)
        train(model, range(STEPS))
        results.append(
            {
                "parameters": trained(model.module),
                "levels": levels_of(handle.state_dict()),
                "requests": dict(handle.ledger.requests),
                "books": handle.ledger.per_worker,
                "skipped": handle.stats().skipped_steps,
            }
        )
        handle.close()
    return results


@pytest.fixture(scope="module")
def on_gloo() -> list[list[dict[str, Any]]]:
    return on_ranks(2, train_each)


@pytest.mark.parametrize("row", range(len(PER_TENSOR)), ids=[repr(method) for method in PER_TENSOR])
def test_training_equals_the_simulation(row: int, on_gloo: list[list[dict[str, Any]]]) -> None:
    expected = simulated(PER_TENSOR[row], world=2, steps=STEPS)
    for rank in range(2):
        found = on_gloo[rank][row]
        assert found["skipped"] == 0
        for name, value in expected.items():
            assert same_bits(found["parameters"][name], value), name


METHODS = PER_TENSOR + AS_ONE


@pytest.mark.parametrize("row", range(len(METHODS)), ids=[repr(method) for method in METHODS])
def test_replicas_and_their_levels_stay_equal(row: int, on_gloo: list[list[dict[str, Any]]]) -> None:
    """With all tensors of a DDP bucket as one vector too, whose buckets DDP regroups after the first step."""
    one, other = (ranks[row] for ranks in on_gloo)
    start = trained(Net())
    assert any(not torch.equal(value, start[name]) for name, value in one["parameters"].items())
    for name, value in one["parameters"].items():
        assert value.isfinite().all()
        assert same_bits(other["parameters"][name], value), name
    assert one["levels"].keys() == other["levels"].keys()
    for path, leaf in one["levels"].items():
        assert same_bits(leaf, other["levels"][path]) if isinstance(leaf, Tensor) else leaf == other["levels"][path]
    if "update_at" in repr(METHODS[row]) or METHODS[row] == recipes.alq().aggregator:
        fits = 3 if "update_at" in repr(METHODS[row]) else 1  # at 0, 2 and 8; at 0
        assert {leaf for path, leaf in one["levels"].items() if path.endswith("version")} == {1 + fits}


def test_several_ddp_buckets_were_there(on_gloo: list[list[dict[str, Any]]]) -> None:
    for row in range(len(METHODS)):
        assert sum(on_gloo[0][row]["requests"].values()) > 4 * STEPS
        # Both ranks' books are the same, though the lengths of streams are known after they were made.
        assert on_gloo[0][row]["books"] == on_gloo[1][row]["books"]


CHECKPOINTED = (
    AllGather(ErrorFeedback(Lloyd(bits=2, **OFTEN))),
    ScatterReduce(ALQ(bits=2, **OFTEN), AMQ(bits=4, **OFTEN)),
    ParameterServer(AMQ(bits=3, **OFTEN) >> Huffman(), AMQ_N(bits=3, **OFTEN)),
)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def stop_and_go_on() -> list[dict[str, Any]]:
    """Each method for four steps; the same, stopped and saved after some, and gone on in another cut of DDP buckets."""
    results = []
    for method in CHECKPOINTED:
        model, handle = attached(method)
        train(model, range(4))
        results.append({"whole": (trained(model.module), handle.state_dict()), "stopped": []})
        for stop in (1, 2):
            model, handle = attached(method)
            train(model, range(stop))
            saved, weights = through_a_file(handle.state_dict()), model.module.state_dict()
            net = Net()
            net.load_state_dict(weights)
            again = DistributedDataParallel(net, **SMALL_BUCKETS)
            other = attach(again, method, SEED)
            other.load_state_dict(saved)
            train(again, range(stop, 4))
            results[-1]["stopped"].append((trained(again.module), other.state_dict()))
    return results


def test_save_load_continue_equals_continue() -> None:
    for results in on_ranks(2, stop_and_go_on):
        for method, result in zip(CHECKPOINTED, results, strict=True):
            parameters, state = result["whole"]
            for stopped, after in result["stopped"]:
                assert all(same_bits(stopped[name], value) for name, value in parameters.items()), method
                assert after.keys() == state.keys()
                for path, leaf in state.items():
                    same = same_bits(after[path], leaf) if isinstance(leaf, Tensor) else after[path] == leaf
                    assert same, f"{path} of {method!r}"


def load_on_one_rank(method: Any) -> tuple[str, float]:
    """Rank 0 goes back to its own checkpoint of the first step, rank 1 trains on."""
    model, handle = attached(method)
    train(model, [0])
    saved = handle.state_dict()
    train(model, [1, 2])
    if dist.get_rank() == 0:
        handle.load_state_dict(saved)
    start = time.monotonic()
    try:
        train(model, [3])
    except ValueError as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "no error", 0.0


@pytest.mark.parametrize(
    "method",
    [
        AllGather(ALQ(bits=3, bucket=64, update_at=(0, 2), update_every=None)),
        AllGather(ALQ(bits=3, bucket=64, per_tensor=False, update_at=(0, 2), update_every=None)),
        AllGather(ErrorFeedback(Lloyd(bits=3, bucket=64, update_at=(0, 2), update_every=None))),
    ],
    ids=repr,
)
def test_a_checkpoint_loaded_on_one_rank_alone_is_refused_at_the_next_step(method: Any) -> None:
    """Rank 0 is at step 1 with the levels of step 0, rank 1 at step 3 with those of step 2."""
    results = on_ranks(2, load_on_one_rank, method, group_timeout_seconds=10)
    for rank, (told, seconds) in enumerate(results):
        theirs, mine = (3, 2) if rank == 0 else (2, 3)
        assert told == (
            f"PayloadError: payload: packed with levels of version {theirs}, and version {mine} is held here; "
            "bring all workers to one state, for instance from one checkpoint."
        )
        assert seconds < 5


def restart_from_different_files(method: Any) -> str:
    """Each rank is restarted; rank 0 takes its file of step 4, at which levels are due, rank 1 that of step 5."""
    model, handle = attached(method)
    train(model, range(4))
    early = handle.state_dict()
    train(model, [4])
    late = handle.state_dict()
    again, other = attached(method)
    other.load_state_dict(through_a_file(early if dist.get_rank() == 0 else late))
    try:
        train(again, [5])
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("weights", [{}, {"weight_power": 0}], ids=repr)
def test_ranks_restarted_from_different_files_are_told_before_anything_is_exchanged(weights: dict[str, int]) -> None:
    method = AllGather(ALQ(bits=3, bucket=64, update_at=(0,), update_every=4, **weights))
    for told in on_ranks(2, restart_from_different_files, method, group_timeout_seconds=20):
        assert told.startswith("thriftgrad: the ranks disagree on the levels of ")
        assert "rank 0 has version 2 at step 4 (digest " in told
        assert "rank 1 has version 3 at step 5 (digest " in told
        assert told.endswith("; give every rank the same.")
