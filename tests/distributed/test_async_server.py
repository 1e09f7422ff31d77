"""The asynchronous server among real processes: it serves, survives its workers, and is missed when it is gone."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.processes import Crowd, crowd
from samples import same_bits
from thriftgrad import ErrorFeedback, Identity, TopK, kernels
from thriftgrad.core import memories
from thriftgrad.local import AsyncServer, Every, Hub, LocalMethod, Verdict, tick
from thriftgrad.local.caller import Caller
from thriftgrad.local.letters import HEAD_BYTES, Push, read_reply, write_push
from thriftgrad.train import AsyncUpdates, Server, ServerGoneError, serve
from thriftgrad.train.async_state import common_facts
from thriftgrad.train.connection import LinkDownError, greet

pytestmark = pytest.mark.xdist_group("distributed")

METHOD = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=4))), Every(2))
N = 1000
RATE = 0.1
TARGET = torch.linspace(-1, 1, N, dtype=torch.float64)


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> Iterator[None]:
    """Which would take longer than the patience of these tests; their processes see to it themselves."""
    kernels.use("reference")
    yield
    kernels.use(None)


def start_model() -> dict[str, Tensor]:
    return {"x": torch.ones(N, dtype=torch.float64)}


def serving(folder: Path, patience_seconds: float = 60.0, port: int = 0, resume: bool = False) -> dict[str, Any]:
    """The server's process; it saves its state at every commit."""
    logging.basicConfig(filename=folder / "server.log", level=logging.INFO, format="%(message)s")
    kernels.use("reference")
    model = start_model()
    server = Server(model, METHOD, 3, address=f"127.0.0.1:{port}", patience_seconds=patience_seconds)
    if resume:
        server.load_state_dict(torch.load(folder / "server.state", weights_only=True))
    publish(folder / "address", server.address)

    def save(server: Server) -> None:
        torch.save(server.state_dict(), folder / "server.new")
        (folder / "server.new").rename(folder / "server.state")

    report = server.run(save)
    return {"model": model["x"], "report": report, "version": server.hub.version}


def joined(
    method: LocalMethod,
    parameters: dict[str, Tensor],
    rank: int | None = None,
    workers: int | None = None,
    **settings: Any,
) -> AsyncUpdates:
    """A worker whose steps the tests take themselves; its optimiser has the rate alone."""
    optimizer = torch.optim.SGD(list(parameters.values()), lr=RATE)
    return AsyncUpdates(parameters, method, optimizer, rank=rank, workers=workers, **settings)


def working(folder: Path, rank: int, steps: int, pause_seconds: float, resume: bool, timeout_seconds: float) -> Any:
    """A worker's process; it saves its state after every step."""
    kernels.use("reference")
    address = (folder / "address").read_text()
    saved = torch.load(folder / f"worker{rank}.state", weights_only=True) if resume else None
    parameters = start_model()
    try:
        caller = joined(METHOD, parameters, rank, 3, address=address, resume=saved, timeout_seconds=timeout_seconds)
        stats = caller.stats()
        moved = torch.zeros(N, dtype=torch.float64)
        with caller:
            while caller.caller.step < steps:
                move = RATE * (parameters["x"] - TARGET)
                parameters["x"] -= move
                moved += move
                caller.step()
                torch.save(caller.state_dict(), folder / f"worker{rank}.new")
                (folder / f"worker{rank}.new").rename(folder / f"worker{rank}.state")
                time.sleep(pause_seconds)
    except ServerGoneError as error:
        return {"gone": str(error), "at": time.time()}
    owed = caller.caller.drifts()[0] + sum(memories(caller.caller.states))
    return {"moved": moved, "owed": owed, "stats": caller.stats(), "joined": stats, "at": time.time()}


def publish(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def begin(processes: Crowd, *pauses: float, steps: int = 30, patience_seconds: float = 60.0) -> list[int]:
    """A server and a worker for each pause; their process ids."""
    ids = [processes.start("server", serving, patience_seconds)]
    processes.wait_for((processes.folder / "address").exists)
    for rank, pause in enumerate(pauses):
        ids.append(processes.start(f"worker{rank}", working, rank, steps, pause, False, 20.0))
    return ids


def logged(folder: Path) -> str:
    path = folder / "server.log"
    return path.read_text() if path.exists() else ""


def test_nobody_waits_for_the_slow_one_and_nothing_is_lost(tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        begin(processes, 0.0, 0.0, 0.04)
        workers = [processes.result(f"worker{rank}") for rank in range(3)]
        served = processes.result("server")
    report = served["report"]
    assert max(workers[0]["at"], workers[1]["at"]) < workers[2]["at"] - 0.3
    assert [worker.fate for worker in report.workers] == ["finished"] * 3
    assert [worker.applied for worker in report.workers] == [15] * 3
    assert report.version == 45
    assert max(worker.most_staleness for worker in report.workers) >= 1
    assert report.lost == ()
    for worker, told in zip(workers, report.workers, strict=True):
        assert (worker["stats"].up_bytes, worker["stats"].down_bytes) == (told.up_bytes, told.down_bytes)
        assert told.up_bytes == 2 * HEAD_BYTES * (15 + 1) // 2 + 15 * (20 + 4 * 8 + 5)
    # The server's model minus that of all gradients is what is still owed.
    virtual = start_model()["x"] - sum(worker["moved"] for worker in workers) / 3
    owed = sum(worker["owed"] for worker in workers) / 3
    torch.testing.assert_close(served["model"], virtual + owed, rtol=0, atol=1e-12)
    distance = (served["model"] - TARGET).norm() / (start_model()["x"] - TARGET).norm()
    assert distance < 0.9


def test_a_killed_worker_is_reported_and_comes_back(tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        begin(processes, 0.02, 0.02, 0.02, steps=60)
        processes.wait_for((tmp_path / "worker1.state").exists)
        processes.wait_for(lambda: torch.load(tmp_path / "worker1.state", weights_only=True)["step"] >= 6)
        processes.kill("worker1")
        assert processes.wait_for(lambda: "worker 1 is lost" in logged(tmp_path)) < 1
        assert "the others go on, and it may come back from its checkpoint" in logged(tmp_path)
        processes.start("worker1", working, 1, 40, 0.0, True, 20.0)
        workers = [processes.result(f"worker{rank}") for rank in range(3)]
        report = processes.result("server")["report"]
    assert [worker.fate for worker in report.workers] == ["finished"] * 3
    assert [worker.returns for worker in report.workers] == [0, 1, 0]
    assert [report.workers[rank].applied for rank in (0, 2)] == [30, 30]
    assert report.workers[1].applied >= 20
    # It was away for a few changes, and got those instead of a dense copy.
    assert 0 < workers[1]["joined"].down_bytes < 8 * N
    assert workers[0]["joined"].down_bytes == HEAD_BYTES + 20 + 8 * N


def test_a_worker_that_stays_away_is_not_waited_for(tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        begin(processes, 0.0, 0.0, 0.02, patience_seconds=0.8)
        processes.wait_for((tmp_path / "worker2.state").exists)
        processes.kill("worker2")
        report = processes.result("server")["report"]
    assert report.lost == (2,)
    assert report.workers[2].fate.startswith("lost: ")
    assert "workers [2] stay away, so the server ends" in logged(tmp_path)


def test_a_silent_worker_is_reported_after_the_patience(tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        ids = begin(processes, 0.02, 0.02, 0.02, steps=100, patience_seconds=1.0)
        processes.wait_for((tmp_path / "worker0.state").exists)
        os.kill(ids[1], signal.SIGSTOP)
        assert 0.5 < processes.wait_for(lambda: "worker 0 is lost" in logged(tmp_path)) < 2.5
        assert "no word in time" in logged(tmp_path)
        processes.kill("worker0")
        report = processes.result("server")["report"]
    assert report.lost == (0,)


def test_workers_notice_that_the_server_is_gone_and_all_begin_again(tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        begin(processes, 0.02, 0.02, 0.02, steps=10_000)
        processes.wait_for((tmp_path / "server.state").exists)
        for rank in range(3):
            processes.wait_for((tmp_path / f"worker{rank}.state").exists)
        processes.kill("server")
        killed = time.time()
        for rank in range(3):
            gone = processes.result(f"worker{rank}")
            assert gone["at"] - killed < 2
            assert f"the server at {(tmp_path / 'address').read_text()} is gone" in gone["gone"]
            assert gone["gone"].endswith("start it again from its checkpoint, then the workers from theirs.")
            (tmp_path / f"worker{rank}.result").unlink()
        (tmp_path / "address").unlink()
        before = torch.load(tmp_path / "server.state", weights_only=True)["commits"]
        processes.start("server", serving, 60.0, 0, True)
        processes.wait_for((tmp_path / "address").exists)
        for rank in range(3):
            step = torch.load(tmp_path / f"worker{rank}.state", weights_only=True)["step"]
            processes.start(f"worker{rank}", working, rank, step + 20, 0.0, True, 20.0)
        for rank in range(3):
            assert processes.result(f"worker{rank}")["stats"].syncs == 10
        served = processes.result("server")
    assert [worker.fate for worker in served["report"].workers] == ["finished"] * 3
    assert served["version"] > before > 0


def test_workers_notice_a_server_that_hangs(tmp_path: Path) -> None:
    with crowd(tmp_path) as processes:
        server = processes.start("server", serving)
        processes.wait_for((tmp_path / "address").exists)
        processes.start("worker0", working, 0, 1000, 0.01, False, 1.0)
        processes.wait_for((tmp_path / "worker0.state").exists)
        os.kill(server, signal.SIGSTOP)
        stopped = time.time()
        gone = processes.result("worker0")
    assert 0.5 < gone["at"] - stopped < 4
    assert "is gone (no word in time)" in gone["gone"]


# One process: what needs no killing


@contextmanager
def served(method: LocalMethod = METHOD, workers: int = 1, **settings: Any) -> Iterator[tuple[Server, list[Any]]]:
    """A server in a thread, and what its ``run`` returned or raised."""
    server = Server(start_model(), method, workers, address="127.0.0.1:0", **settings)
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(server.run())
        except ValueError as error:
            ended.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield server, ended
    finally:
        thread.join(20)
        assert not thread.is_alive()


def test_one_worker_trains_as_in_the_simulation() -> None:
    parameters, simulated = start_model(), start_model()
    with served() as (server, _), joined(METHOD, parameters, 0, 1, address=server.address) as remote:
        for _ in range(20):
            parameters["x"] -= RATE * (parameters["x"] - TARGET)
            remote.step()
        assert remote.stats().syncs == 10
    hub, caller = Hub(METHOD, start_model(), 1), Caller(METHOD, simulated, 0, 1)
    for _ in range(20):
        simulated["x"] -= RATE * (simulated["x"] - TARGET)
        caller.advance()
        tick(hub, [caller], [0] if caller.due() else [], [{"x": RATE}])
    assert same_bits(parameters["x"], simulated["x"])
    assert same_bits(server.hub.model()["x"], hub.model()["x"])


def test_every_fresh_worker_starts_from_the_servers_model() -> None:
    other = {"x": torch.zeros(N, dtype=torch.float64)}
    with served() as (server, _), joined(METHOD, other, 0, 1, address=server.address) as remote:
        assert same_bits(other["x"], start_model()["x"])
        assert same_bits(remote.anchors()["x"], start_model()["x"])


def test_another_method_is_an_error_at_both_ends(caplog: pytest.LogCaptureFixture) -> None:
    other = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=5))), Every(2))
    with served() as (server, ended):
        with pytest.raises(ValueError, match=r"AsyncUpdates: the server and worker 0 disagree on method") as caught:
            joined(other, start_model(), 0, 1, address=server.address)
        for method in (METHOD, other):
            assert repr(method) in str(caught.value)
    assert str(ended[0]) == str(caught.value).replace("AsyncUpdates", "serve")
    assert "disagree on method" in caplog.text


@pytest.mark.parametrize(
    ("what", "settings"),
    [("seed", {"seed": 1}), ("workers", {"workers": 2}), ("parameter/x", {"parameters": {"x": torch.ones(N)}})],
)
def test_other_facts_must_agree_too(what: str, settings: dict[str, Any]) -> None:
    mine = {"parameters": start_model(), "rank": 0, "workers": 1, "seed": 0} | settings
    with served() as (server, _), pytest.raises(ValueError, match=f"disagree on {what}: the server has"):
        joined(METHOD, address=server.address, **mine)


def test_a_misfit_does_not_disturb_the_others() -> None:
    parameters = start_model()
    with (
        served(workers=2, patience_seconds=1.0) as (server, ended),
        joined(METHOD, parameters, 0, 2, address=server.address) as remote,
    ):
        with pytest.raises(ValueError, match="disagree on seed"):
            joined(METHOD, start_model(), 1, 2, address=server.address, seed=3)
        for _ in range(2):
            remote.step()
        assert remote.stats().syncs == 1
    assert [worker.fate for worker in ended[0].workers] == ["finished", "turned away"]


def rogue(server: Server) -> Any:
    """A connection that speaks for itself."""
    from thriftgrad.train.connection import Link

    greeting = {"rank": 0, "facts": common_facts(server.hub.terms, 0)}
    store, number, _ = greet(server.address, greeting, 5.0)
    return Link(store, number, 1, 5.0, 5.0)


def test_a_truncated_push_is_answered_and_a_senseless_one_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with served(patience_seconds=0.5) as (server, ended):
        link, most = rogue(server), server.hub.terms.most_reply_bytes
        caller = Caller(METHOD, start_model(), 0, 1)
        letter = caller.push({"x": RATE})
        link._send(letter[:HEAD_BYTES])
        link._send(letter[HEAD_BYTES:-5])  # five bytes less than were announced
        reply = read_reply(link.receive(most), most)
        assert reply.verdict is Verdict.DAMAGED
        assert reply.dense is not None
        link.send(letter)
        assert read_reply(link.receive(most), most).verdict is Verdict.APPLIED
        huge = write_push(Push(0, torch.zeros(10**5, dtype=torch.uint8)))
        link._send(huge[:HEAD_BYTES])
        with pytest.raises(LinkDownError, match="the connection was closed"):
            link.receive(most)
    assert ended[0].workers[0].fate == "lost: letter: a body of 100000 bytes is announced, and it cannot exceed 57."
    assert (ended[0].workers[0].applied, ended[0].workers[0].refused) == (1, 1)
    assert "worker 0 sent what is no push, and was told: letter: the checksum" in caplog.text


def test_who_comes_again_takes_the_place_of_the_former() -> None:
    with served() as (server, ended):
        former = joined(METHOD, start_model(), 0, 1, address=server.address)
        with joined(METHOD, start_model(), 0, 1, address=server.address):
            former.step()
            with pytest.raises(ServerGoneError, match=r"is gone \(the connection was closed\)"):
                former.step()
    assert ended[0].workers[0].returns == 1


def test_a_server_that_fails_hangs_up() -> None:
    def fail(server: Server) -> None:
        raise ValueError("the disk is full")

    server = Server(start_model(), METHOD, 1, address="127.0.0.1:0")
    ended: list[Any] = []

    def run() -> None:
        try:
            server.run(fail)
        except ValueError as error:
            ended.append(str(error))

    thread = Thread(target=run)
    thread.start()
    remote = joined(METHOD, start_model(), 0, 1, address=server.address, timeout_seconds=10)
    remote.step()
    remote.step()
    thread.join(10)
    assert ended == ["the disk is full"]
    remote.step()
    with pytest.raises(ServerGoneError, match=r"is gone \(the connection was closed\)"):
        remote.step()


def test_a_late_return_does_not_send_twice_what_the_server_has() -> None:
    method = LocalMethod(AsyncServer(ErrorFeedback(TopK(k=4))), Every(1))
    parameters = start_model()
    with served(method) as (server, _):
        first = joined(method, parameters, 0, 1, address=server.address)
        parameters["x"] -= 1.0
        first.step()
        saved = first.state_dict()
        parameters["x"] -= 1.0
        first.step()
        first._drop()
        again = start_model()
        with joined(method, again, 0, 1, address=server.address, resume=saved) as back:
            assert back.caller.memory_norm() == 0
            assert back.caller.applied == 2
            assert same_bits(again["x"], server.hub.model()["x"])
            assert back.caller.step == 1


def test_a_return_keeps_what_was_not_sent() -> None:
    parameters = start_model()
    with served() as (server, _):
        first = joined(METHOD, parameters, 0, 1, address=server.address)
        for _ in range(3):
            parameters["x"] -= RATE * (parameters["x"] - TARGET)
            first.step()
        saved, drift, norm = first.state_dict(), first.caller.drifts()[0], first.caller.memory_norm()
        first._drop()
        again = start_model()
        with joined(METHOD, again, 0, 1, address=server.address, resume=saved) as back:
            assert back.caller.memory_norm() == norm > 0
            torch.testing.assert_close(back.caller.drifts()[0], drift)
            assert same_bits(again["x"], parameters["x"])
            assert back.stats().down_bytes == HEAD_BYTES + 4  # it has missed nothing


def test_a_closed_caller_says_so() -> None:
    with served() as (server, _):
        remote = joined(METHOD, start_model(), 0, 1, address=server.address)
        remote.close()
        remote.close()
        remote.step()
        with pytest.raises(RuntimeError, match=r"AsyncUpdates: it is closed; make a new one with resume="):
            remote.step()


def test_bytes_are_reported_as_rounds() -> None:
    kinds: list[str] = []
    with served(observe=lambda finished: kinds.append(finished.kind)) as (server, _):
        with joined(METHOD, start_model(), 0, 1, address=server.address) as remote:
            for _ in range(4):
                remote.step()
        assert server.ledger.per_worker[0] == remote.ledger.per_worker[0]
    assert kinds == ["Push", "Pull"] * 3


# Bad input


def test_no_server_there() -> None:
    start = time.monotonic()
    with pytest.raises(ServerGoneError, match=r"the server at 127.0.0.1:1 is gone \(nobody listens there for 0.3 sec"):
        joined(METHOD, start_model(), 0, 1, address="127.0.0.1:1", timeout_seconds=0.3)
    assert time.monotonic() - start < 2


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r'serve: no address was given and RANK is not set.*give address="host:port"'):
        serve(start_model(), METHOD, 3)
    with pytest.raises(ValueError, match=r"AsyncUpdates: no address was given and RANK is not set"):
        joined(METHOD, start_model())
    with pytest.raises(ValueError, match=r"AsyncUpdates: with an address it needs a rank and the number of workers"):
        joined(METHOD, start_model(), address="a:1")
    with pytest.raises(ValueError, match=r"serve: with an address it needs the number of workers"):
        serve(start_model(), METHOD, address="localhost:0")
    with pytest.raises(ValueError, match=r'an address looks like "10.0.0.1:29500", got \'localhost\''):
        serve(start_model(), METHOD, 3, address="localhost")
    with pytest.raises(ValueError, match=r"serve: patience_seconds must be positive, got 0"):
        serve(start_model(), METHOD, 3, address="localhost:0", patience_seconds=0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"averages no buffers, and the model has '1.running_mean'"):
        serve(model, LocalMethod(AsyncServer(Identity())), 3, address="localhost:0")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    first = Server(start_model(), METHOD, 1, address="127.0.0.1:0")
    with pytest.raises(ValueError, match=rf"serve: cannot listen at {first.address} \(.*\); take another port"):
        Server(start_model(), METHOD, 1, address=first.address)
