"""What a command's links carried, against its ledgers: by hand."""

import json
import os

import pytest

from lab.test_table import shown
from thriftgrad.lab import command
from thriftgrad.lab.command import Bytes, Crossed, notes, table
from thriftgrad.lab.shape import LabError, Shape

LINK = Shape.of("100mbit")
AGREES = Crossed(0, 10.0, Bytes(51e6, 25.5e6), Bytes(50e6, 25e6))
MORE = Crossed(1, 8.0, Bytes(60e6, 25e6), Bytes(50e6, 25e6))


def test_apart_is_relative_to_the_ledger_and_a_little_is_nothing():
    assert AGREES.apart == pytest.approx((0.02, 0.02))
    assert MORE.apart == pytest.approx((0.2, 0.0))
    assert (AGREES.agrees, MORE.agrees) == (True, False)
    assert Crossed(0, 1.0, Bytes(90e3, 1e3), Bytes(1e3, 1e3)).agrees  # meeting and leaving
    assert not Crossed(0, 1.0, Bytes(190e3, 1e3), Bytes(1e3, 1e3)).agrees
    untold = Crossed(0, 1.0, Bytes(1.0, 1.0), None)
    assert (untold.apart, untold.agrees) == (None, False)


def test_a_row_a_rank_and_a_mark_where_they_are_apart():
    text = shown(table([AGREES, MORE], LINK), width=120)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    # 51 MB in 10 s are 40.8 Mbit/s
    assert "0 10.0 51.0 MB 25.5 MB 40.8 / 20.4 41% / 20% 50.0 MB 25.0 MB +2.0% / +2.0%" in rows
    assert "1 8.00 60.0 MB 25.0 MB 60.0 / 25.0 60% / 25% 50.0 MB 25.0 MB +20% / +0.0% (!)" in rows
    said = " ".join(rows)
    assert "2 ranks, each behind a link of 100mbit." in said
    assert "times 1.046 for the headers of full frames" in said
    assert "(!) More than 5% apart: messages too short to fill frames, packets sent again, or something" in said


def test_without_a_ledger_and_without_a_limit_there_is_less_to_say():
    text = shown(table([Crossed(0, 10.0, Bytes(51e6, 25e6), None)], Shape.of("unlimited")), width=120)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "0 10.0 51.0 MB 25.0 MB 40.8 / 20.0 -" in rows
    assert "No ledger to compare with" in " ".join(rows)
    assert "packets of up to 64 KiB with one header each" in " ".join(rows)


def test_ranks_that_share_cores_are_told(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert notes([AGREES, MORE], LINK)[-1] == (
        "2 ranks shared 1 cores, so they computed more slowly than on machines of their own."
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert "cores" not in " ".join(notes([AGREES, MORE], LINK))


def test_the_ledgers_of_a_rank_add_up(tmp_path):
    for name, books in (("1-1", ("0", 10, 1)), ("1-2", ("0", 5, 1)), ("2-1", ("1", 7, 3))):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(zip(("rank", "up", "down"), books, strict=True))))
    assert command._ledgers(tmp_path) == {0: (15, 2), 1: (7, 3)}


def test_a_command_that_is_none_is_a_sentence():
    with pytest.raises(
        LabError,
        match=r"^lab: there is no command 'pyhton' here; .* where sudo does not find it, as in -- ",
    ):
        command.run(["pyhton", "train.py"], 2, LINK, lambda *line: None)
