"""Networks: real bytes over real links, nothing left behind whatever happens, and one sentence where there can be none.

Where the machine allows no network, the sentence that says so is what these tests look at.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.runs import processes_about, wait_until
from lab.networks import CURES, mine, namespaces, possible
from thriftgrad import LinkModel
from thriftgrad.lab import namespaces as lab
from thriftgrad.lab.launch import RankFailedError
from thriftgrad.lab.namespaces import Network
from thriftgrad.lab.shape import STREAM_SHARE, LabError, Shape, burst_bytes

PIDS = Path("/proc/self/ns/pid").stat().st_ino

# Rank 1 connects; then each sends what it is told to, both at once, and says how long it took to get the other's, and
# how much of its own its kernel had to send again (tcpi_bytes_retrans of linux/tcp.h).
TRANSFER = """
import os, socket, struct, sys, threading, time
rank, sent = int(os.environ["RANK"]), [int(each) for each in sys.argv[1:]]
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
start = time.perf_counter()  # before the other can have sent anything
if rank == 0:
    link, _ = socket.create_server(place).accept()
while rank == 1:
    try:
        link = socket.create_connection(place, timeout=20)
        break
    except OSError:
        time.sleep(0.02)
sender = threading.Thread(target=link.sendall, args=(bytes(sent[rank]),))
sender.start()
left = sent[1 - rank]
while left:
    left -= len(link.recv(min(left, 1 << 16)))
seconds = time.perf_counter() - start
sender.join()
link.shutdown(socket.SHUT_WR)
link.recv(1)
print(seconds, *struct.unpack_from("Q", link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216), 208))
"""


def transferred(link, *sent):
    """Of each rank: seconds until it had the other's bytes, its bytes (up, down) by its link, and those sent again."""
    with Network(2, Shape.of(link)) as network:
        ended = network.run([sys.executable, "-c", TRANSFER, *map(str, sent)], timeout_seconds=60)
        seconds, again = zip(*(map(float, each.output.split()) for each in ended), strict=True)
        return seconds, network.bytes(), again


def test_two_workers_at_100_mbit_move_what_they_say_and_no_faster_than_the_link():
    if possible():
        seconds, counted, _ = transferred("100mbit", 5_000_000, 5_000_000)
        for up, down in counted:
            assert up == pytest.approx(5_000_000 / STREAM_SHARE, rel=0.05)
            assert down == pytest.approx(5_000_000 / STREAM_SHARE, rel=0.05)
        assert min(seconds) > 8 * 5_000_000 / 100e6


def test_up_and_down_may_differ():
    if possible():
        # One way, the sender's 20 Mbit up are in the way; the other way, the receiver's 20 Mbit down.
        for link in ("20mbit/200mbit", "200mbit/20mbit"):
            (_, seconds), (sender, receiver), _ = transferred(link, 1_000_000, 1)
            assert seconds > 8 * 1_000_000 / 20e6
            assert (sender[0], receiver[1]) == pytest.approx([1_000_000 / STREAM_SHARE] * 2, rel=0.05)
            assert max(sender[1], receiver[0]) < 100_000  # what acknowledges


def test_an_unlimited_link_counts_too():
    if possible():
        # Faster than a rank reads, so its kernel at times drops a packet of 64 KiB, and the sender sends it again.
        _, counted, again = transferred("unlimited", 1_000_000, 500_000)
        up, down = 1_000_000 + again[0], 500_000 + again[1]
        assert counted[0] == pytest.approx((up, down), rel=0.03)
        assert counted[1] == pytest.approx((down, up), rel=0.03)


def test_ranks_find_each_other_as_under_torchrun():
    if possible():
        names = (
            "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GLOO_SOCKET_IFNAME TP_SOCKET_IFNAME"
        )
        names += " OMP_NUM_THREADS MINE"
        with Network(3, Shape.of("unlimited")) as network:
            said = f"import os; print(*(os.environ[name] for name in {names.split()!r}))"
            ended = network.run([sys.executable, "-c", said], {"MINE": "x"})
        assert [each.output for each in ended] == [
            f"{rank} {rank} 3 3 10.77.0.1 29500 eth0 eth0 1 x" for rank in range(3)
        ]


def test_two_networks_at_once_do_not_touch_each_other():
    if possible():
        with Network(1, Shape.of("unlimited")) as one:
            with Network(1, Shape.of("unlimited")) as other:
                assert {one.namespace(0), other.namespace(0)} < set(mine())
            assert other.namespace(0) not in mine()
            assert one.run([sys.executable, "-c", "print(1)"])[0].output == "1"
        assert mine() == []


def test_nothing_is_left_when_a_rank_fails_though_its_children_hide(tmp_path):
    if possible():
        child = f"import time; folder = {str(tmp_path)!r}; time.sleep(60)"
        program = (
            "import os, subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
            "sys.exit(3 if os.environ['RANK'] == '1' else 0)"
        )
        with (
            pytest.raises(RankFailedError, match=r"^rank 1 ended with exit code 3"),
            Network(2, Shape.of("1gbit")) as network,
        ):
            network.run([sys.executable, "-c", program])
        assert mine() == []
        wait_until(lambda: not processes_about(tmp_path), seconds=10)


LAUNCHER = """
import sys
from thriftgrad.lab.namespaces import Network, Shape
with Network(2, Shape.of("unlimited")) as network:
    network.run([sys.executable, "-c", f"import time; folder = {sys.argv[1]!r}; time.sleep(60)"])
"""


def launched(tmp_path):
    """A launcher in a process of its own whose ranks run."""
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)])
    wait_until(lambda: len(processes_about(tmp_path)) == 3)
    assert len(namespaces(process.pid)) == 3  # two workers and the switch
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_when_the_launcher_is_told_to_leave(tmp_path, number):
    if possible():
        process = launched(tmp_path)
        process.send_signal(number)
        assert process.wait(20) == (-signal.SIGINT if number is signal.SIGINT else 128 + number)
        assert processes_about(tmp_path) == []
        assert namespaces(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_when_the_launcher_is_told_again_while_it_cleans_up(tmp_path, number):
    if possible():
        process = launched(tmp_path)
        for _ in range(3):
            process.send_signal(number)
            time.sleep(0.05)
        process.wait(20)
        assert processes_about(tmp_path) == []
        assert namespaces(process.pid) == []


def test_what_a_killed_launcher_leaves_the_next_network_removes_and_that_of_others_stays(tmp_path):
    if possible():
        with Network(1, Shape.of("unlimited")) as living:
            process = launched(tmp_path)
            process.kill()
            process.wait(20)
            wait_until(lambda: not processes_about(tmp_path), seconds=10)  # the kernel ends the ranks
            assert len(namespaces(process.pid)) == 3
            with Network(1, Shape.of("unlimited")):
                assert namespaces(process.pid) == []
                assert living.namespace(0) in mine()


def test_a_pid_that_is_used_again_owns_nothing():
    if possible():
        stale = f"thriftgrad-{PIDS}-{os.getpid()}-1-0-0"  # started at another time
        subprocess.run(["ip", "netns", "add", stale], check=True)
        assert stale in mine()
        lab.sweep()
        assert stale not in mine()


def test_what_another_container_owns_stays():
    if possible():
        other = f"thriftgrad-{PIDS + 1}-{os.getpid()}-1-0-0"  # the pid is one in there, and says nothing here
        subprocess.run(["ip", "netns", "add", other], check=True)
        try:
            lab.sweep()
            assert other in mine()
        finally:
            subprocess.run(["ip", "netns", "del", other], check=True)


@pytest.mark.parametrize("tool", ["ip", "tc", "setpriv"])
def test_a_missing_tool_is_a_sentence(monkeypatch, tool):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/usr/sbin/{name}")
    package = "util-linux" if tool == "setpriv" else "iproute2"
    with pytest.raises(LabError) as caught, Network(2, Shape.of("100mbit")):
        pass
    assert str(caught.value) == f"lab: it builds networks with {tool}, and there is no {tool} here; install {package}."


def test_without_root_it_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError) as caught, Network(2, Shape.of("100mbit")):
        pass
    assert str(caught.value) == "lab: network namespaces take root, and this is user 1000; start it with sudo."


POWERLESS = """
from thriftgrad.lab.namespaces import Network
from thriftgrad.lab.shape import LabError, Shape
try:
    with Network(2, Shape.of("unlimited")):
        pass
except LabError as error:
    print(error)
"""


def test_root_without_its_capabilities_is_a_sentence():
    """As in a container: with what it takes to drop them here, or where they are missing anyway."""
    drop = ["setpriv", "--bounding-set", "-net_admin,-sys_admin", "--inh-caps", "-net_admin,-sys_admin"]
    command = [*(drop if possible() else []), sys.executable, "-c", POWERLESS]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("lab: ")
    assert said.endswith(tuple(f"{cure}\n" for cure in CURES))
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["fast", "", "100", "100mbit/", "mbit", "0mbit", "100mbit,1", "UNLIMITED"])
def test_a_link_that_does_not_parse_is_a_sentence(text):
    with pytest.raises(LabError) as caught:
        Shape.of(text)
    assert str(caught.value) == (
        f'lab: expected a link such as "100mbit", "20mbit/100mbit" (up/down) or "unlimited", got {text!r}.'
    )


def test_a_latency_takes_netem_or_is_refused():
    if possible():
        said = "delay 1ms"
        try:
            with Network(1, Shape.of("100mbit,1ms")) as network:
                shown = ["tc", "-n", network.namespace(0), "qdisc", "show", "dev", "eth0"]
                found = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
        except LabError as error:
            said = "got '100mbit,1ms'; leave it out, as in '100mbit'."
            found = str(error).removeprefix("lab: this kernel has no netem, so a latency can only be modelled, ")
        assert said in found
        assert mine() == []


@pytest.mark.parametrize(("workers", "said"), [(0, "at least one worker"), (-1, "at least one"), (251, "up to 250")])
def test_too_few_or_too_many_workers(workers, said):
    with pytest.raises(LabError, match=f"{said}.*got workers={workers}"):
        Network(workers, Shape.of("100mbit"))


def test_a_shape_is_read_and_modelled():
    shape = Shape.of("20mbit/100mbit")
    assert (shape.up_bits_per_second, shape.down_bits_per_second, shape.latency_seconds) == (20e6, 100e6, 0)
    frame, headers = 14 + 1500, 14 + 20 + 32
    share = (frame - headers) / frame
    assert shape.modelled(1e-4) == LinkModel(share * 20e6, share * 100e6, 1e-4)
    assert Shape.of("100mbit").down_bits_per_second == 100e6
    unlimited = Shape.of("unlimited")
    assert (unlimited.up_bits_per_second, unlimited.down_bits_per_second) == (None, None)
    with pytest.raises(LabError, match=r"^lab: a link without a limit has no model, got 'unlimited'; name one such as"):
        unlimited.modelled(0.0)


def test_a_bucket_lets_half_a_millisecond_pass_and_a_frame_at_least():
    assert [burst_bytes(bits) for bits in (1e6, 1e8, 1e9)] == [1600, 7000, 70000]
