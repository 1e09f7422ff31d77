"""From settings to methods, and the cells of the factorial."""

import pytest
import torch

from thriftgrad import parse
from thriftgrad.aggregate import AllGather, AllReduce, ParameterServer
from thriftgrad.compress import QSGD, Identity, Nonzeros, RandomK, Sign, TopK
from thriftgrad.core import ErrorFeedback, Key, Shrink
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.qsparse_methods import NESTEROV, beta, compressor, factorial, method, operator
from thriftgrad.local import AsyncServer, Every, InnerSGD, LocalMethod, RandomGaps

NORM = QSGD(levels=4, bucket=None)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (Setting("SGD", memory=False), Identity()),
        (Setting("TopK", 3), ErrorFeedback(TopK(k=3))),
        (Setting("RandK", 3, memory=False), RandomK(k=3, rescale=False)),
        (Setting("SignTopK", 3), ErrorFeedback(TopK(k=3) >> Sign())),
        (Setting("QTopK", 3, 4), ErrorFeedback(TopK(k=3) >> Shrink(NORM))),
        (Setting("QRandK", 3, 4, scaled=False, memory=False), RandomK(k=3, rescale=False) >> NORM),
        (Setting("QSGD", s=4), ErrorFeedback(Shrink(NORM))),
    ],
)
def test_operators(setting, expected):
    assert compressor(setting, 30) == expected


def test_a_method_has_the_gap_the_downlink_and_local_buffers():
    top = Setting("TopK", 3, h=8)
    up = ErrorFeedback(TopK(k=3))
    assert method(top, 30, NESTEROV) == LocalMethod(
        AllGather(up), Every(8), InnerSGD(momentum=0.9, nesterov=True), buffers="local"
    )
    assert method(Setting("SGD", memory=False), 30).aggregator == AllReduce(Identity())
    for downlink, down in (("dense", Identity()), ("union", Nonzeros()), ("recompressed", up)):
        assert method(top, 30, downlink=downlink).aggregator == ParameterServer(up, down)
    assert method(top, 30, downlink="recompressed", down_k=9).aggregator.down == ErrorFeedback(TopK(k=9))
    gaps = method(Setting("TopK", 3, h=8, asynchronous=True), 30, schedule=RandomGaps(8))
    assert gaps == LocalMethod(AsyncServer(up), RandomGaps(8), buffers="local")
    assert parse(repr(gaps)) == gaps


def test_every_cell_is_found_forbidden_or_does_not_exist():
    found, forbidden, nominal = factorial(32, (2, 4, 15, 255), (1, 4, 8, 16), 650)
    assert nominal == 3 * 6 * 4 * 2 * 2 == 288
    assert len({setting.label for setting in found + forbidden}) == len(found) + len(forbidden)
    # By hand: 20 cells a sparse support and 17 dense ones, times four gaps.
    assert (len(found), len(forbidden)) == (208, 28)
    for setting in forbidden:
        assert beta(setting, 650) >= 1
        with pytest.raises(ValueError, match="needs a contraction"):
            compressor(setting, 650)
    for setting in found:
        compressor(setting, 650)
        if setting.memory and not setting.scaled:
            assert beta(setting, 650) < 1


def test_dense_and_unscaled_rounds_by_the_norm_of_all():
    x = torch.randn(650, generator=torch.Generator().manual_seed(0))
    setting = Setting("QSGD", s=255, scaled=False)
    payload, _ = operator(setting, 650).compress(x, None, Key(0))
    assert payload.side.scale.tolist() == pytest.approx([float(x.norm())])
