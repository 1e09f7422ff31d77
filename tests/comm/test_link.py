"""Modelled seconds by hand."""

from __future__ import annotations

import pytest

from thriftgrad import LinkModel
from thriftgrad.comm import Round, Traffic

LINK = LinkModel(8e6, 16e6, 0.01)  # a megabyte a second up, two down


def a_round(*books: Traffic) -> Round:
    return Round("AllReduce", len(books), dict(enumerate(books)), {})


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("100mbit,1ms", LinkModel(1e8, latency_seconds=1e-3)),
        ("20mbit/100mbit,30ms", LinkModel(2e7, 1e8, 0.03)),
        ("1gbit", LinkModel(1e9)),
        ("2.5gbit, 50us", LinkModel(2.5e9, latency_seconds=5e-5)),
        ("9600bit,1s", LinkModel(9600.0, latency_seconds=1.0)),
        ("64kbit/1mbit", LinkModel(64e3, 1e6)),
    ],
)
def test_reads(text: str, link: LinkModel) -> None:
    read = LinkModel.of(text)
    assert read.up_bits_per_second == pytest.approx(link.up_bits_per_second)
    assert read.down_bits_per_second == (
        None if link.down_bits_per_second is None else pytest.approx(link.down_bits_per_second)
    )
    assert read.latency_seconds == pytest.approx(link.latency_seconds)


@pytest.mark.parametrize(
    "text", ["", "fast", "100", "100mb", "100mbit,", "100mbit,5", "-1mbit", "1mbit,-1ms", "1mbit/,1ms"]
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'link: expected "100mbit,1ms" or "20mbit/100mbit,30ms" .*, got'):
        LinkModel.of(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0,), "up_bits_per_second must be positive, got 0.0"),
        ((1e6, -5.0), "down_bits_per_second must be positive, got -5.0"),
        ((float("nan"),), "up_bits_per_second must be positive, got nan"),
        ((1e6, None, -0.1), "a latency cannot be negative, got LinkModel"),
        ((1e6, None, 0.0, (0.0, -1.0)), "a latency cannot be negative"),
        ((1e6, None, 0.0, (), (1.0, 0.0)), r"slowdown factors must be positive, got \(1.0, 0.0\)"),
    ],
)
def test_refuses(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LinkModel(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="up_bits_per_second must be positive"):
        LinkModel.of("0mbit")


def test_a_message_takes_latency_plus_bits_over_bandwidth() -> None:
    assert LINK.worker_seconds(0, Traffic(0, 0, 10**6, 10**6, 3)) == pytest.approx(3 * 0.01 + 1.0)
    assert LINK.worker_seconds(0, Traffic(0, 0, 10**6, 4 * 10**6, 1)) == pytest.approx(0.01 + 2.0)
    assert LINK.worker_seconds(0, Traffic(9, 9, 0, 0, 0)) == 0.0


def test_down_is_as_fast_as_up_unless_said() -> None:
    assert LinkModel(8e6).worker_seconds(0, Traffic(0, 0, 0, 10**6, 0)) == pytest.approx(1.0)


def test_a_collective_lasts_as_long_as_its_slowest_worker() -> None:
    books = Traffic(0, 0, 10**6, 0, 1), Traffic(0, 0, 3 * 10**6, 0, 1)
    assert LINK.seconds(a_round(*books)) == pytest.approx(3.01)
    assert LINK.seconds(a_round()) == 0.0


def test_stragglers_and_far_workers() -> None:
    link = LinkModel(8e6, latency_seconds=0.01, extra_latency_seconds=(0.0, 0.09), slowdown=(2.0,))
    book = Traffic(0, 0, 10**6, 0, 2)
    assert link.worker_seconds(0, book) == pytest.approx(2 * 0.01 + 2 * 1.0)
    assert link.worker_seconds(1, book) == pytest.approx(2 * 0.1 + 1.0)
    assert link.worker_seconds(2, book) == pytest.approx(2 * 0.01 + 1.0)
    assert link.seconds(a_round(book, book, book)) == pytest.approx(2.02)
    assert [link.slowdown_of(rank) for rank in range(3)] == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("world", [2, 4, 16])
def test_a_ring_costs_what_the_textbook_says(world: int) -> None:
    """2 (n - 1) (alpha + S / (n B))."""
    import torch

    from thriftgrad import simulate
    from thriftgrad.comm import all_reduce

    rounds: list[Round] = []
    simulate([all_reduce(torch.ones(1600)) for _ in range(world)], rounds.append)
    assert LINK.seconds(rounds[0]) == pytest.approx(2 * (world - 1) * (0.01 + 6400 / (world * 1e6)))
