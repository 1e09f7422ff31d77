"""The grammar of labels: each setting has one, each label says one setting."""

import re
from itertools import product

import pytest

from thriftgrad.lab.reproduce.labels import OPS, Setting, read_label, read_legend


def every():
    """All settings that there are, for some k, s and h."""
    for op, k, s, h, memory, scaled, asynchronous in product(
        OPS, (None, 7), (None, 2, 255), (1, 16), (True, False), (True, False), (True, False)
    ):
        support, values = OPS[op]
        fits = (k is not None) == (support != "dense") and (s is not None) == (values == "QSGD")
        if fits and (scaled or values == "QSGD"):
            yield Setting(op, k, s, h, memory, scaled, asynchronous)


def test_a_label_says_everything_and_is_read_back():
    labels = {setting.label: setting for setting in every()}
    assert len(labels) == len(list(every())) == 8 * (6 + 3 * 2 * 2)
    for label, setting in labels.items():
        assert read_label(label) == setting


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        (Setting("SGD", memory=False), "SGD·H=1·EF-·sync"),
        (Setting("QSGD", s=4, h=8), "QSGD[s=4]·H=8·EF+·sync"),
        (Setting("QRandK", k=5, s=2, memory=False, scaled=False), "QRandK[k=5,s=2,unscaled]·H=1·EF-·sync"),
        (Setting("SignTopK", k=1000, h=4, asynchronous=True), "SignTopK[k=1000]·H=4·EF+·async"),
    ],
)
def test_labels_are_these(setting, label):
    assert setting.label == label


def test_the_papers_legends_in_the_grammar():
    assert read_legend("SignTopK_4L", k=1000).label == "SignTopK[k=1000]·H=4·EF+·sync"
    assert read_legend("TopK", k=40).label == "TopK[k=40]·H=1·EF+·sync"
    assert read_legend("QTopK_8L", k=40, s=4).label == "QTopK[k=40,s=4]·H=8·EF+·sync"
    assert read_legend("SGD", k=40).label == "SGD·H=1·EF-·sync"
    with pytest.raises(ValueError, match=r"label: the legend 'Adam_4L' names no operator; there are SGD, QSGD, Sign,"):
        read_legend("Adam_4L", k=1)


def test_what_is_no_label_is_refused():
    for text in ("TopK", "TopK[k=3]·H=1·EF·sync", "TopK[k=3]·H=1·EF+·later", "TopK[k=3]·H=1·EF+·sync."):
        with pytest.raises(ValueError, match=rf"label: {re.escape(repr(text))} is none; write op"):
            read_label(text)
    with pytest.raises(ValueError, match=r"label: there is no operator 'Topk'; there are SGD,"):
        Setting("Topk", k=3)
    with pytest.raises(ValueError, match=r"label: TopK has a k, got k=None\."):
        Setting("TopK")
    with pytest.raises(ValueError, match=r"label: SGD has no s, got s=4\."):
        Setting("SGD", s=4)
    with pytest.raises(ValueError, match=r"label: TopK has no factor 1 / \(1 \+ beta\) to leave out; drop unscaled\."):
        Setting("TopK", k=3, scaled=False)
