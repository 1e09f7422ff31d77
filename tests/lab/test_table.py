"""The cells, the rules beside them, and the two plain renderings."""

import pytest
from rich.console import Console

from lab.fabricate import configuration, end, evaluation, finished, method, realistic, start, write
from thriftgrad.lab.summary import read_summary
from thriftgrad.lab.table import (
    column_groups,
    columns,
    human_bytes,
    markdown,
    notes,
    quality_text,
    significant,
    status_text,
    table,
    target_text,
)

REACHED = [0.1, 0.5, 0.96, 0.94, 0.97]
MISSED = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.fixture
def summary(tmp_path):
    """sgd reaches the target on every seed; half on two of three; never on none, and one of its seeds diverges."""
    runs = {("sgd", seed): finished("sgd", seed, REACHED, bytes_a_step=400.0) for seed in range(3)}
    runs |= {("half", seed): finished("half", seed, REACHED if seed else MISSED) for seed in range(3)}
    runs |= {("never", seed): finished("never", seed, MISSED) for seed in range(2)}
    runs["never", 2] = [start("never", 2), evaluation(0, 0.1), evaluation(10, None), end(10, diverged=True)]
    methods = [method("sgd"), method("half"), method("never")]
    return read_summary(write(tmp_path, configuration(methods), runs))


def column(summary, group, name):
    (found,) = [column for column in columns(summary) if (column.group, column.name) == (group, name)]
    return found


def shown(renderable, width=100):
    console = Console(width=width, color_system=None, record=True, file=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_quality_stands_beside_its_cost_in_every_row(summary):
    groups = [group[0].group for group in column_groups(summary)]
    assert groups == [
        "final test accuracy",
        "link bytes per step",
        "times less than ring",
        "to target",
        "seconds to target",
        "ms per step",
    ]
    assert [len(column.cells) for column in columns(summary)] == [3] * 14


def test_cells(summary):
    assert column(summary, "final test accuracy", "mean").cells == ("0.9700", "0.8133", "0.5000")
    assert column(summary, "final test accuracy", "min..max").cells[1] == "0.5000..0.9700"
    assert column(summary, "final test accuracy", "std").cells == ("0", "0.271", "0")
    assert column(summary, "link bytes per step", "up").cells == ("400 B", "100 B", "100 B")
    assert column(summary, "link bytes per step", "down").cells == ("1.20 kB", "300 B", "300 B")
    assert column(summary, "link bytes per step", "sum").cells == ("1.60 kB", "400 B", "400 B")
    assert column(summary, "times less than ring", "fp32").cells == ("1.00x", "4.00x", "4.00x")
    assert column(summary, "times less than ring", "bf16").cells == ("0.500x", "2.00x", "2.00x")
    assert column(summary, "ms per step", "encode").cells == ("2.00", "2.00", "2.00")
    assert column(summary, "ms per step", "decode").cells == ("1.00", "1.00", "1.00")


def test_a_target_not_reached_is_a_cell_and_sorts_last(summary):
    for group, name, first in (
        ("to target", "steps", "20"),
        ("to target", "bytes", "32.0 kB"),
        ("seconds to target", "100mbit,1ms", "1.26"),
        ("seconds to target", "10gbit,0.1ms", "0.360"),
    ):
        cells = column(summary, group, name)
        assert cells.cells == (first, "2/3 reached", "not reached")
        assert cells.values[1:] == (None, None)
        assert cells.best == {0}


def test_the_best_quality_depends_on_the_direction(summary, tmp_path):
    assert column(summary, "final test accuracy", "mean").best == {0}
    settings = configuration([method("a"), method("b")], seeds=[0])
    settings["task"] |= {"higher_is_better": False, "quality": "loss", "target": 0.2}
    runs = {("a", 0): finished("a", 0, [1.0, 0.5]), ("b", 0): finished("b", 0, [1.0, 0.1])}
    lower = read_summary(write(tmp_path / "lower", settings, runs))
    assert column(lower, "final loss", "mean").best == {1}
    assert column(lower, "final loss", "std").cells == ("-", "-")
    assert target_text(lower) == "loss ≤ 0.2"


def test_ties_are_all_best(tmp_path):
    settings = configuration([method("a"), method("b")], seeds=[0])
    runs = {(slug, 0): finished(slug, 0, [0.1, 0.96]) for slug in "ab"}
    assert column(read_summary(write(tmp_path, settings, runs)), "to target", "bytes").best == {0, 1}


def test_status_counts_what_is_left_out(summary):
    assert [status_text(method) for method in summary.methods] == ["", "", "1 of 3 diverged"]


def test_notes_state_every_rule(summary):
    assert notes(summary) == (
        "Task digits: 38,282 parameters, 4 workers, 3 seeds (0, 1, 2), 40 steps of batch 32 per worker, "
        "5,120 samples a run; the workers are simulated in one process.",
        "Target: test accuracy ≥ 0.95, at the first evaluation that meets it (one every 10 steps); mean over seeds, "
        "given only where every seed meets it.",
        "Final quality: last evaluation of the finished runs; std is the sample standard deviation over seeds.",
        "Bytes: link bytes of one worker, mean over workers; bytes to target are up and down together; "
        "1 kB = 1000 bytes.",
        "Times less than ring: against a ring all-reduce of the gradients, both directions, in fp32 (1.60 kB a step) "
        "and in bf16 (800 B).",
        "Seconds: compute, encode and decode of one worker, measured on this machine, plus the modelled link, one "
        "after the other: no overlap.",
    )


def test_notes_say_if_processes_were_real_and_samples_differed(tmp_path):
    settings = configuration([method("a"), method("b")], seeds=[4], mode="processes", workers=1)
    runs = {("a", 4): finished("a", 4, [0.1, 0.2]), ("b", 4): finished("b", 4, [0.1, 0.2, 0.3])}
    first = notes(read_summary(write(tmp_path, settings, runs)))[0]
    assert "1 worker, 1 seed (4)" in first
    assert "1,280 to 2,560 samples a run; every worker is a real process on this machine." in first


@pytest.mark.parametrize("width", [100, 140, 200])
def test_the_terminal_shows_every_cell_whole(tmp_path, width):
    summary = read_summary(realistic(tmp_path))
    text = shown(table(summary), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for cells in columns(summary):
        assert cells.name in text
        for cell in cells.cells:
            assert cell in text
    assert "1 of 3 diverged" in text
    assert "1 of 3 unfinished" in text
    flowing = " ".join(text.split())
    assert all(note in flowing for note in notes(summary))


def test_one_row_a_method_with_the_parts_of_a_cell_below_each_other(summary):
    lines = shown(table(summary)).splitlines()
    row = next(at for at, line in enumerate(lines) if line.split()[:1] == ["half"])
    assert lines[row].split() == ["half", "0.8133", "100", "B", "4.00x", *["2/3", "reached"] * 2, "2.00"]
    assert lines[row + 1].split() == ["0.271", "300", "B", "2.00x", *["2/3", "reached"] * 2, "1.00"]
    assert lines[row + 2].split() == ["0.5000..0.9700", "400", "B"]


def test_a_label_is_text_and_not_markup(tmp_path):
    settings = configuration([method("[red]a|b`c`[/red]", "slug")], seeds=[0])
    summary = read_summary(write(tmp_path, settings, {("slug", 0): finished("slug", 0, [0.1, 0.96])}))
    assert "[red]a|b`c`[/red]" in shown(table(summary), 140)
    assert r"| `` [red]a\|b`c`[/red] `` |" in markdown(summary)


def test_markdown_is_one_table_and_the_notes(summary):
    head, rule, *rows = markdown(summary).split("\n\n")[0].splitlines()
    assert head == (
        "| method | final test accuracy: mean / std / min..max | link bytes per step: up / down / sum "
        "| times less than ring: fp32 / bf16 | to target: steps / bytes "
        "| seconds to target: 100mbit,1ms / 10gbit,0.1ms | ms per step: encode / decode |"
    )
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert rows == [
        "| `sgd` | **0.9700** / 0 / 0.9700..0.9700 | 400 B / 1.20 kB / 1.60 kB | 1.00x / 0.500x "
        "| **20** / **32.0 kB** | **1.26** / **0.360** | 2.00 / 1.00 |",
        "| `half` | 0.8133 / 0.271 / 0.5000..0.9700 | 100 B / 300 B / 400 B | 4.00x / 2.00x "
        "| 2/3 reached | 2/3 reached | 2.00 / 1.00 |",
        "| `never` (1 of 3 diverged) | 0.5000 / 0 / 0.5000..0.5000 | 100 B / 300 B / 400 B | 4.00x / 2.00x "
        "| not reached | not reached | 2.00 / 1.00 |",
    ]
    assert markdown(summary).endswith("\n\n" + "".join(f"- {note}\n" for note in notes(summary)))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (999.6, "1.00 kB"), (1000, "1.00 kB"), (999_499, "999 kB"),
        (999_600, "1.00 MB"), (1.234e9, "1.23 GB"), (5e12, "5.00 TB"), (5e15, "5,000 TB"),
    ],
)  # fmt: skip
def test_human_bytes_change_unit_where_three_digits_end(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00009, "9.00e-05"), (0.0001, "0.000100"), (0.09996, "0.100"), (9.996, "10.0"), (99.96, "100")],
)
def test_significant_rounds_before_it_counts_digits(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(("value", "text"), [(-0.5, "-0.5000"), (0.009, "9.00e-03"), (1234.5, "1.23e+03")])
def test_quality_keeps_its_digits(value, text):
    assert quality_text(value) == text


@pytest.fixture
def on_sgd(tmp_path):
    measured = {
        "variance": 0.25,
        "coordinate_variance": 2e-9,
        "bias": 0.5,
        "cosine": 0.875,
        "bits_per_coordinate": 3.07,
    }
    runs = {
        ("noisy", 0): finished("noisy", 0, REACHED, bias_floor=0.5, symbol_width_bits=3.0, **measured),
        ("biased", 0): finished("biased", 0, REACHED, bias_floor=0.0, **measured),
        ("old", 0): finished("old", 0, REACHED),
    }
    methods = [method("noisy"), method("biased"), method("old")]
    return read_summary(write(tmp_path, configuration(methods, seeds=[0], protocol="on-sgd"), runs))


def test_where_plain_sgd_trained_there_is_no_quality_to_compare(on_sgd):
    groups = [group[0].group for group in column_groups(on_sgd)]
    assert groups == [
        "variance",
        "error",
        "bits a coordinate and symbol",
        "link bytes per step",
        "times less than ring",
        "ms per step",
    ]
    assert column(on_sgd, "variance", "normalised").cells == ("0.250", "0.250", "-")
    assert column(on_sgd, "variance", "a coordinate").cells == ("2.00e-09", "2.00e-09", "-")
    assert column(on_sgd, "error", "bias").cells == ("<0.250", "0.500", "-")
    assert column(on_sgd, "error", "cosine").cells == ("0.8750", "0.8750", "-")
    assert column(on_sgd, "bits a coordinate and symbol", "sent").cells == ("3.07", "3.07", "-")
    assert column(on_sgd, "bits a coordinate and symbol", "fixed width").cells == ("3.00", "-", "-")
    assert all(not each.best for each in columns(on_sgd))


def test_the_notes_name_the_protocol_and_promise_no_target(on_sgd):
    told = " ".join(notes(on_sgd))
    assert "Protocol: plain SGD trained one model for each seed" in told
    assert "Target" not in told
    assert "noisy" in shown(table(on_sgd))
    assert markdown(on_sgd).startswith("| method | variance: normalised / a coordinate |")
