"""Rows of measurements: append-only, and begun again after a kill."""

import pytest

from thriftgrad.lab.reproduce.records import ReproductionError, record, recorded


def test_rows_are_read_back(tmp_path):
    path = tmp_path / "there" / "a.jsonl"
    assert recorded(path) is None
    record(path, iter([{"x": 1}, {"x": 2}]))
    assert recorded(path) == [{"kind": "row", "x": 1}, {"kind": "row", "x": 2}]


def test_an_attempt_without_its_end_does_not_count_and_stays_in_the_file(tmp_path):
    def interrupted():
        yield {"x": 1}
        raise KeyboardInterrupt

    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        record(path, interrupted())
    assert recorded(path) is None
    with path.open("a") as file:
        file.write('{"kind": "row", "x": 1.2')  # killed in the middle of a line
    assert recorded(path) is None
    record(path, iter([{"x": 3}]))
    assert recorded(path) == [{"kind": "row", "x": 3}]
    assert path.read_text().count('"start"') == 2


def test_a_measurement_without_rows_is_finished(tmp_path):
    record(tmp_path / "a.jsonl", iter([]))
    assert recorded(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize("line", ["{", "[]", "{}", "1"])
def test_a_line_that_is_no_record_is_refused(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"kind": "start"}}\n{line}\n')
    with pytest.raises(
        ReproductionError, match=r"a\.jsonl, line 2 is no record; delete the file and give the same command"
    ):
        recorded(path)
