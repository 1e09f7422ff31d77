"""The compiled backend of the CPU: chosen when it can be had, missed once, whole after a fork and in many threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from thriftgrad import kernels
from thriftgrad.kernels import quantised

X = torch.randn(200_000, generator=torch.Generator().manual_seed(0))

WITHOUT = {
    "missing": (
        "def version(name): raise metadata.PackageNotFoundError(name)",
        "numba is not installed; run `pip install 'thriftgrad[fast]'`",
    ),
    "old": (
        "def version(name): return '0.61.2'",
        "numba 0.61.2 is too old; run `pip install 'thriftgrad[fast]'` for 0.62 or later",
    ),
    "broken": (
        "sys.modules['numba'] = None\ndef version(name): return '0.62.0'",
        "numba cannot be imported (import of numba halted; None in sys.modules); run `pip install 'thriftgrad[fast]'`",
    ),
}

SCRIPT = """
import logging, sys
from importlib import metadata
{broken}
metadata.version = version
import torch
from thriftgrad import kernels
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
assert kernels.backend() == "reference"
for _ in range(2):
    kernels.quantise_sign(torch.zeros(10), 10)
assert "numba" not in sys.modules or sys.modules["numba"] is None
try:
    kernels.use("cpu")
except ImportError as error:
    print(error)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("why", WITHOUT)
def test_without_numba_the_reference_computes_and_says_so_once(why: str) -> None:
    broken, problem = WITHOUT[why]
    assert run(SCRIPT.format(broken=broken)).splitlines() == [
        "thriftgrad WARNING kernels: quantising, packing and choosing coordinates run uncompiled, many times "
        f"slower: {problem}.",
        f'kernels: backend "cpu" cannot be used: {problem}.',
    ]


def test_numba_is_imported_with_the_first_kernel() -> None:
    """And ``import thriftgrad`` compiles nothing."""
    run(
        "import sys, torch, thriftgrad; from thriftgrad import Key, QSGD, kernels; q = QSGD(bits=4)\n"
        "assert 'numba' not in sys.modules\n"
        "q.compress(torch.zeros(8), None, Key(0)); assert 'numba' in sys.modules"
    )


def test_the_backend_is_a_visible_value() -> None:
    assert kernels.backend() == "cpu"
    kernels.use("reference")
    try:
        assert kernels.backend() == "reference"
    finally:
        kernels.use(None)
    with pytest.raises(ValueError, match=r"the backend must be .* or None, got 'numba'"):
        kernels.use("numba")  # type: ignore[arg-type]


def test_threads_are_a_visible_value() -> None:
    assert kernels.threads() == torch.get_num_threads()
    kernels.set_threads(3)
    try:
        assert kernels.threads() == 3
    finally:
        kernels.set_threads(None)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        kernels.set_threads(0)


@pytest.fixture
def two_threads() -> object:
    kernels.set_threads(2)
    yield
    kernels.set_threads(None)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # which is what this is about
@pytest.mark.usefixtures("two_threads")
def test_a_child_of_a_process_with_threads_computes_too() -> None:
    owed = kernels.quantise_uniform(X, 7, 512, "l2", 0).stream
    pid = os.fork()
    if pid == 0:  # no assertion may unwind into pytest here
        same = torch.equal(kernels.quantise_uniform(X, 7, 512, "l2", 0).stream, owed)
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.usefixtures("two_threads")
def test_many_callers_at_once() -> None:
    memory = X.flip(0).contiguous()
    owed = [quantised.quantise_uniform(X, 7, 512, "l2", seed, memory) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            made = list(pool.map(lambda seed: kernels.quantise_uniform(X, 7, 512, "l2", seed, memory), range(4)))
            for ours, right in zip(made, owed, strict=True):
                assert ours.rest is not None
                assert right.rest is not None
                assert torch.equal(ours.stream, right.stream)
                assert torch.equal(ours.rest, right.rest)


def test_nothing_given_is_changed_and_nothing_made_is_shared() -> None:
    memory = X.clone()
    first = kernels.quantise_uniform(X, 7, 512, "l2", 0, memory)
    stream, rest = first.stream.clone(), first.rest
    assert rest is not None
    left = rest.clone()
    for seed in range(1, 9):  # a buffer must not come back while somebody holds it
        kernels.quantise_uniform(X, 7, 512, "l2", seed, memory)
    assert torch.equal(memory, X)
    assert torch.equal(first.stream, stream)
    assert torch.equal(rest, left)
