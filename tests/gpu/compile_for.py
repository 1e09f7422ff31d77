"""Compile every kernel for a GPU that need not be there, and say what is in the code: one JSON line a kernel.

python tests/gpu/compile_for.py 90          # Hopper; without TRITON_INTERPRET
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from thriftgrad.kernels.gpu import compiled, dequantise, norms, philox, quantise, top_k

MODULES = (dequantise, norms, philox, quantise, top_k)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}
N = 1 << 20


def launches() -> dict[str, tuple[Any, ...]]:
    """One launch of each kernel, and of ``quantise`` some: what its arguments are, without a device to run on."""
    seen: dict[str, tuple[Any, ...]] = {}

    def record(kernel: Any, programs: int, like: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
        if programs:
            seen.setdefault(f"{prefix} {kernel.fn.__name__}".strip(), (kernel, arguments, warps, constants))

    for module in MODULES:
        module.launch = record
    x, stream, zeros = torch.zeros(N), torch.zeros(N, dtype=torch.uint8), torch.zeros(1 << 12)
    prefix = "uniform"
    compiled.quantise_uniform(x, 7, 512, "l2", 0)
    prefix = "levels"
    compiled.quantise_levels(x, torch.linspace(-1, 1, 16), 512, "linf", 0)
    prefix = "sign with memory"
    compiled.quantise_sign(x, N, x)
    prefix = ""
    compiled.quantise_uniform(x[:5000], 3, 100, "l2", 0, x[:5000])
    compiled.quantise_uniform(x[:5001], 7, 5001, "l2", 0)
    compiled.dequantise_add(stream, zeros, torch.zeros(16), 512, x[: N - 1])
    compiled.largest(x, 1000)
    compiled.owed(x, x, 0.5)
    compiled.philox(100, 0, torch.device("cpu"))
    compiled.uniform16(100, 0, torch.device("cpu"))
    compiled.largest_symbol(stream, N - 1, 16)
    return seen


def compile_for(
    target: GPUTarget, kernel: Any, arguments: tuple[Any, ...], warps: int, constants: dict[str, Any]
) -> Any:
    """As a launch with pointers to whole 16 bytes would."""
    given = iter(arguments)
    signature, values, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name], values[(i,)] = "constexpr", constants[parameter.name]
            continue
        argument = next(given)
        if isinstance(argument, Tensor):
            signature[parameter.name], attributes[(i,)] = POINTERS[argument.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = parameter.annotation_type
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})


def main() -> None:
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    for name, launch in launches().items():
        code = compile_for(target, *launch)
        ptx = code.asm["ptx"]
        found = {
            "kernel": name,
            "shared_bytes": code.metadata.shared,
            "fma": ptx.count("fma.rn.f32"),
            "wide_loads": ptx.count("ld.global.v4.b32"),
            "wide_stores": ptx.count("st.global.v4.b32"),
            # What is not rounded as IEEE says, but for the floor of what is smaller than any float32.
            "inexact": sorted({*re.findall(r"\S*(?:\.approx|\.full|\.ftz)\S*", ptx)} - {"cvt.rmi.ftz.f32.f32"}),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
