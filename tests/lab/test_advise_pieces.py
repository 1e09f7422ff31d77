"""Pieces that were measured at two and at four workers say what they are at any number."""

from __future__ import annotations

import pytest
import torch

from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    BestRank,
    ErrorFeedback,
    Identity,
    Key,
    LinkModel,
    Partition,
    PowerSGD,
    ScatterReduce,
    TensorSpec,
    TopK,
    simulate,
)
from thriftgrad.aggregate import Aggregator, ParameterServer
from thriftgrad.comm import Round, all_reduce, place
from thriftgrad.comm.requests import AllGatherRequest, AllReduceRequest, AllToAllRequest, BroadcastRequest, Request
from thriftgrad.comm.rounds import Traffic
from thriftgrad.compress import Cast, Sign
from thriftgrad.lab.advise.choice import fastest_aggregator, link_seconds
from thriftgrad.lab.advise.codec import code, plain
from thriftgrad.lab.advise.errors import AdviseError
from thriftgrad.lab.advise.gradients import Gradients
from thriftgrad.lab.advise.pieces import FEW, MANY, Bytes, Line, Seen, fitted
from thriftgrad.lab.advise.step import Flight
from thriftgrad.lab.advise.transport import Cost, Transport

X = torch.zeros(4096)
KINDS = {
    "all-reduce": lambda n: AllReduceRequest(X),
    "all-gather": lambda n: AllGatherRequest(X),
    "all-to-all": lambda n: AllToAllRequest(tuple(X.tensor_split(n))),
    "all-gather of shards": lambda n: AllGatherRequest(X.tensor_split(n)[0]),
    "broadcast": lambda n: BroadcastRequest(X, TensorSpec.of(X), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_hops_follow_the_closed_forms_of_each_collective(kind: str) -> None:
    def seen(n: int) -> Seen:
        request: Request = KINDS[kind](n)
        return Seen((kind,), (request.traffic(0, n),), (1.0, 1.0))

    (found,) = fitted(seen(FEW), seen(MANY)).rounds
    for n in (2, 3, 4, 8, 64, 1024):
        expected = KINDS[kind](n).traffic(0, n)
        traffic = found.traffic(n)
        assert traffic.up_bytes == pytest.approx(expected.up_bytes, abs=4 * n)  # a shard of 4 bytes more or less each
        assert traffic.down_bytes == pytest.approx(expected.down_bytes, abs=4 * n)
        assert traffic.hops == expected.hops


def test_only_what_reads_an_answer_that_grows_grows_with_the_workers() -> None:
    gathered = [Traffic(10, 10 * (n - 1), 10 * (n - 1), 10 * (n - 1), n - 1) for n in (FEW, MANY)]
    few, many = (
        Seen(("AllGather",), (traffic,), (encode, decode))
        for traffic, encode, decode in zip(gathered, (1.0, 1.2), (2.0, 4.0), strict=True)
    )
    pieces = fitted(few, many)
    assert pieces.rounds[0].compute_seconds == Line(pytest.approx(1.1))
    assert [pieces.decode_seconds.at(n) for n in (2, 4, 64)] == [2.0, 4.0, 64.0]

    summed = [Traffic(10, 10, 10, 10, n - 1) for n in (FEW, MANY)]
    few, many = (Seen(("AllReduce",), (traffic,), (1.0, d)) for traffic, d in zip(summed, (2.0, 4.0), strict=True))
    assert fitted(few, many).decode_seconds == Line(3.0)


def test_noise_does_not_make_workers_or_bytes_negative() -> None:
    assert Line.through(2.0, 1.0) == Line(1.5)
    assert Bytes.through(100, 320) == Bytes(0.0, 100.0)  # lengths that depend on the data


def test_a_flight_takes_the_link_or_the_processor_whichever_is_longer() -> None:
    traffic = Traffic(0, 0, 1000, 500, 2)
    link = LinkModel(8e6, latency_seconds=0.001)
    assert Transport("", link).flight("AllReduce", traffic) == Flight(pytest.approx(0.003))
    costs = {"AllGather": Cost(link, 1e-6), "AllToAll": Cost(LinkModel(8e9), 1e-6)}
    transport = Transport("", link, costs)
    assert transport.flight("AllGather", traffic) == Flight(pytest.approx(0.003), pytest.approx(1 / 3))
    assert transport.flight("AllToAll", traffic) == Flight(pytest.approx(0.001), pytest.approx(1))
    assert transport.at(8e5).flight("AllGather", traffic).seconds == pytest.approx(0.012)
    assert transport.at(8e5).at(8e6) == transport
    assert Transport("", LinkModel(8e6, 4e6)).at(16e6).link == LinkModel(16e6, 8e6)


def gradients(workers: int = MANY) -> Gradients:
    """Of a matrix and a vector in one DDP bucket, and another matrix in a second."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((40, 30), (30,)), ((20, 50),)
    return Gradients(
        (("a", "b"), ("c",)),
        tuple(
            tuple(tuple(torch.randn(s, generator=generator) for s in each) for each in shapes) for _ in range(workers)
        ),
    )


METHODS: dict[str, Aggregator] = {
    "bf16": AllReduce(Cast("bf16")),
    "4 bits, gathered": AllGather(QSGD(bits=4, per_tensor=False)),
    "4 bits, two phases": ScatterReduce(QSGD(bits=4, per_tensor=False), QSGD(bits=4, per_tensor=False)),
    "sign with memory": AllGather(ErrorFeedback(Sign())),
    "server": ParameterServer(TopK(fraction=0.1), Identity()),
    "low rank": PowerSGD(rank=2),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_pieces_of_a_method_carry_the_bytes_of_its_simulation(method: str) -> None:
    """The oracle is the simulation of eight workers, which the pieces have not seen."""
    given, aggregator = gradients(), METHODS[method]
    coded = code(aggregator, given, workers=8)
    for at, names in enumerate(given.names):
        tensors = given.batches[0][at]
        state = aggregator.init([TensorSpec.of(x, name) for x, name in zip(tensors, names, strict=True)])
        rounds: list[Round] = []
        simulate([aggregator.aggregate(tensors, state, Key(1)) for _ in range(8)], rounds.append)
        flights = [each for each in rounds if each.traffic]
        assert len(flights) == len(coded.buckets[at].rounds)
        for piece, seen in zip(coded.buckets[at].rounds, flights, strict=True):
            assert piece.kind.split()[0] == seen.kind
            most = max(traffic.up_bytes for traffic in seen.traffic.values())
            assert piece.up_bytes.at(8) == pytest.approx(most, rel=0.05, abs=70)
            assert piece.hops.at(8) == max(traffic.hops for traffic in seen.traffic.values())


def test_distortion_is_that_of_the_mean_of_the_workers_there_will_be() -> None:
    given = gradients()
    exact = code(AllReduce(Identity()), given, workers=2)
    assert exact.distortion == pytest.approx(0, abs=1e-12)
    assert plain(given).distortion == 0
    two, many = (code(METHODS["4 bits, gathered"], given, workers).distortion for workers in (2, 8))
    assert 0 < two < 4
    # Independent errors: the mean of four is off by a quarter of one's, as its own square is a quarter.
    assert many == pytest.approx(two, rel=0.3)
    keeps = code(AllGather(TopK(fraction=0.1)), given, workers=4).distortion
    assert 0.3 < keeps < 0.95


def test_ddps_own_exchange_is_an_all_reduce_of_float32() -> None:
    coded = plain(gradients())
    assert [[each.kind for each in bucket.rounds] for bucket in coded.buckets] == [["AllReduce float32"]] * 2
    assert coded.buckets[0].up_bytes(2) == 4 * (40 * 30 + 30)
    assert coded.buckets[0].decode_seconds == Line(0.0)


def test_a_sum_is_named_after_the_width_of_its_numbers() -> None:
    kinds = [each.kind for each in code(METHODS["bf16"], gradients(), 2).buckets[0].rounds]
    assert kinds == ["AllReduce bfloat16"]


def test_an_aggregator_that_does_not_suit_the_model_is_refused() -> None:
    with pytest.raises(AdviseError, match=r"does not suit this model .*no rule fits tensor 'b'"):
        code(Partition({"matrix": PowerSGD()}), gradients(), 2)


LINKS = {
    "bandwidth": LinkModel.of("10mbit"),
    "latency": LinkModel.of("10gbit,10ms"),
    "both": LinkModel.of("100mbit,1ms"),
}
COMPRESSORS = {
    "4 bits": QSGD(bits=4, per_tensor=False),
    "4 bits, tensor by tensor": QSGD(bits=4),
    "top 1 %": ErrorFeedback(TopK(fraction=0.01)),
    "bf16": Cast("bf16"),
    "nothing": Identity(),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_the_fastest_aggregator_is_that_of_the_simulation(compressor: str, link: str) -> None:
    chosen = COMPRESSORS[compressor]
    tensors = [torch.randn(300, 40), torch.randn(40)]
    specs = [TensorSpec.of(x, str(i)) for i, x in enumerate(tensors)]
    for workers in (2, 3, 8):
        modelled = link_seconds(chosen, specs, workers, LINKS[link])
        for aggregator, seconds in modelled.items():
            rounds: list[Round] = []
            comms = [aggregator.aggregate(tensors, aggregator.init(specs), Key(0)) for _ in range(workers)]
            simulate(comms, rounds.append)
            assert seconds == pytest.approx(sum(map(LINKS[link].seconds, rounds)), rel=0.03)
        fastest = fastest_aggregator(chosen, specs, workers, LINKS[link])
        assert modelled[fastest] == min(modelled.values())


def test_what_cannot_be_cut_into_shards_is_gathered() -> None:
    link = LinkModel.of("1mbit")
    assert fastest_aggregator(BestRank(rank=1), [TensorSpec((100, 100))], 64, link) == AllGather(BestRank(rank=1))


class Fickle(AllReduce):
    """Asks for one more sum among many."""

    def exchange(self, tensors, specs, states, key):  # type: ignore[no-untyped-def]
        me = yield from place()
        for _ in range(me.world // 3):
            yield from all_reduce(torch.zeros(1))
        return (yield from super().exchange(tensors, specs, states, key))


def test_what_changes_its_collectives_with_the_workers_cannot_be_foretold() -> None:
    with pytest.raises(AdviseError, match="other collectives among 4 workers than among 2, so more cannot be foretold"):
        code(Fickle(Identity()), gradients(), 2)


class Sometimes(AllReduce):
    """Asks for one more sum in its second step."""

    def exchange(self, tensors, specs, states, key):  # type: ignore[no-untyped-def]
        if key == Key(0).fold(1):
            yield from all_reduce(torch.zeros(1))
        return (yield from super().exchange(tensors, specs, states, key))


def test_what_is_asked_for_now_and_then_is_not_the_rule() -> None:
    assert [len(bucket.rounds) for bucket in code(Sometimes(Identity()), gradients(), 2).buckets] == [1, 1]
