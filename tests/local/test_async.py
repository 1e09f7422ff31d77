"""The asynchronous server and its workers without a network: Algorithm 2, its books and its bad days."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from local import oracles
from samples import label, same_bits
from thriftgrad import (
    ALQ,
    QSGD,
    AllGather,
    ErrorFeedback,
    Identity,
    Key,
    Ledger,
    Nonzeros,
    ParameterServer,
    PayloadError,
    Sign,
    TopK,
    simulate,
    wire,
)
from thriftgrad.core import Compressor, memories
from thriftgrad.local import (
    AsyncServer,
    Caller,
    Every,
    Hub,
    LocalMethod,
    PerWorker,
    RandomGaps,
    Replica,
    Schedule,
    Verdict,
    tick,
)
from thriftgrad.local.letters import HEAD_BYTES, Push, Reply, read_push, read_reply, write_push, write_reply

Model = dict[str, Tensor]
TOP = ErrorFeedback(TopK(k=3))
SHAPES = {"weight": (6, 10), "bias": (25,)}


def model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def gradient(parameters: Model, rank: int, step: int) -> Model:
    """A noisy pull towards an optimum of the worker's own."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {
        name: p - rank + torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for name, p in parameters.items()
    }


def rates(rate: float) -> dict[str, float]:
    return dict.fromkeys(SHAPES, rate)


class Fleet:
    """R workers and a server on the common clock."""

    def __init__(self, method: LocalMethod, workers: int = 3, dtype: torch.dtype = torch.float32) -> None:
        self.models = [model(dtype) for _ in range(workers)]
        self.hub = Hub(method, model(dtype), workers, seed=5)
        self.callers = [Caller(method, each, rank, workers, seed=5) for rank, each in enumerate(self.models)]
        self.virtual = {name: p.double() for name, p in model(dtype).items()}
        self.ledger, self.verdicts = Ledger(), list[Verdict]()

    def advance(self, step: int, rate: float = 0.1) -> list[int]:
        """Everybody's local step; who is due."""
        for rank, each in enumerate(self.models):
            for name, g in gradient(each, rank, step).items():
                each[name].sub_(rate * g)
                self.virtual[name] -= rate * g.double() / len(self.models)
            self.callers[rank].advance()
        return [caller.rank for caller in self.callers if caller.due()]

    def run(self, steps: int, rate: float = 0.1) -> None:
        for step in range(steps):
            due = self.advance(step, rate)
            self.verdicts += tick(self.hub, self.callers, due, [rates(rate)] * len(self.callers), self.ledger).values()

    def owed(self, name: str) -> Tensor:
        """The right side of the invariant: (1/R) sum of memories and progress on the way, and the server's memory."""
        i = list(SHAPES).index(name)
        total = torch.zeros(SHAPES[name], dtype=torch.float64)
        for caller in self.callers:
            total += caller.drifts()[i].double()
            for memory in memories(caller.states[i]):
                total += memory.double()
        total /= len(self.callers)
        for memory in memories(self.hub.down[i] if self.hub.down else ()):
            total += memory.double()
        return total

    def gap(self) -> float:
        """How far the server's model is from where the invariant puts it."""
        gaps = [x.double() - self.virtual[name] - self.owed(name) for name, x in self.hub.model().items()]
        return max(float(gap.abs().max()) for gap in gaps)


def asynchronous(schedule: Schedule = Every(4), **settings: Any) -> LocalMethod:  # noqa: B008
    return LocalMethod(AsyncServer(**{"up": TOP} | settings), schedule)


# The algorithm


def synchronous(method: LocalMethod, workers: int, steps: int) -> tuple[list[Model], list[Replica]]:
    models = [model() for _ in range(workers)]
    replicas = [Replica(method, each, seed=5) for each in models]
    for step in range(steps):
        for rank, each in enumerate(models):
            for name, g in gradient(each, rank, step).items():
                each[name].sub_(0.1 * g)
            replicas[rank].advance()
        for part in replicas[0].starting():
            for replica, done in zip(replicas, simulate([r.exchange(part, rates(0.1)) for r in replicas]), strict=True):
                replica.land(part, done)
    return models, replicas


@pytest.mark.parametrize("h", [1, 4])
@pytest.mark.parametrize(
    ("up", "down"),
    [
        (TOP, None),
        (QSGD(bits=4), None),
        (Identity(), None),
        (TOP, Identity()),
        (TOP, ErrorFeedback(TopK(k=5))),
        (TOP, Nonzeros()),
        (QSGD(bits=4), ErrorFeedback(Sign())),
    ],
    ids=label,
)
def test_equal_sets_are_the_synchronous_method_to_the_bit(
    up: Compressor[Any, Any], down: Compressor[Any, Any] | None, h: int
) -> None:
    aggregator = AllGather(up) if down is None else ParameterServer(up, down)
    models, replicas = synchronous(LocalMethod(aggregator, Every(h)), 3, 24)
    fleet = Fleet(LocalMethod(AsyncServer(up, down), Every(h)))
    fleet.run(24)
    for name in SHAPES:
        assert all(same_bits(one[name], other[name]) for one, other in zip(fleet.models, models, strict=True))
        assert same_bits(fleet.hub.model()[name], replicas[0].anchors()[name])
    assert fleet.callers[1].memory_norm() == replicas[1].memory_norm()


def test_a_random_downlink_rounds_as_the_synchronous_one_where_steps_are_syncs() -> None:
    models, _ = synchronous(LocalMethod(ParameterServer(TOP, QSGD(bits=4)), Every(1)), 3, 10)
    fleet = Fleet(LocalMethod(AsyncServer(TOP, QSGD(bits=4)), Every(1)))
    fleet.run(10)
    assert all(same_bits(fleet.models[0][name], models[0][name]) for name in SHAPES)


SLOW = PerWorker((Every(2), RandomGaps(5, seed=1), Every(16)))


@pytest.mark.parametrize(
    "method",
    [
        asynchronous(RandomGaps(4)),
        asynchronous(SLOW),
        asynchronous(SLOW, down=ErrorFeedback(TopK(k=4))),
        asynchronous(SLOW, max_staleness=5),
        asynchronous(SLOW, up=QSGD(bits=4), max_staleness=5),
        asynchronous(RandomGaps(4), up=ErrorFeedback(Sign()), down=Identity()),
    ],
    ids=label,
)
def test_the_server_is_ahead_of_the_gradients_by_what_is_owed(method: LocalMethod) -> None:
    fleet = Fleet(method, dtype=torch.float64)
    for step in range(240):
        tick(fleet.hub, fleet.callers, fleet.advance(step), [rates(0.1)] * 3)
        # What an unbiased compressor rounds away is kept by nobody.
        assert fleet.gap() < 1e-12 or not method.aggregator.up.has_memory  # type: ignore[union-attr]
    assert sum(tally.applied for tally in fleet.hub.tallies) > 100
    if method.aggregator.max_staleness is not None:  # type: ignore[union-attr]
        assert fleet.hub.tallies[2].verdicts[Verdict.STALE] > 0
        assert fleet.hub.tallies[0].applied == 120


def test_progress_of_a_refused_worker_is_kept_without_a_memory_too() -> None:
    fleet = Fleet(asynchronous(SLOW, up=Identity(), max_staleness=5), dtype=torch.float64)
    fleet.run(200)
    assert fleet.hub.tallies[2].verdicts[Verdict.STALE] > 0
    assert fleet.gap() < 1e-12


def test_the_trajectory_is_that_of_plain_numpy() -> None:
    schedule, steps = RandomGaps(4, seed=2), 60
    workers = [torch.tensor(oracles.START) for _ in oracles.OPTIMA]
    method = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=1))), schedule)
    hub = Hub(method, {"x": torch.tensor(oracles.START)}, 2)
    callers = [Caller(method, {"x": x}, rank, 2) for rank, x in enumerate(workers)]
    sets = [{t for t in range(1, steps + 1) if schedule.due(t, rank)} for rank in range(2)]
    gradients = oracles.quadratics()
    trace = oracles.asynchronous(
        gradients, oracles.START, lambda x: oracles.top_k(x, 1), sets, [oracles.ETA] * steps, steps
    )
    for t in range(steps):
        for caller, x, g in zip(callers, workers, gradients, strict=True):
            x -= oracles.ETA * torch.from_numpy(g(x.numpy().copy(), t))
            caller.advance()
        tick(hub, callers, [c.rank for c in callers if c.due()], [{"x": oracles.ETA}] * 2)
        np.testing.assert_allclose(hub.model()["x"], trace[t + 1].x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(torch.stack(workers), trace[t + 1].local, rtol=0, atol=1e-12)


def test_one_worker_alone_is_divided_by_all() -> None:
    fleet = Fleet(LocalMethod(AsyncServer(Identity()), PerWorker((Every(1), Every(9), Every(9)))))
    before = fleet.hub.model()
    fleet.run(1)
    for name, x in fleet.hub.model().items():
        pushed = 0.1 * gradient(model(), 0, 0)[name]
        torch.testing.assert_close(x, before[name] - pushed / 3)


# What a worker gets


@pytest.mark.parametrize("down", [None, ErrorFeedback(TopK(k=4))])
def test_a_worker_that_was_away_gets_what_it_missed_or_a_dense_copy(down: Compressor[Any, Any] | None) -> None:
    fleet = Fleet(asynchronous(PerWorker((Every(1), Every(1), Every(99))), down=down))
    dense = 20 + 4 * (60 + 25)
    for missed in (1, 2, 9):
        for step in range(missed):
            due = fleet.advance(step)
            tick(fleet.hub, fleet.callers, due, [rates(0.1)] * 3)
        away = fleet.callers[2]
        letter = away.visit()
        assert fleet.hub.receive(2, letter) is Verdict.NOTHING
        answer = fleet.hub.reply(2)
        reply = read_reply(answer, 10**6)
        # Each change is a number, and for every message worker, length and 3 indices and values of two tensors.
        messages = [2, 3] if down is None else [1, 4]
        each = 4 + messages[0] * (12 + 20 + -(-messages[1] * 6 // 8) + -(-messages[1] * 5 // 8) + 8 * messages[1])
        size = 4 + missed * each
        assert len(answer) == HEAD_BYTES + min(size, dense)
        assert (reply.dense is not None) == (size >= dense)
        away.pull(answer)
        assert away.version == fleet.hub.version
        assert all(same_bits(x, y) for x, y in zip(away.anchor, fleet.hub.model().values(), strict=True))
    assert reply.dense is not None


def test_a_message_does_not_travel_back_to_its_sender() -> None:
    fleet = Fleet(asynchronous())
    fleet.run(4)
    message = wire.HEADER_BYTES + 2 * 12 + 3 + 2  # 3 values of each tensor, indices of 6 and 5 bits
    traffic = fleet.ledger.per_worker[1]
    assert traffic.payload_up_bytes == traffic.up_bytes == HEAD_BYTES + message
    assert traffic.payload_down_bytes == traffic.down_bytes == HEAD_BYTES + 4 + 4 + 3 * 12 + 2 * message
    assert dict(fleet.ledger.requests) == {"Push": 1, "Pull": 1}
    assert traffic.hops == 2


def test_the_log_is_never_longer_than_a_dense_copy() -> None:
    fleet = Fleet(asynchronous(Every(1)))
    for step in range(20):
        tick(fleet.hub, fleet.callers, fleet.advance(step), [rates(0.1)] * 3)
        assert sum(change.nbytes for change in fleet.hub._log) < fleet.hub.terms.dense_bytes
    assert fleet.hub._log


def test_identity_down_is_a_dense_copy() -> None:
    fleet = Fleet(asynchronous(Every(1), down=Identity()))
    fleet.run(2)
    assert fleet.ledger.per_worker[0].down_bytes == 2 * (HEAD_BYTES + 20 + 4 * 85)


def test_a_late_worker_starts_from_the_dense_copy() -> None:
    fleet = Fleet(asynchronous(Every(1)))
    fleet.run(3)
    late = Caller(fleet.hub.method, model(seed=7), 1, 3, seed=5)
    late.version = 2**64 - 1
    fleet.hub.receive(1, late.visit())
    late.pull(fleet.hub.reply(1))
    assert late.version == 3
    for name, x in fleet.hub.model().items():
        assert same_bits(late.parameters[name], x)


# Bad days


def test_a_stale_push_stays_with_the_worker() -> None:
    fleet = Fleet(asynchronous(PerWorker((Every(1), Every(1), Every(4))), max_staleness=2), dtype=torch.float64)
    slow = fleet.callers[2]
    for step in range(3):
        tick(fleet.hub, fleet.callers, fleet.advance(step), [rates(0.1)] * 3)
    fleet.advance(3)
    drifts, before = slow.drifts(), fleet.hub.model()
    assert tick(fleet.hub, fleet.callers, [2], [rates(0.1)] * 3) == {2: Verdict.STALE}
    assert fleet.hub.version == 3
    assert slow.memory_norm() == 0
    assert all(same_bits(x, y) for x, y in zip(slow.anchor, before.values(), strict=True))
    for now, then in zip(slow.drifts(), drifts, strict=True):
        torch.testing.assert_close(now, then)
    assert tick(fleet.hub, fleet.callers, [2], [rates(0.1)] * 3) == {2: Verdict.APPLIED}
    assert fleet.hub.tallies[2].staleness == {0: 1}


def test_the_stalest_push_that_is_applied() -> None:
    fleet = Fleet(asynchronous(PerWorker((Every(1), Every(9), Every(3))), max_staleness=2))
    fleet.run(3)
    assert fleet.verdicts == [Verdict.APPLIED] * 4
    assert fleet.hub.tallies[2].staleness == {2: 1}


def test_a_model_that_is_not_finite_is_no_answer() -> None:
    fleet = Fleet(asynchronous(Every(1)))
    before, caller = everything(fleet), fleet.callers[0]
    caller.visit()
    nans = fleet.hub.terms.write_dense([torch.full(shape, float("nan")) for shape in SHAPES.values()])
    with pytest.raises(PayloadError, match="reply: the server's model is not finite"):
        caller.pull(write_reply(Reply(Verdict.NOTHING, 3, nans, ())))
    assert same(fleet, before)
    assert caller.version == 0


def same(fleet: Fleet, models: Sequence[Model]) -> bool:
    return all(
        same_bits(x, y)
        for one, other in zip([fleet.hub.model(), *fleet.models], models, strict=True)
        for x, y in zip(one.values(), other.values(), strict=True)
    )


def everything(fleet: Fleet) -> list[Model]:
    return [{name: x.clone() for name, x in each.items()} for each in (fleet.hub.model(), *fleet.models)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda letter: letter[:-1],
        lambda letter: letter[: HEAD_BYTES - 1],
        lambda letter: torch.cat([letter, letter[:1]]),
        lambda letter: letter[:0],
        lambda letter: letter.to(torch.int16),
        *(lambda letter, i=i: _flipped(letter, i) for i in range(0, 70, 3)),
    ],
)
def test_a_damaged_letter_changes_nothing_at_either_end(damage: Callable[[Tensor], Tensor]) -> None:
    fleet = Fleet(asynchronous(Every(1)))
    fleet.run(2)
    fleet.advance(2)
    before, caller = everything(fleet), fleet.callers[0]
    letter, states = caller.push(rates(0.1)), caller.states
    with pytest.raises(PayloadError, match=r"\w+: .*"):
        fleet.hub.receive(0, damage(letter))
    assert fleet.hub.commit() == ()
    assert same(fleet, before)
    answer = fleet.hub.reply(0)
    with pytest.raises(PayloadError):
        caller.pull(damage(answer))
    assert same(fleet, before)
    drifts = caller.drifts()
    assert caller.pull(answer) is Verdict.DAMAGED
    assert caller.states is states
    for now, then in zip(caller.drifts(), drifts, strict=True):
        torch.testing.assert_close(now, then)
    assert fleet.hub.tallies[0].verdicts[Verdict.DAMAGED] == 1


def _flipped(letter: Tensor, i: int) -> Tensor:
    altered = letter.clone()
    altered[i] ^= 0x41
    return altered


def test_every_flipped_byte_of_a_reply_of_changes_is_noticed() -> None:
    fleet = Fleet(asynchronous(Every(1)))
    fleet.run(2)
    fleet.advance(2)
    caller = fleet.callers[0]
    fleet.hub.receive(0, caller.push(rates(0.1)))
    fleet.hub.commit()
    answer = fleet.hub.reply(0)
    assert read_reply(answer, 10**6).changes
    for i in range(len(answer)):
        with pytest.raises(PayloadError):
            caller.pull(_flipped(answer, i))
    assert caller.version == 2
    assert caller.pull(answer) is Verdict.APPLIED


def test_a_push_from_the_future_is_refused() -> None:
    hub = Hub(asynchronous(), model(), 3)
    caller = Caller(asynchronous(), model(), 0, 3)
    caller.version = 4
    with pytest.raises(PayloadError, match="push: measured from version 4, and 0 is the newest"):
        hub.receive(0, caller.push(rates(0.1)))


def test_a_worker_that_is_not_finite_goes_on_from_the_server() -> None:
    fleet = Fleet(asynchronous(Every(1)))
    fleet.run(3)
    fleet.advance(3)
    fleet.models[1]["bias"][4] = float("nan")
    states, before = fleet.callers[1].states, fleet.hub.model()
    assert tick(fleet.hub, fleet.callers, [1], [rates(0.1)] * 3) == {1: Verdict.NOTHING}
    assert fleet.callers[1].states is states
    assert fleet.callers[1].skipped_syncs == 1
    assert fleet.hub.model()["bias"] is before["bias"]
    for name, x in before.items():
        assert same_bits(fleet.models[1][name], x)


def test_no_push_brings_a_nan_into_the_model() -> None:
    fleet = Fleet(asynchronous(Every(1)))
    fleet.advance(0)
    caller, other = fleet.callers[:2]
    push = read_push(caller.push(rates(0.1)), 10**6)
    nans = [torch.full(shape, float("nan")) for shape in SHAPES.values()]
    sent = [caller.terms.server.up.compress(x, state, Key(0))[0] for x, state in zip(nans, caller.states, strict=True)]
    assert fleet.hub.receive(0, write_push(Push(push.version, wire.pack(*sent)))) is Verdict.NOT_FINITE
    fleet.hub.receive(1, other.push(rates(0.1)))
    assert fleet.hub.commit() == (1,)
    assert all(bool(x.isfinite().all()) for x in fleet.hub.model().values())
    assert caller.pull(fleet.hub.reply(0)) is Verdict.NOT_FINITE
    assert all(same_bits(caller.parameters[name], x) for name, x in fleet.hub.model().items())


def test_a_sum_that_overflows_is_refused_as_a_whole() -> None:
    fleet = Fleet(LocalMethod(AsyncServer(Identity()), Every(1)))
    for each in fleet.models:
        each["bias"][0] = -3e38
    before = fleet.hub.model()
    assert tick(fleet.hub, fleet.callers, [0, 1, 2], [rates(0.1)] * 3) == dict.fromkeys(range(3), Verdict.NOT_FINITE)
    assert fleet.hub.version == 0
    assert all(same_bits(each["bias"], before["bias"]) for each in fleet.models)


def test_a_drop_of_the_learning_rate_resets_the_memory() -> None:
    method = LocalMethod(AsyncServer(TOP), Every(1), reset_memory_on_lr_drop=True)
    fleet = Fleet(method)
    fleet.run(1)
    assert fleet.callers[0].memory_norm() > 0  # the first sync is no drop
    fleet.run(2)
    fleet.run(1, rate=0.01)
    assert fleet.callers[0].memory_norm() == 0
    fleet.run(1, rate=0.01)
    assert fleet.callers[0].memory_norm() > 0


def test_narrow_parameters_have_a_wide_anchor() -> None:
    fleet = Fleet(asynchronous(Every(1), up=Identity()), dtype=torch.bfloat16)
    fleet.run(3)
    assert fleet.hub.model()["bias"].dtype == torch.float32
    assert fleet.models[0]["bias"].dtype == torch.bfloat16
    assert same_bits(fleet.models[0]["bias"], fleet.hub.model()["bias"].to(torch.bfloat16))


# Bad input


def test_what_does_not_suit_is_refused() -> None:
    method = asynchronous()
    with pytest.raises(ValueError, match=r"AsyncServer \(up\): ALQ\(.*use fixed levels, tensor by tensor"):
        AsyncServer(ALQ(bits=2))
    with pytest.raises(ValueError, match=r"AsyncServer: max_staleness cannot be negative, got -1"):
        AsyncServer(TOP, max_staleness=-1)
    with pytest.raises(TypeError, match=r"an asynchronous server needs a method such as .*, got LocalMethod"):
        Hub(LocalMethod(AllGather(TOP)), model(), 3)
    with pytest.raises(ValueError, match=r"needs one worker at least, got workers=0"):
        Hub(method, model(), 0)
    with pytest.raises(ValueError, match=r"PerWorker: 3 schedules for 2 workers; give one for each"):
        Hub(asynchronous(SLOW), model(), 2)
    with pytest.raises(ValueError, match=r"Caller: workers are numbered from 0 to 2, got rank 3"):
        Caller(method, model(), 3, 3)
    with pytest.raises(ValueError, match=r"Hub: workers are numbered from 0 to 2, got rank 3"):
        Hub(method, model(), 3).receive(3, torch.empty(0))
    with pytest.raises(ValueError, match=r"averages no buffers, and the model has 'mean': say buffers=\"local\""):
        Hub(method, model(), 3, buffers={"count": torch.tensor(0), "mean": torch.zeros(2)})
    Hub(LocalMethod(AsyncServer(TOP), buffers="local"), model(), 3, buffers={"mean": torch.zeros(2)})
    with pytest.raises(RuntimeError, match=r"Caller: there is no question to this answer"):
        Caller(method, model(), 0, 3).pull(torch.empty(0))
