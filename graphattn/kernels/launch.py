"""What the kernels written in Triton share: whether it can run here, and how it is launched."""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from graphattn.graphs.facts import constant_when_compiled

NEWEST = 10  # generation of GPUs that anything is known of
MOST_PROGRAMS = 2**31 - 1  # of a launch


@constant_when_compiled
def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@constant_when_compiled
def triton_is_missing(module: str) -> str | None:
    """Why Triton can't be used to compile the functions of a module, if so."""
    try:
        import_module(module)
    except Exception as error:  # an import may fail in any way when versions don't fit
        return f"Triton can't be used ({error!r}); pip install --upgrade triton repairs it"
    return None


def launch(function: Any, programs: int, **arguments: Any) -> None:
    if programs:
        function[(programs,)](**arguments)


def on_device_of(x: Tensor) -> Any:
    """A context in which functions are launched where a tensor is."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def power_of_2(x: int) -> int:
    """The smallest power of two that is not below x.

    Example:
        >>> [power_of_2(x) for x in (0, 1, 3, 64)]
        [1, 1, 4, 64]
    """
    return 1 << max(x - 1, 0).bit_length()


def of_nodes(name: str, x: Tensor | None) -> dict[str, Any]:
    """Numbers (*batch, nodes, heads, dim), and the strides of batch and node.

    They are copied if the numbers of a node do not lie together, or items of the batch not evenly.
    """
    if x is None:
        return {name: None, f"{name}_batch": 0, f"{name}_node": 0}
    heads, dim = x.shape[-2:]
    together = (dim == 1 or x.stride(-1) == 1) and (heads == 1 or x.stride(-2) == dim)
    x = (x if together else x.contiguous()).reshape(x.shape[:-3].numel(), *x.shape[-3:])
    return {name: x, f"{name}_batch": x.stride(0), f"{name}_node": x.stride(1)}


def of_edges(name: str, x: Tensor | None, dims: int, batch: torch.Size) -> dict[str, Any]:
    """Numbers of so many dimensions per item of the batch, and the stride of the batch."""
    if x is None:
        return {name: None, f"{name}_batch": 0}
    size = x.shape[-dims:]
    if x.shape[:-dims].numel() == 1:
        return {name: x.contiguous(), f"{name}_batch": 0}
    return {name: x.expand(*batch, *size).contiguous(), f"{name}_batch": size.numel()}


def generation(x: Tensor) -> int:
    """Of the GPU that a tensor is on, the first number of its compute capability; 0 if on none.

    Those after NEWEST count as it.
    """
    return min(torch.cuda.get_device_capability(x.device)[0], NEWEST) if x.is_cuda else 0
