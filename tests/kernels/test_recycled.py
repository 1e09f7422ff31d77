"""Buffers that are used again: never while somebody holds them, and never too many."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from thriftgrad.kernels import recycled

N = 1 << 16


def test_what_nobody_holds_is_used_again() -> None:
    x = recycled.empty(N)
    place = x.data_ptr()
    del x
    assert recycled.empty(N).data_ptr() == place


def test_a_view_is_enough_to_hold_it() -> None:
    view = recycled.empty(N).fill_(3.0).view(256, -1)[17, :5]
    others = [recycled.empty(N).fill_(0.0) for _ in range(3)]
    assert (view == 3.0).all()
    assert all(other.data_ptr() % recycled.ALIGNMENT == 0 for other in others)


def test_a_saved_tensor_is_what_it_was(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.save(recycled.empty(N).fill_(2.0), tmp_path / "x.pt")
    recycled.empty(N).fill_(0.0)
    assert (torch.load(tmp_path / "x.pt") == 2.0).all()


def test_lengths_that_differ_a_little_share_their_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycled, "_pool", recycled._Pool())
    for i in range(200):
        recycled.empty(4 * N + 64 * i, torch.uint8).fill_(1)
    assert len(recycled._pool.free) <= 2
    assert recycled._pool.nbytes == sum(size * len(same) for size, same in recycled._pool.free.items()) < 12 * N


def test_the_size_asked_for_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycled, "_pool", recycled._Pool())
    monkeypatch.setattr(recycled, "MOST_NBYTES", 10 * N)
    for elements in (N, 2 * N, N, 3 * N, 5 * N):
        recycled.empty(elements, torch.uint8)
    sizes = [size for size, same in recycled._pool.free.items() if same]
    assert recycled._pool.nbytes <= 10 * N
    assert len(sizes) == 3  # N, 3 N and 5 N, but not 2 N
    assert recycled._rounded(2 * N + recycled.ALIGNMENT) not in sizes


def test_a_child_begins_with_a_lock_of_its_own() -> None:
    with recycled._pool.lock:  # held here, by nobody there
        done = threading.Event()

        def fork() -> None:
            child = os.fork()
            if child == 0:
                recycled.empty(N)
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            done.set()

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join(60)
    assert done.is_set()
