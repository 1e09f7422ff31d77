"""The page: whole, offline, escaped, and carrying the numbers of the summary."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lab.fabricate import FAST, SLOW, configuration, end, evaluation, finished, method, realistic, start, write
from thriftgrad.lab.load import RecordsError
from thriftgrad.lab.report import PANELS, ReportError, charts, write_report
from thriftgrad.lab.summary import read_summary
from thriftgrad.lab.table import columns, notes

EVIL = "<script>alert('1')</script> & \"quoted\""
VOID = {"meta", "input", "br", "path"}


class Page(HTMLParser):
    """Elements with their attributes and the text directly inside them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop()[0] == tag  # every element is closed, in order

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def all(self, tag, **wanted):
        return [e for e in self.elements if e[0] == tag and all(e[1].get(k) == v for k, v in wanted.items())]

    def text(self, tag, **wanted):
        return [" ".join(" ".join(e[2]).split()) for e in self.all(tag, **wanted)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return realistic(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def source(directory):
    return write_report(directory, directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_nothing_is_fetched(source, page):
    for tag, attributes, _ in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "a", "form", "audio", "video", "source"}
        assert not {"src", "href", "srcset", "data", "action", "poster", "background"} & attributes.keys(), tag
    styles = "".join("".join(text) for _, _, text in page.all("style"))
    assert not re.search(r"url\(|@import|https?:", styles)
    ours = source.replace(page_script(page, 1), "")  # plotly.js apart
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", ours)


def page_script(page, number):
    return "".join(page.all("script")[number][2])


def test_plotly_is_inside_once(page):
    scripts = [len("".join(text)) for _, _, text in page.all("script")]
    assert len(scripts) == 3
    assert [size > 1_000_000 for size in scripts] == [False, True, False]


def test_headline_table_and_notes_are_those_of_the_summary(directory, page):
    summary = read_summary(directory)
    assert page.text("h1") == [
        "power_sgd(rank=2) reaches test accuracy ≥ 0.95 in the fewest bytes, 2.21 MB per worker, "
        "6.25x fewer than sgd(precision='bf16')."
    ]
    cells = columns(summary)
    shown = [" ".join("".join(e[2]).split()) for e in page.all("td") if "data-value" in e[1]]
    assert shown == [column.cells[row] for row in range(12) for column in cells]
    sorted_by = [e[1]["data-value"] for e in page.all("td") if "data-value" in e[1]]
    assert sorted_by == [
        str(v) if (v := column.values[row]) is not None else "" for row in range(12) for column in cells
    ]
    best = [e[1]["class"].split() for e in page.all("td") if "data-value" in e[1]]
    assert [("best" in c) for c in best] == [row in column.best for row in range(12) for column in cells]
    items = page.text("li")
    assert all(note in items for note in notes(summary))


def test_headings_name_their_cells(page):
    assert all(e[1].get("scope") in {"row", "col", "colgroup"} for e in page.all("th"))
    assert len(page.text("th", scope="row")) == 12 + 3  # methods, and links
    assert sum(int(e[1]["colspan"]) for e in page.all("th", scope="colgroup")) == 15


def test_controls_and_charts_have_names(page):
    assert page.all("html")[0][1] == {"lang": "en"}
    assert [e[1]["value"] for e in page.all("input", name="cost")] == ["steps", "bytes", "seconds"]
    assert page.text("option") == ["20mbit,5ms", SLOW, FAST]
    plots = [e for e in page.all("div") if e[1].get("role") == "img"]
    assert [e[1]["id"] for e in plots] == ["quality", *PANELS, "levels-11"]
    assert all(e[1]["aria-label"] for e in plots)
    assert len([e for e in page.all("button") if "data-method" in e[1]]) == 12
    ids = [e[1]["id"] for e in page.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    assert all(e[1][key] in ids for key in ("aria-labelledby", "for") for e in page.elements if key in e[1])


def test_every_method_has_a_card(page):
    cards = page.text("article")
    assert len(cards) == 12
    qsgd, random_k, mine = cards[2], cards[6], cards[11]
    assert "Method(qsgd(bits=4, bucket=512))" in qsgd
    assert "Alistarh et al., QSGD, 2017, arXiv:1610.02132" in qsgd
    assert "momentum 0.9, after aggregation" in qsgd
    assert "0.1: 0.200 (chosen)" in qsgd
    assert "training loss late in 60 steps with seed 1000; the lowest is chosen" in qsgd
    assert "edge of its grid" not in qsgd
    assert "learning rate at the edge of its grid" in cards[3]
    assert "1 of 3 unfinished" in random_k
    assert "1: unfinished" in random_k
    assert "2: diverged" in mine
    assert "0.3: diverged" in random_k  # a learning rate of the grid


def test_configuration_versions_and_provenance_are_told(directory, page):
    told = dict(zip(page.text("dt"), page.text("dd"), strict=True))
    assert told["workers"] == "4"
    assert told["torch"] == "2.13.0"
    assert told["sha256"] == "0f" * 32
    assert told["fp32"] == "230 kB up, 230 kB down"
    full = json.loads("".join(page.all("pre")[-1][2]))
    assert full == json.loads((directory / "comparison.json").read_text())
    assert full["command"] in "".join(page.all("pre")[0][2])
    assert "20mbit,5ms 20 Mbit/s 20 Mbit/s 5.00 ms" in " ".join(page.text("tr"))


def test_the_charts_data_survive_the_page(directory, page):
    (data,) = page.all("script", id="charts")
    assert json.loads("".join(data[2])) == charts(read_summary(directory))


def test_colours_follow_the_method_everywhere(page):
    swatches = [e[1]["style"] for e in page.all("svg")]
    expected = [f"--c: var(--m{index % 7})" for index in range(12)]
    table, cards = expected, expected
    assert swatches == expected + table + [expected[11]] + cards  # after the legend; method 11 has levels


def test_curves_by_hand(tmp_path):
    runs = {
        ("a", 0): finished("a", 0, [0.1, 0.5, 0.9], relative_error=0.25),
        ("a", 1): finished("a", 1, [0.3, 0.6, 0.7], relative_error=None),
        ("a", 2): [
            start("a", 2),
            evaluation(0, 0.2),
            evaluation(10, 0.4),
            evaluation(20, None),
            end(20, diverged=True),
        ],
    }
    (a,) = charts(read_summary(write(tmp_path, configuration([method("a")]), runs)))["methods"]
    curve = a["curve"]
    assert (curve["steps"], curve["bytes"]) == ([0, 10, 20], [0, 4000, 8000])
    assert curve["seconds"][SLOW] == pytest.approx([0, 0.63, 1.26])
    assert curve["seconds"][FAST] == pytest.approx([0, 0.18, 0.36])
    assert curve["mean"] == pytest.approx([0.2, 0.55, 0.8])
    assert (curve["low"], curve["high"]) == ([0.1, 0.5, 0.7], [0.3, 0.6, 0.9])
    (stray,) = a["strays"]
    assert (stray["seed"], stray["status"], stray["steps"], stray["mean"]) == (2, "diverged", [0, 10], [0.2, 0.4])
    # mean of 0.25 and 0.5 at step 10: the run that did not measure it is left out
    assert a["trend"]["relative_error"] == [0.25, 0.375, 0.375]
    assert a["trend"]["variance"] == [None, None, None]
    assert a["levels"] is None


def test_charts_without_data_are_absent(tmp_path):
    runs = {("a", 0): finished("a", 0, [0.1, 0.9], relative_error=0.5, cosine=0.8)}
    page = Page(page_of(tmp_path, [method("a")], runs))
    plots = [e[1]["id"] for e in page.all("div") if e[1].get("role") == "img"]
    assert plots == ["quality", "relative_error", "cosine"]
    assert "Levels over time" not in page.text("h3")


def test_without_any_measurement_there_is_no_section_on_it(tmp_path):
    runs = {("a", 0): finished("a", 0, [0.1, 0.9], relative_error=None)}
    page = Page(page_of(tmp_path, [method("a")], runs))
    assert [e[1]["id"] for e in page.all("div") if e[1].get("role") == "img"] == ["quality"]
    assert "What compression does to the gradient" not in page.text("h2")


def test_trends_and_levels_by_hand(tmp_path):
    def run(seed, biases, levels):
        changes = [
            {"bias": bias, "bias_floor": 0.3, "variance": 0.36, "levels": each}
            for bias, each in zip(biases, levels, strict=True)
        ]
        return [start("a", seed), *(evaluation(10 * i, 0.9, **each) for i, each in enumerate(changes)), end(20)]

    one, two = ({"tensor": "w", "version": v, "values": [0, inner, 1]} for v, inner in ((1, 0.5), (2, 0.25)))
    runs = {
        ("a", 0): run(0, [None, 0.5, 0.3], [None] * 3),
        ("a", 1): run(1, [None, 0.5, 0.2], [one, one, two]),
    }
    settings = configuration([method("a")], seeds=[0, 1])
    (a,) = charts(read_summary(write(tmp_path, settings, runs)))["methods"]
    assert a["trend"]["bias"] == pytest.approx([None, 0.4, 0.0])  # squares without the noise's
    assert a["trend"]["bias_floor"] == pytest.approx([None, 0.3, 0.3])
    assert a["levels"] == {
        "seed": 1,
        "tensor": "w",
        "steps": [0, 10, 20],
        "versions": [1, 1, 2],
        "values": [[0, 0.5, 1], [0, 0.5, 1], [0, 0.25, 1]],
    }


def test_a_bias_that_may_be_chance_is_drawn_nowhere(tmp_path):
    runs = {("a", 0): finished("a", 0, [0.1, 0.9], bias=0.32, bias_floor=0.3)}
    (a,) = charts(read_summary(write(tmp_path, configuration([method("a")], seeds=[0]), runs)))["methods"]
    assert a["trend"]["bias"] == [0, 0]


def page_of(tmp_path, methods, runs, **changes):
    directory = write(tmp_path, configuration(methods, seeds=[0], **changes), runs)
    return write_report(directory, tmp_path / "report.html").read_text(encoding="utf-8")


def test_where_plain_sgd_trained_the_page_says_so(tmp_path):
    runs = {(slug, 0): finished(slug, 0, [0.1, 0.96], variance=0.5) for slug in ("a", "b")}
    page = Page(page_of(tmp_path, [method("a"), method("b")], runs, protocol="on-sgd"))
    assert "The training that the gradients come from" in page.text("h2")
    assert page.all("input", name="cost") == []
    told = dict(zip(page.text("dt"), page.text("dd"), strict=True))
    assert told["protocol"] == "plain SGD trains, the methods look on"
    assert told["learning rate"] == "0.1, plain SGD's"
    assert len([e for e in page.all("button") if "data-method" in e[1]]) == 2
    assert any("the same for all methods" in text for text in page.text("p"))
    assert json.loads(page_script(page, 0))["on_sgd"] is True


def test_where_methods_trained_the_page_says_so(page):
    told = dict(zip(page.text("dt"), page.text("dd"), strict=True))
    assert told["protocol"] == "each method trains a model of its own"
    assert any("on its own gradients" in text for text in page.text("p"))


def test_whatever_a_label_holds_stays_text(tmp_path):
    settings = configuration(
        [method(EVIL, "slug", expression=EVIL, paper=EVIL, momentum=EVIL)], seeds=[0], command=EVIL
    )
    settings["task"] |= {"name": EVIL, "description": EVIL, "quality": EVIL, "provenance": {EVIL: EVIL}}
    settings["links"][0]["label"] = EVIL
    settings["versions"] = {EVIL: {"nested": [EVIL]}}
    run = finished("slug", 0, [0.1, 0.96], link_seconds={EVIL: 1.0, FAST: 1.0})
    directory = write(tmp_path, settings, {("slug", 0): run})
    source = write_report(directory, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "alert('1')" not in source
    assert len(page.all("script")) == 3
    assert EVIL in page.text("h3")
    assert json.loads(page_script(page, 0))["methods"][0]["label"] == EVIL


def test_a_method_without_a_finished_run_has_a_row_and_a_card(tmp_path):
    runs = {("a", 0): finished("a", 0, [0.1, 0.96])}
    directory = write(tmp_path, configuration([method("a"), method("b")], seeds=[0], links=[]), runs)
    page = Page(write_report(directory, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "1 of 1 unfinished" in page.text("article")[1]
    assert "0: unfinished" in page.text("article")[1]


def test_the_file_is_replaced_whole_or_not_at_all(directory, tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    assert write_report(directory, path) == path
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    path.write_text("the old report")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ReportError) as caught:
        write_report(directory, path)
    assert str(caught.value) == (
        f"The report cannot be written to {path} (No space left on device); choose a file in a folder you can write to."
    )
    assert path.read_text() == "the old report"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_folder_that_is_a_file(directory, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot be written to .*file/report.html \(.*\); choose a file"):
        write_report(directory, tmp_path / "file" / "report.html")


def test_a_file_that_is_a_folder(directory, tmp_path):
    with pytest.raises(ReportError, match=r"cannot be written to .* \(Is a directory\); choose a file"):
        write_report(directory, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_records_no_report(tmp_path):
    with pytest.raises(RecordsError, match="There is no comparison"):
        write_report(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
