"""What Triton makes of the functions that a call launches, for GPUs that are not there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}

# Of Ampere, Hopper and Blackwell.
PRODUCTS = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.")
WARP_GROUP_PRODUCTS = re.compile(r"\bwgmma\.mma_async\.")


class Launched(NamedTuple):
    """A function of Triton and what it was launched with."""

    function: Any
    arguments: dict[str, Any]


class Resources(NamedTuple):
    """Of a compiled function: registers a thread; bytes of stack and local memory a thread, and of
    shared memory a program; how many instructions there are for tensor cores, and how many of
    them for all warps of a group at once, which only Hopper has.
    """

    registers: int
    stack: int
    local: int
    shared: int
    products: int
    warp_group_products: int


def source_of(launched: Launched) -> tuple[Any, dict[str, int]]:
    """What Triton compiles at such a launch, and its options."""
    from triton.compiler import ASTSource

    arguments = dict(launched.arguments)
    names = ("num_warps", "num_stages", "enable_fp_fusion")
    options = {name: arguments.pop(name) for name in names if name in arguments}
    signature, constants, hints = {}, {}, {}
    for at, parameter in enumerate(launched.function.params):
        x, name = arguments.pop(parameter.name), parameter.name
        fixed = parameter.do_not_specialize
        if parameter.is_constexpr or x is None or (type(x) is int and x == 1 and not fixed):
            signature[name], constants[name] = "constexpr", x
            continue
        if isinstance(x, Tensor):
            signature[name] = f"*{TYPES[x.dtype]}"
            even = x.data_ptr() % 16 == 0
        else:
            wide = "i32" if isinstance(x, int) and -(2**31) <= x < 2**31 else "i64"
            signature[name] = parameter.annotation_type or wide
            even = isinstance(x, int) and x % 16 == 0 and not fixed
        if even:
            hints[(at,)] = [["tt.divisibility", 16]]
    assert not arguments, f"{launched.function} has no parameter {list(arguments)}"
    return ASTSource(launched.function, signature, constants, hints), options


@cache
def cuobjdump() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compile_for(capability: int, launched: Launched) -> Resources:
    """What the machine code for a GPU of that compute capability takes."""
    import triton
    from triton.backends.compiler import GPUTarget

    source, options = source_of(launched)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [cuobjdump(), "--dump-resource-usage", file.name]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    usage = dict(word.split(":")[:2] for word in words if word.count(":") == 1)
    return Resources(
        *(int(usage[name]) for name in ("REG", "STACK", "LOCAL")),
        shared=kernel.metadata.shared,
        products=len(PRODUCTS.findall(kernel.asm["ptx"])),
        warp_group_products=len(WARP_GROUP_PRODUCTS.findall(kernel.asm["ptx"])),
    )
