"""From pieces to a table: ranks, bounds and the sentence, on pieces made up so that the answers are known."""

from __future__ import annotations

from math import inf

import pytest

from thriftgrad import LinkModel
from thriftgrad.lab.advise.candidates import BF16, DDP, Candidate
from thriftgrad.lab.advise.codec import Coded
from thriftgrad.lab.advise.page import BANDWIDTHS, WORLDS
from thriftgrad.lab.advise.pieces import Bytes, Line, Pieces, Round
from thriftgrad.lab.advise.ranking import (
    Contender,
    Row,
    Setting,
    advised,
    bandwidths,
    over_bandwidths,
    over_workers,
    rows,
    worlds,
)
from thriftgrad.lab.advise.step import Compute
from thriftgrad.lab.advise.transport import Transport
from thriftgrad.lab.advise.words import ANY, NEVER, bandwidth_text, sentence, workers_text

MEGABYTE = 1e6
SETTING = Setting(Compute(0.1, 0.2), (0.2,), lanes=2.0)
LINK = Transport("80mbit", LinkModel(80e6))


def contender(
    label: str,
    divided: float = 0.0,
    whole: float = 0.0,
    *,
    encode: float = 0.0,
    decode_each: float = 0.0,
    distortion: float = 0.1,
    gap: int | None = None,
) -> Contender:
    """One DDP bucket, ready at the end of the backward pass, in one round."""
    carried = Bytes(divided, whole)
    piece = Round("AllReduce", Line(encode), carried, carried, Line(-2.0, 2.0))
    candidate = Candidate(label, f"{label}()", None, gap)
    return Contender(candidate, Coded((Pieces((piece,), Line(0.0, decode_each)),), distortion))


PLAIN = contender(DDP, 8 * MEGABYTE, distortion=0.0)
CAST = contender(BF16, 4 * MEGABYTE, distortion=1e-6)
SMALL = contender("Small", 0.4 * MEGABYTE, encode=0.01)
GATHERED = contender("Gathered", whole=0.1 * MEGABYTE, decode_each=0.001, distortion=0.5)


def table(*others: Contender, workers: int = 2, link: Transport = LINK) -> dict[str, Row]:
    return {row.candidate.label: row for row in rows([PLAIN, CAST, *others], SETTING, workers, link)}


def test_rows_hold_what_the_parts_add_up_to_shortest_first() -> None:
    """At 10 MB/s two workers all-reduce 2 MB of bf16 in 0.2 s, after a step of 0.3 s."""
    found = table(SMALL, GATHERED)
    assert list(found) == ["Gathered", "Small", BF16, DDP]
    assert found[BF16].seconds == pytest.approx(0.5)
    assert found[BF16].exposed_seconds == pytest.approx(0.2)
    assert found[DDP].seconds == pytest.approx(0.7)
    assert found["Small"].seconds == pytest.approx(0.3 + 0.01 + 0.02)
    assert found["Gathered"].seconds == pytest.approx(0.3 + 0.01 + 0.002)
    assert found["Gathered"].up_bytes == 0.1 * MEGABYTE
    assert found["Small"].up_bytes == 0.2 * MEGABYTE


def test_latency_counts_for_every_hop() -> None:
    link = Transport("", LinkModel(80e6, latency_seconds=0.05))
    assert table(link=link)[BF16].seconds == pytest.approx(0.5 + 2 * 0.05)
    assert table(link=link, workers=4)[BF16].seconds == pytest.approx(0.3 + 0.3 + 6 * 0.05)


def test_workers_that_train_apart_share_an_exchange_among_the_steps_of_a_gap() -> None:
    apart = contender("Apart", 4 * MEGABYTE, encode=0.1, gap=10)
    row = table(apart)["Apart"]
    assert row.seconds == pytest.approx(0.3 + (0.1 + 0.2) / 10)
    assert row.up_bytes == 0.2 * MEGABYTE
    assert row.distortion is None


def test_one_worker_exchanges_nothing() -> None:
    assert SETTING.seconds(CAST, 1, LINK) == pytest.approx(0.3)


def test_the_break_even_bandwidth_is_that_of_the_closed_form() -> None:
    """With nothing hidden: encoding c and 8 b bits against 8 b' bits: B = 8 (b' - b) / c."""
    row = table(SMALL)["Small"]
    assert row.bandwidth is not None
    assert row.bandwidth[0] == 0
    assert row.bandwidth[1] == pytest.approx(8 * 1.8 * MEGABYTE / 0.01, rel=0.02)
    assert bandwidth_text(row).endswith(" Gbit/s")
    assert table()[BF16].bandwidth is None
    assert bandwidth_text(table()[BF16]) == ""


def test_the_break_even_number_of_workers_is_that_of_the_closed_form() -> None:
    """Gathering pays while (n - 1) 0.1 MB and n ms are less than 4 (n - 1) / n MB at 10 MB/s."""
    row = table(GATHERED)["Gathered"]
    pays = [n for n in range(2, 200) if (n - 1) * 0.01 + n * 0.001 < 0.4 * (n - 1) / n]
    assert row.workers == (2, pays[-1])
    assert workers_text(row) == f"up to {pays[-1]}"
    assert table(SMALL)["Small"].workers == (2, 4096)


@pytest.mark.parametrize(
    ("pays", "text"),
    [
        (lambda x: x < 2e7, "up to it"),
        (lambda x: x > 2e7, "from it on"),
        (lambda x: True, "always"),
        (lambda x: False, "never"),
    ],
    ids=["below", "above", "always", "never"],
)
def test_the_ends_of_a_range_are_found(pays: object, text: str) -> None:
    expected = {"up to it": (0.0, 2e7), "from it on": (2e7, inf), "always": (0.0, inf), "never": None}[text]
    found = bandwidths(pays)  # type: ignore[arg-type]
    assert found == (expected and pytest.approx(expected, rel=0.02))


def test_the_ends_of_a_range_of_workers_are_exact() -> None:
    assert worlds(lambda n: n <= 777) == (2, 777)
    assert worlds(lambda n: n >= 6) == (6, 4096)
    assert worlds(lambda n: 5 <= n <= 9) == (5, 9)
    assert worlds(lambda n: n == 1) is None


def test_ranges_in_words() -> None:
    def row(bandwidth: tuple[float, float] | None, workers: tuple[int, int] | None) -> Row:
        return Row(Candidate("X", "X()", None), 1.0, 0.0, 0.0, 0.0, bandwidth, workers)

    assert (bandwidth_text(row(None, None)), workers_text(row(None, None))) == (NEVER, NEVER)
    assert (bandwidth_text(row((0.0, inf), None)), workers_text(row(None, (2, 4096)))) == (ANY, ANY)
    assert bandwidth_text(row((2e6, inf), None)) == "over 2.00 Mbit/s"
    assert bandwidth_text(row((2e6, 3e9), None)) == "2.00 Mbit/s to 3.00 Gbit/s"
    assert workers_text(row(None, (3, 4096))) == "from 3"
    assert workers_text(row(None, (3, 5))) == "3 to 5"


def test_the_least_distortion_within_five_per_cent_is_advised() -> None:
    """The step of 0.302 s is the shortest; 0.31 s is close to it and much nearer to the mean, 0.33 s is not close."""
    fast = contender("Fast", encode=0.002, distortion=0.9)
    close = contender("Close", encode=0.01, distortion=0.2)
    far = contender("Far", encode=0.03, distortion=0.01)
    found = list(table(fast, close, far).values())
    assert found[0].candidate.label == "Fast"
    assert advised(found).candidate.label == "Close"
    assert sentence(found) == (
        "Use Close(): 310 ms a step, 10.0 ms of it waiting for the exchange, against 500 ms with bf16."
    )


def test_it_says_dont_where_nothing_is_faster() -> None:
    slow = contender("Slow", encode=1.0)
    assert sentence(list(table(slow).values())) == (
        "Don't compress: bf16 takes 500 ms a step, and nothing here is faster."
    )
    fast_link = Transport("", LinkModel(80e9))
    assert sentence(list(table(slow, link=fast_link).values())) == (
        "Don't compress: DDP, float32 takes 300 ms a step, and the fastest method here, bf16, would save 0.1 % of it."
    )


def test_it_says_dont_where_what_would_be_saved_is_little() -> None:
    """At 2 Gbit/s bf16 takes 8 ms, float32 16 ms: 316 ms is more than 5 % over the 300 ms of who sends nothing."""
    found = table(contender("Little", distortion=0.5), link=Transport("", LinkModel(2e9)))
    assert sentence(list(found.values())) == (
        "Don't compress: bf16 takes 308 ms a step, and the fastest method here, Little, would save 2.6 % of it."
    )


def test_methods_that_train_apart_are_named_and_not_advised() -> None:
    apart = contender("Apart", gap=50)
    text = sentence(list(table(SMALL, apart).values()))
    assert text.startswith("Use Small(): 330 ms a step")
    assert text.endswith("; where workers may train on their own between syncs, Apart takes 300 ms.")
    near = contender("Near", encode=0.01)
    assert "train on their own" not in sentence(list(table(near, apart).values()))  # 310 ms are as good


def test_scaling_out_to_4096_workers_is_arithmetic_on_the_pieces() -> None:
    found = over_workers([CAST, GATHERED], SETTING, LINK, WORLDS)
    assert WORLDS[-1] == 4096
    for at, n in enumerate(WORLDS):
        assert found[BF16][at] == pytest.approx(0.3 + 0.4 * (n - 1) / n)
        assert found["Gathered"][at] == pytest.approx(0.3 + 0.01 * (n - 1) + 0.001 * n)


def test_other_bandwidths_are_arithmetic_too() -> None:
    found = over_bandwidths([CAST], SETTING, LINK, 2, BANDWIDTHS)[BF16]
    assert found == pytest.approx([0.3 + 16 * MEGABYTE / bits for bits in BANDWIDTHS])


def test_the_broadcast_of_buffers_adds_to_every_exchange_of_ddp() -> None:
    """0.5 MB to one other worker at 10 MB/s, for all but those that train apart."""
    setting = Setting(SETTING.compute, SETTING.ready_seconds, SETTING.lanes, (100_000, 400_000))
    apart = contender("Apart", 4 * MEGABYTE, gap=10)
    for each, more in ((CAST, 0.05), (SMALL, 0.05), (apart, 0.0)):
        assert setting.seconds(each, 2, LINK) == pytest.approx(SETTING.seconds(each, 2, LINK) + more)
