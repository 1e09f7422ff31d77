"""Reading records: restarted and killed runs, and one sentence for everything that can be wrong with a file."""

import json

import pytest

from lab.fabricate import configuration, end, evaluation, finished, lines, method, start, write
from thriftgrad.lab.load import RecordsError, load

WHOLE = finished("sgd", 0, [0.1, 0.5, 0.9])


def one_run(tmp_path, run, **changes):
    write(tmp_path, configuration([method("sgd")], seeds=[0], **changes), {("sgd", 0): run})
    return load(tmp_path)[1][0]


def beside_a_whole_run(tmp_path, run):
    """The run as seed 1, so that the comparison has a finished run whatever becomes of it."""
    write(tmp_path, configuration([method("sgd")], seeds=[0, 1]), {("sgd", 0): WHOLE, ("sgd", 1): run})
    return load(tmp_path)[1][1]


def test_reads_what_was_written(tmp_path):
    configured, (run,) = load(write(tmp_path, configuration([method("sgd")], seeds=[0]), {("sgd", 0): WHOLE}))
    assert configured.task.target == 0.95
    assert [link.label for link in configured.links] == ["100mbit,1ms", "10gbit,0.1ms"]
    assert configured.baseline_bytes.fp32.both == 1600
    assert (run.method, run.seed, run.status) == ("sgd", 0, "finished")
    assert [(at.step, at.quality) for at in run.evaluations] == [(0, 0.1), (10, 0.5), (20, 0.9)]


def test_only_what_follows_the_last_start_counts(tmp_path):
    first = [start("sgd", 0), evaluation(0, 0.3), evaluation(10, 0.7), evaluation(20, 0.8)]
    run = one_run(tmp_path, [*first, *WHOLE])
    assert [at.quality for at in run.evaluations] == [0.1, 0.5, 0.9]


def test_a_restart_after_a_cut_off_line_counts(tmp_path):
    run = one_run(tmp_path, lines([start("sgd", 0)]) + '{"kind": "eval", "st\n' + lines(WHOLE))
    assert (run.status, len(run.evaluations)) == ("finished", 3)


@pytest.mark.parametrize("cut", [1, 40, 150])
def test_a_cut_off_last_line_is_dropped(tmp_path, cut):
    text = lines([start("sgd", 1), evaluation(0, 0.1), evaluation(10, 0.5)])
    run = beside_a_whole_run(tmp_path, text + lines([evaluation(20, 0.9)])[:-cut])
    # one byte less is a whole record without its newline
    assert [at.step for at in run.evaluations] == ([0, 10, 20] if cut == 1 else [0, 10])
    assert run.status == "unfinished"


def test_a_line_cut_inside_a_character_is_dropped(tmp_path):
    beside_a_whole_run(tmp_path, [start("sgd", 1), evaluation(0, 0.1)])
    with (tmp_path / "runs" / "sgd-seed1.jsonl").open("ab") as file:
        file.write(b'{"kind": "\xc3')
    assert len(load(tmp_path)[1][1].evaluations) == 1


def test_a_file_cut_off_in_its_first_line_is_an_unfinished_run(tmp_path):
    run = beside_a_whole_run(tmp_path, '{"kind": "sta')
    assert (run.status, run.evaluations) == ("unfinished", ())


def test_a_run_may_end_diverged(tmp_path):
    run = one_run(tmp_path, [start("sgd", 0), evaluation(0, 0.1), evaluation(10, None), end(10, diverged=True)])
    assert run.status == "diverged"


def test_what_compression_did_is_read_and_may_be_missing(tmp_path):
    levels = {"tensor": "w", "version": 2, "values": [0, 0.25, 1]}
    measured = {"coordinate_variance": 1e-9, "bias": 0.2, "bias_floor": 0.1, "cosine": -0.5, "levels": levels}
    records = [start("sgd", 0), evaluation(0, 0.1), evaluation(10, 0.9, **measured), end(10)]
    first, last = one_run(tmp_path, records).evaluations
    assert (first.coordinate_variance, first.bias, first.bits_per_coordinate, first.levels) == (None,) * 4
    assert (last.coordinate_variance, last.bias, last.bias_floor, last.cosine) == (1e-9, 0.2, 0.1, -0.5)
    assert (last.levels.tensor, last.levels.version, last.levels.values) == ("w", 2, (0, 0.25, 1))


def test_a_comparison_that_does_not_say_is_of_methods_that_trained(tmp_path):
    configured, _ = load(write(tmp_path, configuration([method("sgd")], seeds=[0]), {("sgd", 0): WHOLE}))
    assert configured.protocol == "trained"


def test_an_unknown_protocol(tmp_path):
    write(tmp_path, configuration([method("sgd")], protocol="sideways"), {})
    fails(
        tmp_path,
        "DIR/comparison.json: field 'protocol' is wrong (input should be 'trained' or 'on-sgd'); "
        "run the comparison again.",
    )


def fails(tmp_path, message):
    with pytest.raises(RecordsError) as caught:
        load(tmp_path)
    text = str(caught.value).replace(str(tmp_path), "DIR")
    assert text == message


REDO = "; delete the file and run the same comparison again to redo it."


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        (lines(WHOLE[:2]) + "{}\n" + lines(WHOLE[2:]), "line 3: it is not a JSON record of kind start, eval or end"),
        (lines(WHOLE[:2]) + "[1]\n" + lines(WHOLE[2:]), "line 3: it is not a JSON record of kind start, eval or end"),
        (lines(WHOLE[:2]) + '{"ki\n' + lines(WHOLE[2:]), "line 3: it is not a JSON record of kind start, eval or end"),
        (lines(WHOLE[1:]), "line 1: it is not the start of a run"),
        (lines([start("other", 0), *WHOLE[1:]]), "line 1: it starts method 'other', seed 0"),
        (lines([start("sgd", 5), *WHOLE[1:]]), "line 1: it starts method 'sgd', seed 5"),
        (lines([*WHOLE, WHOLE[-2]]), "line 6: it follows the end of the run"),
        (lines([*WHOLE[:3], WHOLE[2]]), "line 4: step 10 does not come after step 10"),
        (lines([start("sgd", 0), end(0)]), "line 2: the run ends without an evaluation"),
        (
            lines([start("sgd", 0), evaluation(0, 0.1, link_seconds={"100mbit,1ms": 0.0})]),
            "line 2: it has no seconds for link '10gbit,0.1ms'",
        ),
    ],
)
def test_a_corrupt_run_is_named_with_its_line(tmp_path, run, complaint):
    write(tmp_path, configuration([method("sgd")], seeds=[0]), {("sgd", 0): run})
    fails(tmp_path, f"DIR/runs/sgd-seed0.jsonl, {complaint}{REDO}")


def test_a_field_of_the_wrong_kind_is_named(tmp_path):
    write(
        tmp_path,
        configuration([method("sgd")], seeds=[0]),
        {("sgd", 0): [start("sgd", 0), evaluation(0, 0.1) | {"step": "x"}]},
    )
    fails(
        tmp_path,
        "DIR/runs/sgd-seed0.jsonl, line 2: field 'step' is wrong (input should be a valid integer, "
        f"unable to parse string as an integer){REDO}",
    )


def test_a_missing_field_of_the_configuration_is_named(tmp_path):
    settings = configuration([method("sgd")])
    del settings["task"]["target"]
    write(tmp_path, settings, {})
    fails(tmp_path, "DIR/comparison.json: field 'task.target' is wrong (field required); run the comparison again.")


def test_no_comparison(tmp_path):
    fails(
        tmp_path,
        "There is no comparison to read in DIR (No such file or directory: comparison.json); "
        "give the directory that `thriftgrad compare` wrote to with --out.",
    )


def test_a_configuration_that_is_not_json(tmp_path):
    (tmp_path / "comparison.json").write_text("")
    fails(
        tmp_path,
        "DIR/comparison.json is not valid JSON (Expecting value: line 1 column 1 (char 0)); run the comparison again.",
    )


@pytest.mark.parametrize(("settings", "found"), [({"schema": 2}, "2"), ({}, "None"), ([], "None")])
def test_another_schema(tmp_path, settings, found):
    (tmp_path / "comparison.json").write_text(json.dumps(settings))
    fails(
        tmp_path,
        f"DIR/comparison.json has schema {found} but this version of thriftgrad reads schema 1; "
        "use the version that wrote it, or run the comparison again.",
    )


def test_nothing_finished(tmp_path):
    write(tmp_path, configuration([method("sgd")]), {("sgd", 0): WHOLE[:-1]})
    fails(
        tmp_path,
        "None of the 3 runs in DIR has finished; run the same `thriftgrad compare` command again to resume them.",
    )
