"""``thriftgrad advise``: a table, a page and a sentence; one sentence for whatever is the user's to mend."""

import json
import re
import sys

import pytest

MINE = """
import torch
from torch import nn

def build():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    x, y = torch.randn(8, 20), torch.arange(8) % 5
    return model, lambda module: nn.functional.cross_entropy(module(x), y)

def fails():
    raise RuntimeError("out of luck.")

def alone():
    return build()[0]

def pair():
    return build()[0], 3

def frozen():
    model, loss = build()
    return model.requires_grad_(False), loss

def vector():
    return build()[0], lambda module: module(torch.randn(8, 20))

def bad_loss():
    return build()[0], lambda module: module(torch.randn(8, 21)).sum()

def unused():
    model, loss = build()
    model.extra = nn.Parameter(torch.ones(3))
    return model, loss

def infinite():
    return build()[0], lambda module: module(torch.randn(8, 20)).sum() * float("inf")

def sparse():
    model = nn.Embedding(10, 4, sparse=True)
    return model, lambda module: module(torch.arange(3)).sum()

NUMBER = 3
"""
STATED = ("--link", "100mbit,1ms")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, which lies in the current folder and has been imported by nobody."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def test_a_table_a_page_and_a_sentence(cli, mine, tmp_path):
    code, out, err = cli(
        "advise", "--model", "mine:build", "--workers", "8", *STATED, "--method", "qsgd", "--method", "local_sgd(h=4)"
    )
    assert (code, err) == (0, "")
    for label in ("DDP, float32", "bf16", "qsgd", "local_sgd(h=4)"):
        assert re.search(rf"^ {re.escape(label)}  .* ms ", out, re.MULTILINE)
    words = " ".join(out.split())
    assert "mine:build: 785 parameters, 8 workers" in words
    assert "Link 100mbit,1ms: up 100 Mbit/s, down 100 Mbit/s, latency 1,000 us a hop." in words
    assert re.search(r"(Use .*AllGather\(compressor=QSGD\(bits=4\)\)|Don't compress): .*\.", words)
    page = (tmp_path / "advise.html").read_text()
    charts = json.loads(re.search(r"const charts = (.*);\n", page)[1])
    assert sorted(charts["methods"]) == ["DDP, float32", "bf16", "local_sgd(h=4)", "qsgd"]
    assert len(charts["workers"]) == len(charts["links"]) == 4
    assert charts["worlds"][-1] == 4096
    assert "src=" not in page.replace("Plotly", "")[:5000]


def test_what_is_not_said_is_the_list_of_methods(cli, mine):
    from thriftgrad.lab.advise.candidates import METHODS

    out = cli("advise", "--model", "mine:build", *STATED, "--out", "deep/page.html").out
    assert all(f" {label} " in out for label, _ in METHODS)
    assert "4 workers" in out
    assert "page: deep/page.html" in out


REFUSED = {
    ("--model", "gpt-smal"): "there is no model 'gpt-smal'; did you mean 'gpt-small', or name a function of yours",
    (
        "--model",
        "nowhere:build",
    ): "'nowhere' cannot be imported (ModuleNotFoundError: No module named 'nowhere'); ",
    ("--model", "broken:build"): "'broken' cannot be imported (ModuleNotFoundError: No module named 'no_such_library')",
    ("--model", "mine:biuld"): "'mine' has no function 'biuld'; name one that builds the model, as in mine:build.",
    ("--model", "mine:NUMBER"): "'mine' has no function 'NUMBER'",
    ("--model", "mine:fails"): "mine:fails failed (RuntimeError: out of luck); it must return (module, loss)",
    ("--model", "mine:alone"): "mine:alone returned Sequential( (0): Linear",
    ("--model", "mine:pair"): "mine:pair returned (Sequential, int); it must return (module, loss)",
    ("--model", "mine:frozen"): "mine:frozen has no parameter that requires a gradient, so there is nothing to send.",
    (
        "--model",
        "mine:vector",
    ): "the loss of mine:vector must be a scalar with a gradient, got a tensor of shape (8,",
    ("--model", "mine:bad_loss"): "the loss of mine:bad_loss failed (RuntimeError: mat1 and mat2 shapes",
    ("--model", "mine:unused"): "the loss of mine:unused does not depend on parameter 'extra', which DDP would wait",
    ("--model", "mine:infinite"): "the gradient of '0.weight' is not finite; build the model so that it trains.",
    ("--model", "mine:sparse"): "the gradient of 'weight' is sparse, which cannot be compressed; use sparse=False.",
    ("--workers", "0"): "it takes at least two workers to exchange anything, got workers=0.",
    ("--workers", "-2"): "got workers=-2.",
    ("--workers", "one"): "Invalid value for '--workers': Input should be a valid integer",
    ("--link", "fast"): 'link: expected "100mbit,1ms" or "20mbit/100mbit,30ms" (up/down,latency), got \'fast\'.',
    ("--link", "0mbit"): "up_bits_per_second must be positive, got 0",
    (
        "--link",
        "auto",
    ): "as in torchrun --nproc-per-node 2 --no-python thriftgrad advise --model mine:build,",
    ("--method", "qsdg"): "unknown name 'qsdg'; did you mean 'qsgd'",
    ("--method", "AllReduce(TopK(k=3))"): "AllReduce needs a linear compressor",
    ("--method", "Every(8)"): "'Every(8)' is no method; try qsgd, power_sgd(rank=2) or TopK(fraction=0.01).",
    (
        "--method",
        "qsparse_local_sgd(k=3, asynchronous=True)",
    ): "workers of an asynchronous server come when they like, so 'qsparse_local_sgd(k=3, asynchronous=True)' has no",
    ("--method", "Partition({'matrix': PowerSGD()})"): "no rule fits tensor",
    ("--out", "mine.py/page.html"): "the page cannot be written to mine.py/page.html (",
    ("--out", "."): "the page cannot be written to . (Is a directory); choose another file with --out.",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_one_sentence_for_what_is_wrong(cli, mine, options):
    given = dict(zip(("--model", "--link", "--method"), ("mine:build", "100mbit", "qsgd"), strict=True))
    given |= {options[0]: options[1]}
    code, out, err = cli("advise", *(word for pair in given.items() for word in pair))
    assert code == 2
    assert err.startswith("thriftgrad: ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")
    assert "Traceback" not in err
    assert REFUSED[options] in err
    assert not out
    assert options[0] != "--out" or "mine" not in sys.modules  # nothing was measured in vain
