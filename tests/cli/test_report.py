"""A report drawn again, and the commands that only print."""

import pytest

from cli.runs import SMALL, files
from thriftgrad.lab.summary import read_summary
from thriftgrad.lab.table import markdown


@pytest.fixture
def compared(cli):
    assert cli("compare", "sgd", "qsgd", *SMALL, "--out", "out").code == 0


@pytest.mark.usefixtures("compared")
def test_report_redraws_what_compare_drew(cli, tmp_path):
    before = files(tmp_path / "out")
    table = cli("compare", "sgd", "qsgd", *SMALL, "--out", "out").out
    (tmp_path / "out" / "report.html").unlink()
    assert cli("report", "out") == (0, table, "")
    assert files(tmp_path / "out") == before
    code, out, _ = cli("report", "out", "--out", "elsewhere/x.html")
    assert (code, out) == (0, table.replace("out/report.html", "elsewhere/x.html"))
    assert (tmp_path / "elsewhere" / "x.html").read_bytes() == before[tmp_path / "out" / "report.html"]


@pytest.mark.usefixtures("compared")
def test_markdown_is_all_that_is_printed_where_asked_for(cli, tmp_path):
    assert cli("report", "out", "--markdown") == (0, markdown(read_summary(tmp_path / "out")), "")


@pytest.mark.usefixtures("compared")
def test_nothing_finished_yet(cli, tmp_path):
    for path in (tmp_path / "out" / "runs").iterdir():
        path.write_text(path.read_text().splitlines()[0] + "\n")
    code, out, err = cli("report", "out")
    assert (code, out) == (2, "")
    assert err == (
        "thriftgrad: None of the 2 runs in out has finished; run the same `thriftgrad compare` command again to resume "
        "them.\n"
    )


@pytest.mark.usefixtures("compared")
def test_a_report_that_cannot_be_written(cli):
    code, out, err = cli("report", "out", "--out", "out/comparison.json/x.html")
    assert (code, out) == (2, "")
    assert err.startswith("thriftgrad: The report cannot be written to out/comparison.json/x.html (")
    assert err.count("\n") == 1


def test_explain_and_methods_print_what_explain_py_makes(cli):
    code, out, err = cli("explain", "qsgd(bits=2)", "--size", "10000", "--workers", "8")
    assert (code, err) == (0, "")
    assert "float32, Gaussian, 100 x 100; 8 workers" in out
    assert "arXiv:1610.02132" in out
    code, out, err = cli("methods")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("power_sgd", "QSGD", "ScatterReduce", "ErrorFeedback"))


def test_output_to_a_file_is_100_columns_wide_unless_stated(cli, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, cli("methods").out.splitlines())) == 100
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, cli("methods").out.splitlines())) == 60
