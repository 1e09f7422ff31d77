"""``thriftgrad reproduce``: options, errors, interruption. The work itself is tested in lab/reproduce."""

import json
import signal

from cli.runs import begun, processes_about, wait_until


def test_the_papers_are_listed(cli):
    result = cli("reproduce", "--help")
    assert result.code == 0
    assert "nuqsgd" in result.out
    assert "alq" in result.out
    assert "qsparse" in result.out
    assert "powersgd" in result.out


def test_an_unknown_paper_is_one_sentence(cli):
    result = cli("reproduce", "lenet")
    assert result.code == 2
    assert result.err == "thriftgrad: No such command 'lenet'; see thriftgrad reproduce --help.\n"


def test_a_folder_of_something_else_is_one_sentence(cli, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "reproduction.json").write_text(json.dumps({"schema": 1, "reproduction": "alq"}))
    result = cli("reproduce", "nuqsgd", "--quick", "--out", "there")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "thriftgrad: reproduce: there holds another reproduction (of another paper, length or version); choose another "
        "folder with --out.\n"
    )


def test_an_interruption_is_one_sentence_and_leaves_no_process(tmp_path):
    process = begun(["reproduce", "nuqsgd", "--quick", "--out", str(tmp_path / "out")], tmp_path)
    wait_until(lambda: list((tmp_path / "out" / "measurements").glob("*.jsonl")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err == "thriftgrad: interrupted; what is finished is kept, and the same command goes on from there.\n"
    wait_until(lambda: not processes_about(tmp_path), 10)
