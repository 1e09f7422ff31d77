"""A small LAN inside this machine: a network namespace per worker, a switch, and every link shaped both ways.

Each worker's namespace holds ``eth0``, one end of a veth pair; the other end is a port of a bridge in a namespace of
its own. A token bucket (tbf) on ``eth0`` limits what the worker sends, one on the port what it receives. Deleting the
namespaces deletes everything in them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from thriftgrad.lab.launch import Ended, Hear, run_ranks, undisturbed
from thriftgrad.lab.shape import STREAM_SHARE, UNLIMITED, LabError, Shape, burst_bytes

__all__ = ["STREAM_SHARE", "UNLIMITED", "LabError", "Network", "Shape", "sweep"]

INTERFACE = "eth0"
PORT = 29500
QUEUE_SECONDS = 0.1
"""How long a packet may wait before a link; what would wait longer is dropped, as on a real one."""

_PREFIX = "thriftgrad"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-(\d+)-(\d+)-\d+-\w+")
"""Its owner's pid namespace, its owner, when that was started, which of its networks, which part of that."""
_counter = itertools.count()


class Network:
    """As many namespaces as workers, behind links of one shape, while the ``with`` block runs.

    ``run`` starts one process in each, ``bytes`` reads their interfaces. Everything is taken down at the end of the
    block, whatever ends it, SIGTERM and SIGHUP included; what a killed launcher left goes when the next network starts.

    Raises ``LabError`` without root, ``ip`` or ``tc``, or where the kernel does not allow it.
    """

    def __init__(self, workers: int, link: Shape) -> None:
        if workers < 1:
            raise LabError(f"lab: it takes at least one worker, got workers={workers}.")
        if workers > 250:
            raise LabError(f"lab: one network holds up to 250 workers, got workers={workers}.")
        self.workers, self.link = workers, link
        self._base = f"{_PREFIX}-{_pids()}-{os.getpid()}-{_started(os.getpid())}-{next(_counter)}"
        self._switch = f"{self._base}-switch"
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> Self:
        _check_tools()
        sweep()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:  # or somebody else knows what to do
                    signal.signal(number, _leave)
                    self._handled.append(number)
        try:
            self._build()
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._take_down()

    def namespace(self, rank: int) -> str:
        """The name of a worker's namespace."""
        return f"{self._base}-{rank}"

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        hear: Hear | None = None,
        timeout_seconds: float | None = None,
    ) -> tuple[Ended, ...]:
        """Run the command in every namespace, as torchrun would start its ranks, with one thread each.

        ``environment`` is added to this process's own. Raises as ``launch.run_ranks`` does.
        """
        enter = [["ip", "netns", "exec", self.namespace(rank), *command] for rank in range(self.workers)]
        # Nobody knows names in here, and torch's store warns of each that it cannot find.
        own = {"TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        own |= environment or {}
        try:
            return run_ranks(enter, [own | self._rank(rank) for rank in range(self.workers)], hear, timeout_seconds)
        finally:
            self._stop_processes()

    def bytes(self) -> tuple[tuple[int, int], ...]:
        """What each worker's interface has sent and received (up, down) since the network stands.

        Of a shaped link the bytes that its token buckets charge for: every frame with its headers. Of an unlimited one
        what the interface counts, where up to 64 KiB of a stream are one packet with one header.
        """
        return tuple(
            (self._counted(self.namespace(rank), INTERFACE), self._counted(self._switch, _port(rank)))
            for rank in range(self.workers)
        )

    def _rank(self, rank: int) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),  # they share this machine's devices, if not its network
            "WORLD_SIZE": str(self.workers),
            "LOCAL_WORLD_SIZE": str(self.workers),
            "MASTER_ADDR": _address(0),
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "TP_SOCKET_IFNAME": INTERFACE,
        }

    def _counted(self, namespace: str, device: str) -> int:
        """Bytes that have left a device."""
        if self.link.model is None:
            (found,) = json.loads(_do("ip", "-n", namespace, "-json", "-statistics", "link", "show", "dev", device))
            return int(found["stats64"]["tx"]["bytes"])
        queues = json.loads(_do("tc", "-n", namespace, "-json", "-statistics", "qdisc", "show", "dev", device))
        return next(int(each["bytes"]) for each in queues if each["kind"] == "tbf")

    def _build(self) -> None:
        switch, up, down = self._switch, self.link.up_bits_per_second, self.link.down_bits_per_second
        _do("ip", "netns", "add", switch)
        if self.link.latency_seconds:
            _check_netem(switch, self.link)
        _do("ip", "-n", switch, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        _do("ip", "-n", switch, "link", "set", "bridge", "up")
        for rank in range(self.workers):
            worker, port = self.namespace(rank), _port(rank)
            _do("ip", "netns", "add", worker)
            _do("ip", "-n", worker, "link", "set", "lo", "up")
            pair = ("type", "veth", "peer", "name", port, "netns", switch)
            _do("ip", "-n", worker, "link", "add", INTERFACE, *pair)
            _do("ip", "-n", worker, "addr", "add", f"{_address(rank)}/24", "dev", INTERFACE)
            if up is not None and down is not None:
                _shape(worker, INTERFACE, up, self.link.latency_seconds)
                _shape(switch, port, down, 0.0)
            _do("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _do("ip", "-n", worker, "link", "set", INTERFACE, "up")

    @undisturbed()
    def _stop_processes(self) -> None:
        """End what the ranks' commands started and left."""
        for rank in range(self.workers):
            _kill_inside(self.namespace(rank))

    @undisturbed()
    def _remove_all(self) -> None:
        for name in _names():
            if name.startswith(f"{self._base}-"):
                _remove(name)

    def _take_down(self) -> None:
        self._remove_all()
        while self._handled:
            signal.signal(self._handled.pop(), signal.SIG_DFL)


def sweep() -> None:
    """Remove the networks whose owner is gone, and what still runs in them; those of living owners stay.

    So do those of other pid namespaces (other containers), whose owners are not to be seen from here.
    """
    for name in _names():
        match = _NAME.fullmatch(name)
        if match and int(match[1]) == _pids() and _started(int(match[2])) != int(match[3]):
            _remove(name)


def _shape(namespace: str, device: str, bits_per_second: float, latency_seconds: float) -> None:
    burst = burst_bytes(bits_per_second)
    limit = burst + max(128 * 1024, int(bits_per_second / 8 * QUEUE_SECONDS))
    bucket = ("rate", f"{bits_per_second:.0f}bit", "burst", str(burst), "limit", str(limit))
    place: tuple[str, ...] = ("root",)
    if latency_seconds:
        delay = ("netem", "delay", f"{latency_seconds * 1e6:.0f}us", "limit", "100000")
        _do("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "handle", "1:", *delay)
        place = ("parent", "1:1")
    _do("tc", "-n", namespace, "qdisc", "add", "dev", device, *place, "tbf", *bucket)


def _check_tools() -> None:
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("setpriv", "util-linux")):
        if shutil.which(tool) is None:
            raise LabError(f"lab: it builds networks with {tool}, and there is no {tool} here; install {package}.")
    if os.geteuid() != 0:
        raise LabError(f"lab: network namespaces take root, and this is user {os.geteuid()}; start it with sudo.")


def _check_netem(namespace: str, link: Shape) -> None:
    try:
        _do("tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1us")
    except LabError as error:
        raise LabError(
            f"lab: this kernel has no netem, so a latency can only be modelled, got {link.text!r}; leave it out, as in "
            f"{link.text.split(',')[0]!r}."
        ) from error


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join(done.stderr.split()).rstrip(".") or f"exit code {done.returncode}"
        raise LabError(
            f"lab: {command[0]} failed ({why}); a network takes root with the capabilities NET_ADMIN and SYS_ADMIN (in "
            "a container: --privileged), and a kernel with veth, bridge and tbf."
        )
    return done.stdout


def _remove(name: str) -> None:
    with suppress(LabError):  # somebody else may be sweeping too
        _kill_inside(name)
        _do("ip", "netns", "del", name)


def _kill_inside(name: str) -> None:
    for pid in _do("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _names() -> list[str]:
    with suppress(OSError):
        return sorted(path.name for path in Path("/run/netns").iterdir() if _NAME.fullmatch(path.name))
    return []


def _pids() -> int:
    """The pid namespace in which this process's pid means something."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None if it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None


def _port(rank: int) -> str:
    return f"port{rank}"


def _address(rank: int) -> str:
    return f"10.77.0.{rank + 1}"


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
