"""Both byte books of every aggregator, by their closed forms."""

from __future__ import annotations

import atexit
import json
from typing import Any

import pytest
import torch

from samples import SHAPES, gradients, specs, step
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Identity,
    Key,
    Ledger,
    ParameterServer,
    Partition,
    PowerSGD,
    RandomK,
    ScatterReduce,
    Sign,
    TensorSpec,
    TopK,
    simulate,
    wire,
)
from thriftgrad.comm import Round, Traffic, all_gather, all_reduce, all_to_all, broadcast, gather
from thriftgrad.comm.ledger import LEDGER_FOLDER

NUMEL = [torch.Size(shape).numel() for shape in SHAPES.values()]
FLOATS = sum(NUMEL)
HEADER = 20


def ledger_of(aggregator: Any, world: int, steps: int = 1) -> Ledger:
    ledger, states = Ledger(), [aggregator.init(specs()) for _ in range(world)]
    for i in range(steps):
        _, states = step(aggregator, gradients(world, i), states, Key(i), ledger)
    return ledger


def message(compressor: Any, numel: list[int] = NUMEL) -> int:
    """The length of one message, from the layouts of the parts."""
    return HEADER + sum(compressor.layout(TensorSpec((n,))).nbytes for n in numel)


def test_the_header_is_counted() -> None:
    assert wire.HEADER_BYTES == HEADER


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_a_ring_all_reduce_moves_two_n_minus_one_over_n(world: int) -> None:
    ledger = ledger_of(AllReduce(Identity()), world)
    assert dict(ledger.requests) == {"AllReduce": 1}
    assert ledger.payload_up_bytes == ledger.payload_down_bytes == 4 * FLOATS
    assert ledger.up_bytes == ledger.down_bytes == -(-2 * (world - 1) * 4 * FLOATS // world)
    assert all(traffic.hops == 2 * (world - 1) for traffic in ledger.per_worker.values())


@pytest.mark.parametrize(
    ("compressor", "carrier_bytes"),
    [
        (Cast("bf16"), 2 * FLOATS),
        (RandomK(k=1), 4 * len(NUMEL)),
        (ErrorFeedback(RandomK(fraction=0.5, rescale=False)), 4 * sum(-(-n // 2) for n in NUMEL)),
        (RandomK(fraction=0.5) >> Cast("fp16"), 2 * sum(-(-n // 2) for n in NUMEL)),
    ],
    ids=repr,
)
def test_an_all_reduce_sends_the_carriers_alone(compressor: Any, carrier_bytes: int) -> None:
    ledger = ledger_of(AllReduce(compressor), 4)
    assert ledger.payload_up_bytes == carrier_bytes
    assert ledger.up_bytes == -(-6 * carrier_bytes // 4)


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("compressor", [Identity(), QSGD(bits=4), TopK(fraction=0.1) >> QSGD(bits=2), Sign()], ids=repr)
def test_an_all_gather_receives_everybody_elses_message(compressor: Any, world: int) -> None:
    ledger = ledger_of(AllGather(compressor), world)
    size = message(compressor)
    assert dict(ledger.requests) == {"AllGather": 1}
    assert ledger.payload_up_bytes == size
    assert ledger.payload_down_bytes == ledger.up_bytes == ledger.down_bytes == (world - 1) * size


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_scatter_reduce_moves_two_payloads_whatever_the_number_of_workers(world: int) -> None:
    up, down = QSGD(bits=4), Sign()
    ledger = ledger_of(ScatterReduce(up, down), world)
    assert dict(ledger.requests) == {"AllToAll": 1, "AllGather": 1}
    shards = [[len(part) for part in (torch.empty(n).tensor_split(world)[at] for n in NUMEL)] for at in range(world)]
    ups, downs = [message(up, shard) for shard in shards], [message(down, shard) for shard in shards]
    padded = max(downs)
    for rank, traffic in ledger.per_worker.items():
        away = sum(ups) - ups[rank]
        assert traffic.payload_up_bytes == away + padded
        assert traffic.payload_down_bytes == (world - 1) * (ups[rank] + padded)
        assert traffic.up_bytes == away + (world - 1) * padded
        assert traffic.down_bytes == (world - 1) * (ups[rank] + padded)
        assert traffic.hops == 2 * (world - 1)


def test_a_large_scatter_reduce_costs_two_payloads() -> None:
    """2 (n - 1) / n of the payload each way, but for headers and norms: here 1 % more."""
    world, n = 8, 80_000
    x, ledger, method = torch.randn(n), Ledger(), ScatterReduce(QSGD(bits=4), QSGD(bits=4))
    simulate([method.aggregate([x], method.init([TensorSpec.of(x)]), Key(0)) for _ in range(world)], ledger)
    assert ledger.up_bytes == pytest.approx(2 * 7 / 8 * n / 2, rel=0.03)
    assert ledger.up_bytes == ledger.down_bytes


@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_server_counts_both_directions(world: int) -> None:
    up, down = TopK(fraction=0.1), QSGD(bits=8)
    ledger = ledger_of(ParameterServer(up, down), world)
    a, b, others = message(up), message(down), world - 1
    assert dict(ledger.requests) == {"Gather": 1, "Broadcast": 1}
    hops = 2 if others else 0
    assert ledger.per_worker[0] == Traffic(b, others * a, others * b, others * a, hops)
    for rank in range(1, world):
        assert ledger.per_worker[rank] == Traffic(a, b, a, b, 2)
    assert ledger.up_bytes * world == ledger.down_bytes * world == others * (a + b)


def test_power_sgd_sends_its_factors_and_what_it_does_not_compress() -> None:
    ledger = ledger_of(PowerSGD(rank=1), 4, steps=2)
    compressed = [(8, 12), (3, 20), (8, 12)]
    plain = 7 + 1 + 18
    left, right = sum(n for n, _ in compressed) + plain, sum(m for _, m in compressed)
    assert dict(ledger.requests) == {"AllReduce": 4}
    assert ledger.payload_up_bytes == 2 * 4 * (left + right)
    assert ledger.up_bytes == 2 * (-(-6 * 4 * left // 4) - (-6 * 4 * right // 4))


def test_more_power_iterations_cost_more_rounds() -> None:
    ledger = ledger_of(PowerSGD(rank=1, power_iterations=3), 2)
    lefts, rights, plain = 8 + 3 + 8, 12 + 20 + 12, 26
    assert dict(ledger.requests) == {"AllReduce": 6}
    assert ledger.payload_up_bytes == 4 * (3 * (lefts + rights) + plain)


def test_before_the_start_power_sgd_sends_everything() -> None:
    ledger = ledger_of(PowerSGD(rank=1, start_after=2), 2, steps=2)
    assert dict(ledger.requests) == {"AllReduce": 2}
    assert ledger.payload_up_bytes == 2 * 4 * FLOATS


def test_mixed_types_travel_in_one_buffer_each() -> None:
    method, ledger = AllReduce(Identity()), Ledger()
    xs = [torch.ones(10), torch.ones(6).bfloat16(), torch.ones(5)]
    mine = [TensorSpec.of(x) for x in xs]
    simulate([method.aggregate(xs, method.init(mine), Key(0)) for _ in range(2)], ledger)
    assert dict(ledger.requests) == {"AllReduce": 2}
    assert ledger.payload_up_bytes == 4 * 15 + 2 * 6


def test_the_groups_of_a_partition_add_up() -> None:
    ledger = ledger_of(Partition({"vector": AllGather(Sign()), "rest": AllReduce(Cast("bf16"))}), 3)
    signs, halves = message(Sign(), [7, 1]), 2 * (FLOATS - 8)
    assert ledger.payload_up_bytes == signs + halves
    assert ledger.up_bytes == 2 * signs - (-4 * halves // 3)


@pytest.mark.parametrize(
    ("workers", "books"),
    [
        (lambda: [all_reduce(torch.ones(3)) for _ in range(3)], [Traffic(12, 12, 16, 16, 4)] * 3),
        (lambda: [all_gather(torch.ones(3)) for _ in range(3)], [Traffic(12, 24, 24, 24, 2)] * 3),
        (
            lambda: [all_to_all([torch.ones(1), torch.ones(2), torch.ones(3)]) for _ in range(3)],
            [Traffic(20, 8, 20, 8, 2), Traffic(16, 16, 16, 16, 2), Traffic(12, 24, 12, 24, 2)],
        ),
        (
            lambda: [gather(torch.ones(3), 1) for _ in range(3)],
            [Traffic(12, 0, 12, 0, 1), Traffic(0, 24, 0, 24, 1), Traffic(12, 0, 12, 0, 1)],
        ),
        (
            lambda: [broadcast(torch.ones(3), TensorSpec((3,)), 2) for _ in range(3)],
            [Traffic(0, 12, 0, 12, 1), Traffic(0, 12, 0, 12, 1), Traffic(12, 0, 24, 0, 1)],
        ),
    ],
)
def test_every_collective_by_hand(workers: Any, books: list[Traffic]) -> None:
    ledger = Ledger()
    simulate(workers(), ledger)
    assert [ledger.per_worker[rank] for rank in range(3)] == books
    assert sum(book.up_bytes for book in books) == sum(book.down_bytes for book in books)


def test_a_ledger_adds_up_and_prints() -> None:
    ledger = Ledger()
    assert (ledger.up_bytes, ledger.payload_down_bytes) == (0.0, 0.0)
    for _ in range(2):
        simulate([gather(torch.ones(3), 0) for _ in range(2)], ledger)
    assert (ledger.up_bytes, ledger.down_bytes) == (12.0, 12.0)  # the mean of a worker's 24 and the root's 0
    assert (ledger.payload_up_bytes, ledger.payload_down_bytes) == (12.0, 12.0)
    assert repr(ledger) == "Ledger(up_bytes=12, down_bytes=12, requests={'Gather': 2})"


def test_what_really_moved_is_left_in_the_folder_that_the_lab_names(tmp_path: Any, monkeypatch: Any) -> None:
    """A simulation moves nothing; on a real group a round holds everybody's traffic and this rank's seconds."""
    leave: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call: leave.append(call))
    Ledger()
    assert leave == []
    monkeypatch.setenv(LEDGER_FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    ledger = Ledger()
    simulate([gather(torch.ones(3), 0) for _ in range(2)], ledger)
    traffic = {0: Traffic(0, 12, 0, 12, 1), 1: Traffic(12, 0, 12, 0, 1)}
    for _ in range(2):
        ledger(Round("Gather", 2, traffic, {1: 0.5}, 0.25))
    ledger(Round("end", 2, {}, {1: 0.5}, 0.0))
    ((function, *arguments),) = leave
    function(*arguments)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"rank": "1", "up": 24, "down": 0}
