"""Measured and modelled seconds of the lab: by hand, in the table, in the findings and on the page."""

import pytest

from lab.fabricate import configuration, end, evaluation, method, start, write
from lab.test_report import Page
from lab.test_table import column, shown
from thriftgrad.lab import agreement
from thriftgrad.lab.findings import findings
from thriftgrad.lab.load import load
from thriftgrad.lab.report import charts, write_report
from thriftgrad.lab.summary import read_summary
from thriftgrad.lab.table import markdown, notes, table

LINK = {"label": "100mbit", "up_bits_per_second": 95.6e6, "down_bits_per_second": 95.6e6, "latency_seconds": 2e-4}


def run(slug, seed, *, waited, linked, skewed=0.0):
    """Per step 13 ms are computed, and so much waited, modelled and behind; the target is met at step 20."""
    evaluations = [
        evaluation(
            step,
            quality,
            bytes_a_step=400.0 if slug == "sgd" else 100.0,
            link_seconds={"100mbit": step * linked},
            waited_seconds=step * waited,
            skew_seconds=step * skewed,
        )
        for step, quality in ((0, 0.1), (10, 0.5), (20, 0.96), (30, 0.97))
    ]
    return [start(slug, seed), *evaluations, end(30)]


@pytest.fixture
def folder(tmp_path):
    """A step of sgd takes 100 ms and is modelled at 95, one of qsgd takes 50 and is modelled at 30."""
    runs = {("sgd", 0): run("sgd", 0, waited=0.087, linked=0.080, skewed=0.002)}
    runs |= {("qsgd", 0): run("qsgd", 0, waited=0.037, linked=0.017)}
    settings = configuration([method("sgd"), method("qsgd")], seeds=[0], links=[LINK], mode="lab")
    return write(tmp_path, settings, runs)


@pytest.fixture
def summary(folder):
    return read_summary(folder)


def test_seconds_by_both_clocks(folder, summary):
    settings, runs = load(folder)
    assert settings.clocks == (
        ("measured", "100mbit, measured", None),
        ("modelled", "100mbit, modelled", "100mbit"),
    )
    (last,) = [each.evaluations[-1] for each in runs if each.method == "sgd"]
    assert last.seconds(None) == pytest.approx(30 * (0.013 + 0.087))
    assert last.seconds("100mbit") == pytest.approx(30 * (0.013 + 0.002 + 0.080))
    plain, quantised = agreement.of_steps(summary)
    assert (plain.measured, plain.modelled, plain.off) == pytest.approx((0.1, 0.095, -0.05))
    assert (quantised.measured, quantised.modelled, quantised.off) == pytest.approx((0.05, 0.03, -0.4))
    assert (plain.holds, quantised.holds) == (True, False)
    assert [each.measured for each in agreement.to_target(summary)] == pytest.approx([2.0, 1.0])


def test_the_mark_begins_beyond_fifteen_percent():
    assert agreement.Agreement(1.0, 0.8501).holds
    assert not agreement.Agreement(1.0, 0.8499).holds
    assert not agreement.Agreement(1.0, 1.1501).holds
    assert agreement.Agreement(None, None).holds


def test_every_cell_that_the_model_got_wrong_is_marked(summary):
    assert column(summary, "seconds to target", "measured").cells == ("2.00", "1.00")
    assert column(summary, "seconds to target", "modelled").cells == ("1.90", "0.600 (!)")
    assert column(summary, "ms per step", "measured").cells == ("100", "50.0")
    assert column(summary, "ms per step", "modelled").cells == ("95.0", "30.0 (!)")
    off = column(summary, "ms per step", "off by")
    assert (off.cells, off.apart) == (("-5%", "-40% (!)"), frozenset({1}))
    assert column(summary, "ms per step", "measured").apart == frozenset()
    assert "-40% (!)" in shown(table(summary))
    assert "-40% (!)" in markdown(summary)


def test_the_rules_are_told(summary):
    told = " ".join(notes(summary))
    assert "every worker is a real process behind a link of 100mbit, shaped both ways" in told
    assert "Modelled link: 95.6% of the bandwidth" in told
    assert "0.200 ms a hop, measured before the first run. (!) marks where the model is more than 15% off" in told


def test_the_findings_name_where_the_model_is_wrong_and_where_it_is_right(tmp_path, summary):
    said = findings(summary)
    assert "On 100mbit, measured, qsgd is first to the target, after 1.00 s, 2.00x faster than sgd." in said
    assert (
        said[-1]
        == "The model of 100mbit is more than 15% off the measurement for qsgd (a step -40%, to the target -40%)."
    )
    right = {("sgd", 0): run("sgd", 0, waited=0.087, linked=0.080, skewed=0.002)}
    settings = configuration([method("sgd")], seeds=[0], links=[LINK], mode="lab")
    summary = read_summary(write(tmp_path / "right", settings, right))
    assert findings(summary)[-1] == "The model of 100mbit is within 5% of the measurement for every method."
    nothing = {("sgd", 0): [start("sgd", 0), evaluation(0, 0.1, link_seconds={"100mbit": 0.0}), end(0)]}
    summary = read_summary(write(tmp_path / "nothing", settings, nothing))
    assert findings(summary)[-1] == "Nothing was measured on 100mbit that its model could be held against."


def test_the_page_marks_the_cells_and_offers_both_clocks(folder, summary):
    page = Page(write_report(folder, folder / "report.html").read_text(encoding="utf-8"))
    assert page.text("option") == ["100mbit, measured", "100mbit, modelled"]
    marked = [" ".join(e[2]) for e in page.all("td") if "apart" in e[1].get("class", "").split()]
    assert marked == ["0.600 (!)", "30.0 (!)", "-40% (!)"]
    drawn = charts(summary)
    assert drawn["in_lab"]
    assert drawn["methods"][1]["curve"]["seconds"]["100mbit, measured"] == pytest.approx([0, 0.5, 1.0, 1.5])


def test_elsewhere_there_are_no_measured_seconds(tmp_path):
    runs = {("sgd", 0): run("sgd", 0, waited=1.0, linked=0.08)}
    settings = configuration([method("sgd")], seeds=[0], links=[LINK])
    summary = read_summary(write(tmp_path, settings, runs))
    assert [clock.label for clock in summary.configuration.clocks] == ["100mbit"]
    assert "measured before" not in " ".join(notes(summary))
    assert not any("The model of" in sentence for sentence in findings(summary))
