"""How the kernels for the GPU are chosen, where there is neither a GPU nor triton."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from thriftgrad import kernels
from thriftgrad.kernels import dispatch

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was found out about triton, so that each test finds out again; nothing is interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    chosen, found = dispatch._chosen, (dispatch.triton_problem, dispatch._cuda)
    for each in found:
        each.cache_clear()
    yield
    for each in found:
        each.cache_clear()
    dispatch._chosen = chosen


def installed(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Let these be all there is of triton and of our modules, by the last part of their names."""

    def fake(name: str) -> Any:
        if name.split(".")[0] not in ("triton", "thriftgrad"):
            return import_module(name)
        module = modules.get(name.split(".")[-1])
        if isinstance(module, Exception):
            raise module
        if module is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return module

    monkeypatch.setattr(dispatch, "import_module", fake)


PROBLEMS = [
    ({}, "triton is not installed; run `pip install 'thriftgrad[gpu]'`"),
    (
        {"triton": SimpleNamespace(__version__="3.5.1")},
        "triton 3.5.1 is too old; run `pip install 'thriftgrad[gpu]'` for 3.6 or later (torch 2.10)",
    ),
    (
        {"triton": ImportError("libtriton.so: no such file", name="triton._C")},
        "triton cannot be imported (libtriton.so: no such file); run `pip install 'thriftgrad[gpu]'`",
    ),
]
problems = pytest.mark.parametrize(("modules", "why"), PROBLEMS, ids=["absent", "too old", "broken"])


@problems
def test_a_gpu_tensor_without_a_triton_that_will_do_is_torch_s_and_that_is_said_once(
    modules: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed(monkeypatch, **modules)
    with caplog.at_level(logging.WARNING, logger="thriftgrad"):
        assert dispatch._module(GPU) is None
        assert dispatch._module(GPU) is None
    (record,) = caplog.records
    assert record.getMessage() == (
        f"kernels: on the GPU quantising, packing and choosing coordinates run uncompiled, many times slower: {why}."
    )


@problems
def test_to_ask_for_the_gpu_without_a_triton_that_will_do(
    modules: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, **modules)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ImportError) as error:
        kernels.use("gpu")
    assert str(error.value) == f'kernels: backend "gpu" cannot be used: {why}.'


def test_to_ask_for_the_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, triton=SimpleNamespace(__version__="3.7.1"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = dispatch._chosen
    with pytest.raises(RuntimeError) as error:
        kernels.use("gpu")
    assert str(error.value) == (
        'kernels: backend "gpu" cannot be used: torch sees no GPU here; for a trial on the CPU, which takes some '
        "8 seconds for a million elements, set TRITON_INTERPRET=1 before the program starts."
    )
    assert dispatch._chosen == before


def test_what_triton_has_is_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = SimpleNamespace(uniform16=lambda *arguments: ("triton", *arguments))
    installed(monkeypatch, triton=SimpleNamespace(__version__="3.7.1"), compiled=compiled)
    assert kernels.uniform16(5, 7, GPU) == ("triton", 5, 7, GPU)
    assert dispatch._module(torch.device("cuda:1")) is compiled
    kernels.use("reference")
    assert dispatch._module(GPU) is None


def test_with_the_gpu_chosen_the_cpu_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dispatch._module(torch.device("cpu"))
    name = kernels.backend()
    compiled = SimpleNamespace(uniform16=lambda *arguments: "triton")
    installed(monkeypatch, triton=SimpleNamespace(__version__="3.7.1"), compiled=compiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kernels.use("gpu")
    assert kernels.backend() == name
    assert dispatch._module(torch.device("cpu")) is own
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.backend() == "gpu"
    assert kernels.uniform16(5, 7) == "triton"


def test_tensors_on_the_cpu_do_not_import_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def watched(name: str) -> Any:
        asked.append(name)
        return import_module(name)

    monkeypatch.setattr(dispatch, "import_module", watched)
    dispatch._cpu.cache_clear()
    dispatch._module(torch.device("cpu"))
    assert asked
    assert not [name for name in asked if "triton" in name or ".gpu" in name]


def test_devices_without_kernels_are_torch_s() -> None:
    assert dispatch._module(torch.device("meta")) is None
