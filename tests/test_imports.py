"""Who may import whom, what an import costs, and which names are public."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import thriftgrad

ROOT = Path(thriftgrad.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))

# Each part may import from itself, from the parts of the rows above it, and from those named beside it.
LAYERS: dict[str, set[str]] = {"kernels": set()}
LAYERS["core"] = {"kernels"}
LAYERS["theory"] = set()
LAYERS["comm"] = {"core"}
LAYERS["wire"] = {"core", "kernels"}
LAYERS["compress"] = {"core", "kernels", "theory"}
LAYERS["aggregate"] = {"core", "kernels", "comm", "wire", "compress", "theory"}
LAYERS["local"] = {*LAYERS["aggregate"], "aggregate"}
LAYERS["train"] = {*LAYERS["local"], "local"}
LAYERS["recipes"] = {*LAYERS["train"], "train"}
LAYERS["vocabulary"] = {*LAYERS["recipes"], "recipes"}
LAYERS["tasks"] = {*LAYERS["train"], "train"}
LAYERS["lab"] = {*LAYERS["vocabulary"], "vocabulary", "tasks"}
LAYERS["cli"] = {*LAYERS["lab"], "lab"}
LAYERS["__main__"] = {"cli"}

MAY_TALK = ("comm/answers.py", "comm/exchange.py", "train/", "lab/")
"""The only places that may know torch.distributed."""

PUBLIC = [
    *("Key", "TensorSpec", "Payload", "PayloadError", "Identity", "Cast", "QSGD", "TopK", "RandomK", "Sign"),
    *("SmallFloat", "BinMeans", "Nonzeros", "NUQSGD", "TernGrad", "ALQ", "ALQ_N", "AMQ", "AMQ_N", "Lloyd", "Quantizer"),
    *("ChunkedTopK", "RandomBlock", "SignTopK", "QTopK", "QRandK", "Tile", "DCT"),
    *("NaturalCompression", "OneBit", "EDEN", "DRIVE", "Elias", "Huffman", "GolombRice", "ANS", "Zstd"),
    *("MomentumCorrection", "WarmUp", "Atomo", "SpectralAtomo", "BestRank", "UnbiasedLowRank"),
    *("ErrorFeedback", "Shrink", "AllReduce", "AllGather", "ScatterReduce", "ParameterServer", "PowerSGD", "Partition"),
    *("SymbolServer", "simulate", "run", "Ledger", "LinkModel", "parse", "attach", "recipes", "theory", "wire"),
    *("LocalUpdates", "LocalMethod", "Every", "At", "RandomGaps", "PostLocal", "PerWorker", "Streaming"),
    *("GradiVeQ", "AsSquare", "Budgeted", "OuterDion"),
    *("Average", "OuterSGD", "OuterSign", "SlowMo", "InnerSGD", "InnerAdamW", "AsyncServer"),
    *("serve", "AsyncUpdates", "ServerGoneError", "GradientPlusMomentum", "tune"),
]


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of what a module imports, wherever it does so; ``from a import b`` may mean the module a.b."""
    package = ("thriftgrad", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], node.module] if node.level else [node.module]
            home = ".".join(part for part in base if part)
            yield from ((f"{home}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return  # the front door names every part, and loads none before it is asked for
    for name, line in imported(path):
        words = name.split(".")
        if words[0] == "thriftgrad" and len(words) > 1:
            home = words[1] if words[1] in LAYERS else thriftgrad_home(words[1])
            assert home in {part, *LAYERS[part]}, f"{path}:{line}: {part} must not import {name}"


def thriftgrad_home(name: str) -> str:
    """The part that a public name of the package comes from."""
    if name in ("__version__", "__all__"):
        return "core"
    return next(home.removeprefix("thriftgrad.") for home, names in thriftgrad._HOMES.items() if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_few_know_torch_distributed(path: Path) -> None:
    names = [name for name, _ in imported(path) if name.startswith("torch.distributed")]
    assert not names or str(path.relative_to(ROOT)).startswith(MAY_TALK)


COMPILED = {"kernels/cpu": {"numba"}, "kernels/gpu": {"triton"}}
"""What kernels are compiled by, which are themselves imported when they are used."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_not_imported_at_the_top(path: Path) -> None:
    """A report needs plotly and a task scikit-learn when they are used, and not before."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            heavy = {name.split(".")[0] for name in names} & {
                "sklearn",
                "plotly",
                "numba",
                "triton",
                "matplotlib",
                "PIL",
            }
            heavy -= COMPILED.get(str(path.relative_to(ROOT).parent), set())
            assert not heavy, f"{path}:{node.lineno} imports {heavy} at the top"


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(LAYERS)
    below: dict[str, set[str]] = {}
    for part, allowed in LAYERS.items():
        assert allowed <= set(below), f"{part} may import something that stands above it"
        below[part] = allowed


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(thriftgrad.__all__) == sorted(PUBLIC)
    assert dir(thriftgrad) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(thriftgrad, name).__doc__
    assert callable(thriftgrad.wire.pack)
    assert callable(thriftgrad.wire.unpack)
    with pytest.raises(AttributeError, match="module 'thriftgrad' has no attribute 'QSDG'"):
        thriftgrad.QSDG  # noqa: B018


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_alone_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "numba", "triton", "sklearn", "plotly", "scipy", "matplotlib", "PIL", "typer", "rich"}
    assert not loaded_by("import thriftgrad") & heavy


def test_the_core_needs_torch_and_numpy_alone() -> None:
    names = ", ".join(name for name in PUBLIC if name != "attach")
    loaded = loaded_by(f"from thriftgrad import {names}; import torch; assert not torch.cuda.is_initialized()")
    assert "torch" in loaded
    assert not loaded & {
        "numba",
        "triton",
        "sklearn",
        "plotly",
        "scipy",
        "matplotlib",
        "PIL",
        "typer",
        "rich",
        "pydantic",
    }
