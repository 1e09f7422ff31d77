"""Tensors whose length only their sender knows: the lengths go round first, and both are counted."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distributed.ranks import on_ranks
from thriftgrad import Ledger, PayloadError, TensorSpec, simulate
from thriftgrad.comm import (
    Comm,
    all_gather,
    all_gather_varying,
    all_to_all_varying,
    broadcast,
    broadcast_varying,
    gather_varying,
    run,
)

ANY_LENGTH = TensorSpec((10**6,), torch.uint8)


def stream(sender: int, receiver: int, length: int) -> Tensor:
    """Bytes that say whose they are."""
    return (torch.arange(length) * 7 + 31 * sender + 3 * receiver).to(torch.uint8)


lengths = st.lists(st.integers(0, 300), min_size=1, max_size=5)


@given(lengths)
def test_all_gather(sizes: list[int]) -> None:
    results = simulate([all_gather_varying(stream(i, 0, size), 10**6) for i, size in enumerate(sizes)])
    for parts in results:
        assert len(parts) == len(sizes)
        assert all(torch.equal(part, stream(i, 0, sizes[i])) for i, part in enumerate(parts))


@given(lengths, st.data())
def test_gather(sizes: list[int], data: st.DataObject) -> None:
    root = data.draw(st.integers(0, len(sizes) - 1))
    results = simulate([gather_varying(stream(i, 0, size), 10**6, root) for i, size in enumerate(sizes)])
    for rank, parts in enumerate(results):
        if rank != root:
            assert parts is None
            continue
        assert parts is not None
        assert all(torch.equal(part, stream(i, 0, sizes[i])) for i, part in enumerate(parts))


@given(st.integers(1, 5), st.integers(0, 300), st.data())
def test_broadcast(world: int, length: int, data: st.DataObject) -> None:
    root = data.draw(st.integers(0, world - 1))
    workers = [
        broadcast_varying(stream(root, 0, length) if rank == root else None, ANY_LENGTH, root) for rank in range(world)
    ]
    assert all(torch.equal(received, stream(root, 0, length)) for received in simulate(workers))


@given(st.integers(1, 4), st.data())
def test_all_to_all(world: int, data: st.DataObject) -> None:
    size = [[data.draw(st.integers(0, 40)) for _ in range(world)] for _ in range(world)]  # [from][to]
    workers = [
        all_to_all_varying([stream(i, to, size[i][to]) for to in range(world)], [10**6] * world) for i in range(world)
    ]
    for rank, parts in enumerate(simulate(workers)):
        assert len(parts) == world
        for sender, part in enumerate(parts):
            assert torch.equal(part, stream(sender, rank, size[sender][rank]))


def test_books() -> None:
    """The lengths, 8 bytes each, and every stream at the length of the longest: what really crosses the link."""
    sizes, world = [10, 0, 25], 3
    book = Ledger()
    simulate([all_gather_varying(stream(i, 0, n), 10**6) for i, n in enumerate(sizes)], book)
    assert book.requests == {"AllGather": 2}
    assert book.up_bytes == 2 * 8 + 2 * 25
    assert book.payload_up_bytes == 8 + 25

    book = Ledger()
    simulate([gather_varying(stream(i, 0, n), 10**6, 1) for i, n in enumerate(sizes)], book)
    assert book.requests == {"AllGather": 1, "Gather": 1}
    assert book.per_worker[0].up_bytes == 2 * 8 + 25
    assert (book.per_worker[1].up_bytes, book.per_worker[1].down_bytes) == (2 * 8, 2 * 8 + 2 * 25)

    book = Ledger()
    simulate([broadcast_varying(stream(0, 0, 30) if i == 0 else None, ANY_LENGTH, 0) for i in range(world)], book)
    assert book.requests == {"Broadcast": 2}
    assert book.per_worker[0].up_bytes == 2 * (8 + 30)
    assert book.per_worker[2].down_bytes == 8 + 30

    book = Ledger()
    size = [[3, 5, 2], [9, 1, 0], [4, 4, 4]]  # [from][to]; the longest to 0, 1, 2: 9, 5, 4
    simulate([all_to_all_varying([stream(i, to, size[i][to]) for to in range(3)], [10**6] * 3) for i in range(3)], book)
    assert book.requests == {"AllGather": 1, "AllToAll": 1}
    assert [book.per_worker[i].up_bytes for i in range(3)] == [2 * 24 + 5 + 4, 2 * 24 + 9 + 4, 2 * 24 + 9 + 5]
    assert [book.per_worker[i].down_bytes for i in range(3)] == [2 * 24 + 2 * 9, 2 * 24 + 2 * 5, 2 * 24 + 2 * 4]


def everything_at_once() -> None:
    """On real ranks: all four, with lengths that differ, are equal and are zero."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for sizes in ([5, 0, 7], [0, 0, 0], [4, 4, 4], [0, 1, 900]):
        mine = stream(rank, 0, sizes[rank])
        expected = [stream(i, 0, sizes[i]) for i in range(world)]
        assert all(torch.equal(a, b) for a, b in zip(run(all_gather_varying(mine, 10**6)), expected, strict=True))
        for root in (0, world - 1):
            parts = run(gather_varying(mine, 10**6, root))
            if rank == root:
                assert parts is not None
                assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))
            else:
                assert parts is None
            received = run(broadcast_varying(mine if rank == root else None, ANY_LENGTH, root))
            assert torch.equal(received, expected[root])
        outgoing = [stream(rank, to, (sizes[rank] + to) % 6) for to in range(world)]
        for sender, part in enumerate(run(all_to_all_varying(outgoing, [10**6] * len(outgoing)))):
            assert torch.equal(part, stream(sender, rank, (sizes[sender] + rank) % 6))


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("world", [1, 2, 3])
def test_on_real_ranks(world: int) -> None:
    on_ranks(world, everything_at_once)


@pytest.mark.parametrize("announced", [2**46, -5, 101])
def test_a_length_that_cannot_be_is_refused_before_anything_is_allocated(announced: int) -> None:
    def liar() -> Comm[None]:
        """Announces another length than it has."""
        yield from all_gather(torch.tensor([announced]))

    with pytest.raises(
        PayloadError, match=rf"a worker announces {announced} bytes, and its message cannot exceed 100\."
    ):
        simulate([all_gather_varying(stream(0, 0, 30), 100), liar()])
    with pytest.raises(PayloadError, match="cannot exceed 100"):
        simulate([gather_varying(stream(0, 0, 30), 100, 0), liar()])
    root = broadcast(torch.tensor([announced]), TensorSpec((1,), torch.int64), 0)
    with pytest.raises(PayloadError, match="cannot exceed 100"):
        simulate([root, broadcast_varying(None, TensorSpec((100,), torch.uint8), 0)])
