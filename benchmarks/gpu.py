"""The GPU's kernels on a GPU: right, how fast, beside other work, and under NCCL. Writes Markdown.

    PYTHONPATH=src python benchmarks/gpu.py [--elements N] [--rounds R]

One command of some two minutes, compilation included. A part that fails says so, the others go on, and the exit status
is 1. Without a GPU, and with TRITON_INTERPRET=1, the first part alone runs, on few elements.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

try:
    import triton
except ImportError:
    sys.exit("benchmarks/gpu.py: triton is not installed; run `pip install 'thriftgrad[gpu]'`.")
from gpu_equal import LEVELS, SEED, comparisons, moved, same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from thriftgrad import QSGD, AllGather, ErrorFeedback, Key, TensorSpec, TopK, attach, simulate, wire
from thriftgrad.core import Compressor
from thriftgrad.kernels import quantised, sparse
from thriftgrad.kernels.gpu import compiled

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OWED = 0.8
"""Of the copy's bytes a second."""


def milliseconds(function: Callable[[], object], rounds: int) -> float:
    """The median of some runs, each between two events; two before them, which may compile, are not counted."""
    times = []
    for _ in range(rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times[2:])


def correctness(_: argparse.Namespace) -> bool:
    """The kernels equal their definition bit for bit"""
    results = {label: agree() for label, agree in comparisons(GPU)}
    print(f"{sum(results.values())} of {len(results)} results have the bits of the definition, computed on the CPU.")
    for label in (label for label, right in results.items() if not right):
        print(f"* WRONG: {label}")
    return all(results.values())


class Row(NamedTuple):
    """One kernel on the full number of elements."""

    label: str
    each_bytes: float  # that must be read and written, an element
    owed: float | None
    definition: ModuleType
    name: str
    arguments: tuple[Any, ...]


def rows(n: int) -> list[Row]:
    """What is timed."""
    x, memory, total = (torch.randn(n, device=GPU) for _ in range(3))
    levels = LEVELS.to(GPU)
    made = [
        Row("4 bits, bucket 512, linf", 4.5, OWED, quantised, "quantise_uniform", (x, 7, 512, "linf", SEED)),
        Row("4 bits, bucket 512, l2", 4.5, OWED, quantised, "quantise_uniform", (x, 7, 512, "l2", SEED)),
        Row("4 bits, bucket 8192, l2", 4.5, OWED, quantised, "quantise_uniform", (x, 7, 8192, "l2", SEED)),
        Row("4 bits, one bucket, l2", 8.5, None, quantised, "quantise_uniform", (x, 7, n, "l2", SEED)),
        Row("3 bits, bucket 512, l2", 4.375, None, quantised, "quantise_uniform", (x, 3, 512, "l2", SEED)),
        Row("ternary, bucket 512, l2", 4.2, None, quantised, "quantise_uniform", (x, 1, 512, "l2", SEED)),
        Row("16 levels, bucket 512, l2", 4.5, None, quantised, "quantise_levels", (x, levels, 512, "l2", SEED)),
        Row("4 bits, with memory", 12.5, OWED, quantised, "quantise_uniform", (x, 7, 512, "l2", SEED, memory)),
        Row("sign, bucket 512", 4.125, OWED, quantised, "quantise_sign", (x, 512)),
        Row("sign, one bucket, with memory", 20.125, None, quantised, "quantise_sign", (x, n, memory)),
    ]
    for s, label, each, owed in ((7, "4 bits", 8.5, OWED), (3, "3 bits", 8.375, None), (1, "ternary", 8.2, None)):
        sent = compiled.quantise_uniform(x, s, 512, "l2", SEED)
        arguments = (sent.stream, sent.scale, quantised.uniform_levels(s).to(GPU), 512, total)
        made.append(Row(f"dequantise and add, {label}", each, owed, quantised, "dequantise_add", arguments))
    return [
        *made,
        Row("top 1 %", 8.0, None, sparse, "choose_largest", (x, n // 100)),
        Row("top 0.1 %", 8.0, None, sparse, "choose_largest", (x, n // 1000)),
        Row("top 1 %, with memory", 20.0, None, sparse, "choose_largest", (x, n // 100, memory)),
    ]


def speed(options: argparse.Namespace) -> bool:
    """Speed, as a share of what a copy moves"""
    n, rounds = options.elements, options.rounds
    x, y = torch.randn(n, device=GPU), torch.empty(n, device=GPU)
    copy = 8 * n / milliseconds(lambda: y.copy_(x), rounds)
    print(f"{n:,} float32, median of {rounds}. A copy of them moves {copy / 1e6:,.0f} GB/s, read and written.\n")
    print("| kernel | bytes an element | ms | GB/s | share of the copy | owed | in plain torch, times as long |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    enough = True
    for label, each, owed, definition, name, arguments in rows(n):
        kernel, defined = getattr(compiled, name), getattr(definition, name)
        ours = milliseconds(lambda kernel=kernel, arguments=arguments: kernel(*arguments), rounds)
        try:
            theirs = milliseconds(lambda defined=defined, arguments=arguments: defined(*arguments), 2)
        except torch.OutOfMemoryError:
            theirs = float("nan")
        bandwidth = each * n / ours
        share, slower = bandwidth / copy, theirs / ours
        enough &= owed is None or share >= owed
        print(f"| {label} | {each} | {ours:.3f} | {bandwidth / 1e6:,.0f} | {share:.2f} | {owed or ''} | {slower:.0f} |")
    return enough


def streams(options: argparse.Namespace) -> bool:
    """On a stream of its own, beside other work"""
    x, square = torch.randn(options.elements, device=GPU), torch.randn(8192, 8192, device=GPU)
    memory = torch.randn_like(x)

    def encode() -> list[Any]:
        return [
            compiled.quantise_uniform(x, 7, 512, "l2", SEED, memory),
            compiled.quantise_levels(x, levels, 512, "l2", SEED),
            compiled.choose_largest(x, len(x) // 100, memory),
        ]

    def work() -> None:
        for _ in range(20):
            square @ square

    levels = LEVELS.to(GPU)
    defined, side = encode(), torch.cuda.Stream()
    alone, busy = milliseconds(encode, 5), milliseconds(work, 5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # whatever of torch waits for the device raises
    begin = perf_counter()
    try:
        started, worked, encoded = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        started.record()
        side.wait_event(started)
        work()
        worked.record()
        with torch.cuda.stream(side):
            ours = encode()
            encoded.record()
        host_ms = 1000 * (perf_counter() - begin)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    both = max(started.elapsed_time(worked), started.elapsed_time(encoded))
    right = all(same(each, moved(there, torch.device("cpu"))) for each, there in zip(ours, defined, strict=True))
    print(
        f"Encoding alone takes {alone:.1f} ms, multiplying {busy:.1f}, both at once {both:.1f}; they were started in "
        f"{host_ms:.1f} ms, without waiting for the device. The results are {'equal' if right else 'NOT equal'}."
    )
    return right and host_ms < busy


def waits(options: argparse.Namespace) -> bool:
    """Where a compressor and the wire wait for the device"""
    x = torch.randn(options.elements // 100, device=GPU)
    print("| compressor | compress | pack | unpack | add to a total |\n|---|---:|---:|---:|---:|")
    compressors: tuple[Compressor[Any, Any], ...] = (QSGD(bits=4), ErrorFeedback(TopK(fraction=0.01)))
    for compressor in compressors:
        spec, total, made = TensorSpec.of(x), torch.zeros_like(x), {}

        def compress(made=made, compressor=compressor, spec=spec) -> None:
            made["payload"], _ = compressor.compress(x, compressor.init(spec), Key(0))

        def pack(made=made) -> None:
            made["message"] = wire.pack(made["payload"])

        def unpack(made=made, compressor=compressor, spec=spec) -> None:
            made["received"] = wire.unpack(made["message"], compressor, spec)

        def add(made=made, compressor=compressor, total=total) -> None:
            compressor.add_to(total, made["received"])

        steps = (compress, pack, unpack, add)
        for step in steps:
            step()
        counts = " | ".join(str(waits_of(step)) for step in steps)
        print(f"| `{compressor!r}` | {counts} |")
    return True


def waits_of(step: Callable[[], None]) -> int:
    """How often torch waits for the device in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def nccl(_: argparse.Namespace) -> bool:
    """`attach` under NCCL, on one rank"""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    right = True
    print("| method | ms a step | DDP alone | estimate |\n|---|---:|---:|---|")
    for aggregator in (AllGather(QSGD(bits=4)), AllGather(ErrorFeedback(TopK(fraction=0.01)))):
        torch.manual_seed(0)
        module = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(4)]).to(GPU)
        batch = torch.randn(32, 2048, device=GPU)

        def step(model: nn.Module, batch=batch) -> None:
            model.zero_grad(set_to_none=True)
            model(batch).square().mean().backward()

        step(module)
        names, gradients = zip(*[(name, p.grad.cpu()) for name, p in module.named_parameters()], strict=True)
        specs = [TensorSpec.of(x, name) for x, name in zip(gradients, names, strict=True)]
        expected = simulate([aggregator.aggregate(list(gradients), aggregator.init(specs), Key(0).fold(0))])[0][0]
        plain = DistributedDataParallel(deepcopy(module))
        alone = milliseconds(lambda step=step, plain=plain: step(plain), 10)
        model = DistributedDataParallel(module)
        with attach(model, aggregator) as handle:
            step(model)
            estimate = [p.grad.clone() for p in module.parameters()]
            agree = all(same(a, b) for a, b in zip(estimate, expected, strict=True))
            ours = milliseconds(lambda step=step, model=model: step(model), 10)
            steps = handle.stats().steps
        right &= agree and steps == 13
        print(f"| `{aggregator!r}` | {ours:.2f} | {alone:.2f} | {'as simulated' if agree else 'NOT as simulated'} |")
    dist.destroy_process_group()
    return right


def main() -> None:
    """Every part, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if GPU.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("torch sees no GPU here; TRITON_INTERPRET=1 compares the kernels with their definition on the CPU.")
    name = torch.cuda.get_device_name() if GPU.type == "cuda" else "interpreted on the CPU"
    print(f"# Kernels on a GPU\n\n{date.today()}, {name}, torch {torch.__version__}, triton {triton.__version__}")
    failed = False
    for part in (correctness, speed, streams, waits, nccl) if GPU.type == "cuda" else (correctness,):
        print(f"\n## {part.__doc__}\n", flush=True)
        try:
            passed = part(options)
        except Exception:
            passed = False
            print(f"```\n{traceback.format_exc()}```")
        print(f"\n{'As owed' if passed else 'NOT as owed'}.", flush=True)
        failed |= not passed
    sys.exit(failed)


if __name__ == "__main__":
    main()
