"""One rank of torch.distributed: the same requests, answered by a process group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures import Future as ThreadFuture
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

from torch.futures import Future

from thriftgrad.comm.answers import answered_here, ordered, start
from thriftgrad.comm.exchange import Group, Peers, Wait
from thriftgrad.comm.requests import Comm, Request
from thriftgrad.comm.rounds import Moments, Observer, Round

T = TypeVar("T")

MOST_REQUESTS = 1 << 10
"""Of one worker at once; tags are its numbers in steps of so many."""


def run(worker: Comm[T], group: Group = None, observe: Observer | None = None) -> T:
    """Run this rank's worker to its end, blocking at each request; every rank of the group must run one.

    ``observe`` is told of each collective: everybody's bytes, this rank's seconds.
    """
    job = _Job(worker, 0, Peers.of(group), observe)
    while job.compute():
        job.issue(driven=True)
        job.land()
    result: T = job.result.value()
    return result


class Lane:
    """Run many workers at once, one per DDP bucket, without blocking on their first requests.

    ``submit`` starts a worker and issues its first request; ``flush`` takes all workers to their end. In between,
    workers go on as their answers arrive if ``thread`` is given: an executor of one thread, in which ``submit`` and
    ``flush`` are called. Without one, and where waiting for an answer does not block the host, each ``submit`` takes
    every older worker one round further, once it has issued what is new.

    Between two ranks on gloo, what travels is issued as soon as it is computed: the messages of request i of worker j
    have a tag of their own. Elsewhere requests pair up by order, so they are issued, and waited for, in one that is a
    function of submission order alone, the same on every rank: request i of worker j in turn i + j, in a turn the new
    worker's before the older ones'. One whose turn has not come is held, computed already. (Chaining rounds with
    ``Future.then`` has no such order: callbacks run as requests complete, and gloo then pairs one bucket's second round
    with another's.)

    One lane, or ``run``, at a time on a group, and not used by several threads at once. What a worker or its group
    raises comes out of ``submit`` or ``flush`` and ends the lane: the other ranks may be waiting for a request that
    will not come.
    """

    def __init__(self, group: Group = None, observe: Observer | None = None, thread: Executor | None = None) -> None:
        self._group = group
        self._observe = observe
        self._thread = thread
        self._carrier = ThreadPoolExecutor(1, "thriftgrad-carrier") if thread is not None else None  # who waits
        self._peers: Peers | None = None  # unknown before the first use, when there must be a group
        self._jobs: list[_Job] = []  # that have not ended, in the order of submission
        self._issued: list[_Job] = []  # those under way, in the order in which they were issued
        self._submitted = 0
        self._ending = False
        self._failure: BaseException | None = None

    def submit(self, worker: Comm[T]) -> Future[T]:
        """Start a worker; its result arrives in the future, at the latest with ``flush``."""
        with self._unbroken():
            if self._peers is None:
                self._peers = Peers.of(self._group)
            job, older = _Job(worker, self._submitted, self._peers, self._observe), list(self._jobs)
            self._submitted += 1
            self._jobs.append(job)
            self._advance(job)
            for each in older:
                if self._carrier is None:
                    self._take(each)
            return job.result

    def flush(self) -> None:
        """Take every worker to its end."""
        with self._unbroken():
            self._ending = True
            self._issue_due()
            while self._jobs:
                self._take(self._issued[0])
            self._ending = False

    def close(self) -> None:
        """Let go of the group and end the thread that waits; the lane is of no more use."""
        self._failure = self._failure or RuntimeError("this lane is closed; make another.")
        self._jobs, self._issued, self._peers, self._group = [], [], None, None
        if self._carrier is not None:
            self._carrier.shutdown(cancel_futures=True)

    def _take(self, job: _Job) -> None:
        """Wait for a worker's answer and let it go on."""
        job.land()
        self._issued.remove(job)
        self._advance(job)

    def _advance(self, job: _Job) -> None:
        if not job.compute():
            self._jobs.remove(job)
        elif not job.ordered:
            self._issue(job)
        self._issue_due()

    def _issue_due(self) -> None:
        """Issue what is held and whose turn has come: nothing earlier can come any more."""
        while self._jobs:
            first = min(self._jobs, key=lambda job: job.turn)
            if first.flying or not (self._ending or first.turn[0] < self._submitted):
                return
            self._issue(first)

    def _issue(self, job: _Job) -> None:
        job.issue(driven=self._ending or self._carrier is not None)
        self._issued.append(job)
        if self._carrier is not None:
            job.carry(self._carrier, self._arrived)

    def _arrived(self, landing: ThreadFuture[None], job: _Job) -> None:
        """In the thread that waits: let the lane's own take the answer."""
        if self._thread is not None and self._failure is None:
            self._thread.submit(self._take_arrived, landing, job)

    def _take_arrived(self, landing: ThreadFuture[None], job: _Job) -> None:
        if self._failure is None and job.landing is landing:  # or ``flush`` has taken it
            with self._unbroken():
                self._take(job)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except BaseException as failure:
            self._failure = failure
            raise


class _Job:
    """One worker on its way through its requests: ``compute``, ``issue``, ``land``, and again."""

    def __init__(self, worker: Comm[Any], number: int, peers: Peers, observe: Observer | None) -> None:
        self.result: Future[Any] = Future()
        self.turn = (number, False, number)  # of the next request to be issued
        self.flying = False
        self.landing: ThreadFuture[None] | None = None  # where another thread waits for the answer
        self._worker, self._number, self._peers, self._observe = worker, number, peers, observe
        self._request: Request | None = None
        self._wait: Wait = _nothing
        self._answer: Callable[[], Any] = _nothing
        self._began = self._asked = self._issued = self._landed = 0.0

    def compute(self) -> bool:
        """From the answer that has landed to the next collective; False at the worker's end."""
        if self.flying:
            self._report(self._request)
        self._began = perf_counter()
        answer = self._answer()
        self.flying, self._answer, self._wait = False, _nothing, _nothing
        while True:
            try:
                self._request = self._worker.send(answer)
            except StopIteration as stop:
                self._asked = perf_counter()
                self._report(None)
                self.result.set_result(stop.value)
                return False
            if self._request.is_collective:
                self._asked = perf_counter()
                return True
            answer = answered_here(self._request, self._peers)

    @property
    def ordered(self) -> bool:
        """Whether the request that was computed pairs up by order."""
        assert self._request is not None
        return ordered(self._request, self._peers)

    def issue(self, driven: bool) -> None:
        """Send the request on its way; ``driven`` as for ``exchange.swap``."""
        assert self._request is not None
        turn, _, number = self.turn
        self.turn = (turn + 1, True, number)
        self.flying = True
        tag = number * MOST_REQUESTS + (turn - number) % MOST_REQUESTS
        self._issued = perf_counter()
        self._wait, self._answer = start(self._request, self._peers, tag, driven)

    def carry(self, carrier: Executor, arrived: Callable[[ThreadFuture[None], _Job], None]) -> None:
        """Wait for the answer in another thread, which then calls ``arrived``."""
        self.landing = carrier.submit(self._land)
        self.landing.add_done_callback(lambda landing: arrived(landing, self))

    def land(self) -> None:
        """Wait for the answer."""
        if self.landing is None:
            self._land()
        else:
            self.landing.result()
            self.landing = None

    def _land(self) -> None:
        self._wait()
        self._landed = perf_counter()

    def _report(self, request: Request | None) -> None:
        """Tell of a request and the computing before it, or of the computing after the last one."""
        if self._observe is None:
            return
        rank, world = self._peers.rank, self._peers.world
        computed = {rank: self._asked - self._began}
        if request is None:
            moments = Moments(self._number, self._began, self._asked, self._asked, self._asked)
            self._observe(Round("end", world, {}, computed, moments=moments))
            return
        # Sizes are equal on all ranks, so each can write everybody's book.
        traffic = {each: request.traffic(each, world) for each in range(world)}
        kind = type(request).__name__.removesuffix("Request")
        moments = Moments(self._number, self._began, self._asked, self._issued, self._landed)
        self._observe(Round(kind, world, traffic, computed, self._landed - self._issued, moments))


def _nothing() -> None:
    """What there is to wait for, and the answer, before the first request."""
