"""A whole reproduction, small: work, verdicts, resuming, pages."""

import json
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from lab.reproduce.toy_reproduction import toy
from thriftgrad.lab.reproduce import page
from thriftgrad.lab.reproduce.claims import Verdict
from thriftgrad.lab.reproduce.records import ReproductionError
from thriftgrad.lab.reproduce.reproduction import reproduce


def quietly(stage, sign):
    """Nobody looks."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    stages = []
    result = reproduce(toy(), folder, lambda stage, sign: stages.append(stage), command="thriftgrad toy", processes=1)
    return folder, result, stages


def test_claims_get_verdicts(finished):
    _, result, stages = finished
    assert [answer.claim.statement for answer in result.answers] == [
        "ALQ has less variance than QSGD.",
        "QSGD | matches.",
    ]
    assert set(stages) == {"measuring and tuning", "training"}
    assert ("main: SGD", "0.1") in [(name, rate) for name, _, rate in result.methods]


def test_the_same_call_again_does_nothing_and_says_the_same(finished):
    folder, result, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if path.name != "results.json"}
    signs = []
    again = reproduce(toy(), folder, lambda *each: signs.append(each), command="thriftgrad toy", processes=1)
    assert signs == []
    assert again.answers[0].finding == result.answers[0].finding
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if path.name != "results.json"} == before


def test_what_was_lost_is_done_again_to_the_same_numbers(finished, tmp_path):
    folder, result, _ = finished
    path = folder / "measurements" / "gradients-seed1.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (folder / "studies" / "main" / "runs" / "sgd-seed0.jsonl").unlink()
    signs = []
    again = reproduce(toy(), folder, lambda *each: signs.append(each), command="thriftgrad toy", processes=1)
    assert len(signs) == 2
    assert [answer.finding for answer in again.answers] == [answer.finding for answer in result.answers]


def test_a_folder_of_another_reproduction_is_refused(finished):
    folder, _, _ = finished
    with pytest.raises(ReproductionError, match=r"holds another reproduction \(of another paper, length or version\)"):
        reproduce(toy(quick=False), folder, quietly, processes=1)


def test_a_corrupt_folder_is_refused(tmp_path):
    (tmp_path / "reproduction.json").write_text("{")
    with pytest.raises(
        ReproductionError, match=r"reproduction\.json is corrupt .*; choose another folder with --out\."
    ):
        reproduce(toy(), tmp_path, quietly, processes=1)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ReproductionError, match=r"^reproduce: cannot write to .*file.*; choose another folder with --out\.$"
    ):
        reproduce(toy(), tmp_path / "file", quietly, processes=1)


def test_the_table_shows_claim_paper_ours_verdict_and_why(finished):
    _, result, _ = finished
    console = Console(file=StringIO(), width=110)
    console.print(page.table(result))
    shown = " ".join(console.file.getvalue().split())
    for word in ("claim", "paper", "ours", "verdict", "unverified", result.answers[0].finding.verdict.value):
        assert word in shown
    assert page.tally(result) in shown


def test_markdown_holds_every_table_and_escapes_bars(finished):
    _, result, _ = finished
    text = page.markdown(result)
    assert "QSGD \\| matches." in text
    assert "| ALQ |" in text
    assert "thriftgrad toy" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_the_page_is_whole_escaped_and_needs_no_network(finished):
    folder, result, _ = finished
    path = page.write(result, folder)
    assert path == folder / "report.html"
    text = path.read_text()
    assert "A toy &lt;paper&gt;" in text
    assert "<paper>" not in text
    without_plotly = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!#)", without_plotly)
    assert (folder / "results.md").read_text() == page.markdown(result)
    found = json.loads((folder / "results.json").read_text())
    assert [claim["verdict"] for claim in found["claims"]] == [a.finding.verdict.value for a in result.answers]


def test_a_page_that_cannot_be_written_is_refused(finished, tmp_path):
    _, result, _ = finished
    (tmp_path / "file").write_text("")
    with pytest.raises(ReproductionError, match=r"the report cannot be written to .*/file \("):
        page.write(result, tmp_path / "file")


def test_the_verdicts_are_counted(finished):
    _, result, _ = finished
    first = result.answers[0]
    three = [
        replace(first, finding=replace(first.finding, verdict=verdict))
        for verdict in (Verdict.HOLDS, Verdict.CONTRADICTED, Verdict.HOLDS)
    ]
    assert page.tally(replace(result, answers=tuple(three))) == "3 claims: 2 holds, 1 contradicted."
