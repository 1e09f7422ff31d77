"""Local methods and schedules explained: sync steps by hand, bytes from closed forms, claims."""

from math import ceil, log2, sqrt

import pytest

from lab.test_explain import cells, fact, told
from thriftgrad import parse, wire
from thriftgrad.lab.explain import explain
from thriftgrad.lab.explain_local import exchanged, spec_of, synced, syncs_per_step
from thriftgrad.lab.table import human_bytes, significant
from thriftgrad.local.letters import HEAD_BYTES


@pytest.mark.parametrize(
    ("text", "rows", "gap", "rate"),
    [
        ("Every(8)", ["all workers after steps 8, 16, 24, 32, 40 ..."], "8 local steps", "0.125"),
        ("Every(8, offset=1)", ["all workers after steps 1, 9, 17, 25, 33 ..."], "8 local steps", "0.125"),
        ("Every(1)", ["all workers after steps 1, 2, 3, 4, 5 ..."], "1 local step", "1.00"),
        ("At((2, 4, 9))", ["all workers after steps 2, 4, 9"], "5 local steps", "0.000300"),
        ("PostLocal(switch=2, h=3)", ["all workers after steps 1, 2, 5, 8, 11 ..."], "3 local steps", "0.333"),
        (
            "PerWorker((Every(4), At((7,))))",
            ["worker 0 after steps 4, 8, 12, 16, 20 ...", "worker 1 after steps 7"],
            "7 local steps",
            "0.125",
        ),
        (
            "Streaming(h=8, fragments=2, delay=1, mixing=0.5)",
            [
                "fragment 1 exchange begins after steps 3, 11, 19, 27, 35 ...",
                "fragment 2 exchange begins after steps 7, 15, 23, 31, 39 ...",
                "the result is used 1 local step later, mixed with 50% of the local model",
            ],
            "8 local steps",
            "0.125",
        ),
    ],
)
def test_a_schedule_tells_its_first_syncs_and_its_gap(text, rows, gap, rate):
    shown = told(explain(text, 1000, 2))
    for expected in rows:
        assert expected in [line.removeprefix("schedule").strip() for line in shown.splitlines()]
    assert fact(shown, "gap") == f"at most {gap} between two syncs of a worker, and before its first"
    assert fact(shown, "syncs a local step").startswith(f"{rate}, mean over workers and the first 10,00")


def test_random_gaps_are_those_of_each_worker():
    schedule = parse("RandomGaps(h=5, seed=3)")
    shown = told(explain("RandomGaps(h=5, seed=3)", 1000, 3))
    for rank in range(3):
        steps = [step for step in range(1, 40) if schedule.due(step, rank)][:5]
        assert f"worker {rank} after steps {', '.join(map(str, steps))} ..." in shown
    assert syncs_per_step(schedule, 3) == pytest.approx(1 / 3, rel=0.02)  # a gap of 1 ... 5 is 3 in the mean


N, K, WORKERS, H = 1000, 50, 4, 8
TOP = f"LocalMethod(AllGather(ErrorFeedback(TopK(k={K}))), Every({H}))"
MESSAGE = wire.HEADER_BYTES + 4 * K + ceil(K * ceil(log2(N)) / 8)


def test_bytes_a_sync_and_a_local_step_up_and_down_against_an_all_reduce_at_every_step():
    shown = told(explain(TOP, N, WORKERS))
    up, down = MESSAGE, (WORKERS - 1) * MESSAGE
    assert cells(shown, "payload, a sync") == [human_bytes(x) for x in (up, down, up + down)]
    assert cells(shown, "payload, a local step") == [human_bytes(x / H) for x in (up, down, up + down)]
    assert cells(shown, "link, a sync") == [human_bytes(x) for x in (down, down, 2 * down)]
    assert cells(shown, "link, a local step") == [human_bytes(x / H) for x in (down, down, 2 * down)]
    payload, link = [line.split()[-3:] for line in shown.splitlines() if "times less than fp32" in line]
    assert payload == [f"{significant(4 * N * H / x)}x" for x in (up, down, (up + down) / 2)]
    ring = 2 * (WORKERS - 1) / WORKERS * 4 * N
    assert link == [f"{significant(ring * H / down)}x"] * 3


def test_a_server_is_counted_visit_by_visit():
    dense = parse("LocalMethod(AsyncServer(TopK(k=50), Identity()), Every(4))")
    sync = synced(dense, N, WORKERS)
    assert sync.payload == sync.link  # a star
    assert sync.payload.up == HEAD_BYTES + MESSAGE
    assert sync.payload.down == pytest.approx(HEAD_BYTES + wire.HEADER_BYTES + 4 * N, abs=16)
    forwarded = synced(parse("LocalMethod(AsyncServer(TopK(k=50)), Every(4))"), N, WORKERS)
    # One's own message does not come back.
    assert (WORKERS - 1) * MESSAGE < forwarded.payload.down < (WORKERS - 1) * MESSAGE + 200


def test_workers_have_gaussians_of_their_own():
    union = synced(parse("LocalMethod(ParameterServer(TopK(k=50), Nonzeros()), Every(4))"), N, WORKERS)
    # Of four random supports of 50, about 0.7 coordinates in four are shared: 186 values and indices come back.
    expected = N * (1 - (1 - K / N) ** WORKERS) * (32 + ceil(log2(N))) / 8 * (WORKERS - 1) / WORKERS
    sent_up = (WORKERS - 1) / WORKERS * MESSAGE
    assert union.link.both == pytest.approx(2 * (expected + sent_up), rel=0.1)


def test_memory_momentum_and_optimisers():
    twice = "ParameterServer(ErrorFeedback(Sign(), decay=0.5), ErrorFeedback(Sign()))"
    rest = "Every(2), InnerSGD(momentum=0.5), SlowMo(), reset_memory_on_lr_drop=True"
    shown = told(explain(f"LocalMethod({twice}, {rest})", 64, 2))
    assert fact(shown, "memory") == (
        "on each worker (fading by 0.5 a sync) and at the server, in parameter units (learning rate included): "
        "what was not sent, emptied by a sync at a lower learning rate"
    )
    assert fact(shown, "momentum") == "0.5 on each worker and 0.7 slow after aggregation"
    assert fact(shown, "inner optimiser") == "InnerSGD(momentum=0.5), on each worker; its state is never exchanged"
    assert fact(shown, "outer optimiser") == "SlowMo(), equal on all workers"
    assert fact(shown, "sent back").startswith(f"Sign(): contraction delta {1 / 64:.4g}, of Gaussian numbers 0.")
    assert fact(told(explain("local_sgd", 64, 2)), "memory") == "none"
    power = told(explain("LocalMethod(PowerSGD(rank=1), Every(2))", 64, 2))
    assert fact(power, "memory").startswith("on each worker, in parameter units")


def test_what_is_claimed_and_what_nothing_proves():
    shown = told(explain(TOP, N, WORKERS))
    delta = K / N
    assert f"contraction delta {delta:.4g}, of Gaussian numbers 0." in fact(shown, "sent")
    bound = 2 * sqrt(1 - delta) / delta
    assert fact(shown, "theory").startswith(f"a worker's memory stays within {bound:.1f} eta H G")
    assert "H = 8" in fact(shown, "theory")

    biased = fact(told(explain("LocalMethod(AllGather(TopK(k=5)), Every(2))", 100, 2)), "theory")
    assert biased == "the way up is biased and has no memory: what it drops is lost, and no proof covers that"
    unbiased = fact(told(explain("LocalMethod(AllGather(QSGD(bits=4)), Every(2))", 100, 2)), "theory")
    omega = parse("QSGD(bits=4)").variance_bound(100)
    assert unbiased == f"the way up adds no bias, but a variance of up to omega = {omega:.4g} |x|^2 a message"
    momentum = told(explain("diloco", 100, 2))
    assert fact(momentum, "theory").startswith("momentum, AdamW and outer steps are outside the proofs")
    assert "theory" not in told(explain("local_sgd(momentum=0.0)", 100, 2)).replace("theory of", "")


def test_a_part_that_is_no_method_tells_its_story_alone():
    for text in ("SlowMo()", "InnerAdamW()", "AsyncServer(TopK(k=3))"):
        assert told(explain(text, 100, 2)).startswith(text[:5])


def test_a_note_of_the_aggregator_is_told():
    rules = "{'matrix': PowerSGD(rank=1), 'rest': AllReduce(Identity())}"
    shown = told(explain(f"LocalMethod(Partition({rules}))", 10_000, 2))
    assert fact(shown, "note") == "Partition: the rule 'rest' fits no tensor that is left, so it has no effect."


def test_the_first_exchange_may_differ_from_those_that_follow():
    first, later = exchanged(parse("AllGather(ALQ(bits=3))"), spec_of(900), 2)
    assert first.requests["AllReduce"] > later.requests["AllReduce"]
    assert spec_of(900).shape == (30, 30)
