"""Budgeted under DDP: what real ranks do is what the simulator does, within the budget, and a checkpoint goes on."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import on_ranks
from distributed.training import SMALL_BUCKETS, Net, attached, simulated, train, trained
from samples import same_bits
from thriftgrad import QSGD, AllGather, Budgeted, ErrorFeedback, PowerSGD, TopK, attach

pytestmark = pytest.mark.xdist_group("distributed")

METHODS = (
    Budgeted(4000, tuple(PowerSGD(rank=rank, min_compression_rate=0) for rank in (1, 2, 4)), every=2),
    Budgeted(2000, (AllGather(QSGD(bits=4)), AllGather(ErrorFeedback(TopK(fraction=0.1))), PowerSGD(rank=2)), every=2),
)
STEPS = 6


def train_stop_and_go_on() -> list[dict[str, Any]]:
    """Six steps, and the same stopped after three, one step after a choice and one before the next."""
    results = []
    for method in METHODS:
        model, handle = attached(method)
        train(model, range(STEPS))
        whole, book = trained(model.module), handle.ledger
        model, handle = attached(method)
        train(model, range(3))
        saved, net = handle.state_dict(), Net()
        net.load_state_dict(model.module.state_dict())
        again = DistributedDataParallel(net)
        other = attach(again, method, seed=3)
        other.load_state_dict(saved)
        train(again, range(3, STEPS))
        # memory/rank00000/conv1.weight/by_candidate/2/step: the candidate is named by the path.
        chosen = {path.split("/by_candidate/")[1].split("/")[0] for path in saved if "/by_candidate/" in path}
        results.append({"whole": whole, "continued": trained(net), "bytes": book.payload_up_bytes, "chosen": chosen})
    return results


def test_two_ranks_do_what_is_simulated_and_a_checkpoint_goes_on() -> None:
    for results in on_ranks(2, train_stop_and_go_on):
        for method, result in zip(METHODS, results, strict=True):
            expected = simulated(method, 2, STEPS)
            assert len(result["chosen"]) > 1
            for name, value in expected.items():
                assert (result["whole"][name] - value).abs().max() <= 1e-5, f"{name} of {method!r}"
                assert same_bits(result["continued"][name], result["whole"][name]), f"{name} of {method!r}"
            tables = 3 * 8 * len(expected) * len(method.candidates)
            assert result["bytes"] <= STEPS * method.bytes_per_step + tables


def train_in_small_buckets() -> dict[str, Any]:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("thriftgrad").addHandler(handler)
    logging.getLogger("thriftgrad").setLevel(logging.INFO)
    model, handle = attached(METHODS[0], **SMALL_BUCKETS)
    train(model, range(STEPS))
    told = [message for message in records if message.startswith("Budgeted: the choice within ")]
    return {"model": trained(model.module), "bytes": handle.ledger.payload_up_bytes, "told": told}


def test_many_buckets_share_one_budget_and_rank_0_tells_of_it() -> None:
    one, other = on_ranks(2, train_in_small_buckets)
    assert all(same_bits(one["model"][name], value) for name, value in other["model"].items())
    tables = 4 * 8 * len(one["model"]) * len(METHODS[0].candidates)  # one more as DDP may regroup after the first step
    assert one["bytes"] <= STEPS * METHODS[0].bytes_per_step + tables
    assert one["told"]
    assert not other["told"]
