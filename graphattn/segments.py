"""Sums and maxima over the edges of each destination: the scatter in scatter-softmax.

Values are per edge in CSR order, with the edges along `dim` (negative, so that leading batch
dimensions are free). torch_scatter does the work where it is installed, torch otherwise; compiled
code takes torch's operations, which the compiler can fuse.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from graphattn.graphs.csr import CSR


@cache
def torch_scatter() -> Any | None:
    """The torch_scatter package, or None if it is missing or does not load."""
    try:
        import torch_scatter
    except (ImportError, OSError):
        return None
    return torch_scatter


def segment_sum(values: Tensor, csr: CSR, dim: int) -> Tensor:
    """Sum over each destination's edges; 0 for those without. (…, E, …) -> (…, num_dst, …)."""
    if (pointer := _pointer(values, csr, dim)) is not None:
        return _ScatterSum.apply(values, pointer, csr.row, dim)
    return _empty(values, csr, dim, 0.0).index_add(dim, csr.row, values)


def segment_max(values: Tensor, csr: CSR, dim: int) -> Tensor:
    """Maximum over each destination's edges, without gradient; -inf for those without."""
    values = values.detach()
    row = csr.row.view(-1, *(1,) * (-dim - 1)).expand_as(values)
    low = _empty(values, csr, dim, -torch.inf)
    return low.scatter_reduce(dim % values.ndim, row, values, "amax", include_self=True)


def segment_softmax(logits: Tensor, csr: CSR) -> tuple[Tensor, Tensor]:
    """Softmax over each destination's edges.

    Args:
        logits: (…, E, heads) in CSR order. An edge at -inf is switched off; a destination of
            nothing but such edges is one that hears from nobody.

    Returns:
        Weights (…, E, heads), and the log-sum-exp (…, num_dst, heads), -inf where nobody is heard.
    """
    top = segment_max(logits, csr, dim=-2)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = (logits - top.index_select(-2, csr.row)).exp()
    total = segment_sum(weights, csr, dim=-2)
    deaf = total == 0
    total = total.masked_fill(deaf, 1.0)
    log_sum_exp = (top + total.log()).masked_fill(deaf, -torch.inf)
    return weights / total.index_select(-2, csr.row), log_sum_exp


def segment_first_maximum(values: Tensor, csr: CSR) -> Tensor:
    """1 at the highest of each destination's edges, the lowest edge of equals, and 0 elsewhere.

    Args:
        values: (…, E, heads) in CSR order. A destination of nothing but -inf has no highest.

    Returns:
        (…, E, heads), without gradient.
    """
    highest = values == segment_max(values, csr, dim=-2).index_select(-2, csr.row)
    highest &= values != -torch.inf
    edge = _places(csr)[:, None].expand_as(values)
    row = csr.row[:, None].expand_as(values)
    none = torch.full_like(_empty(values, csr, -2, 0.0), len(csr.row), dtype=torch.int64)
    place = edge.masked_fill(~highest, len(csr.row))
    first = none.scatter_reduce(-2 % values.ndim, row, place, "amin")
    return (highest & (edge == first.index_select(-2, csr.row))).to(values.dtype)


def rank_in_segment(values: Tensor, csr: CSR) -> Tensor:
    """How many of the same destination's edges come before each, from the highest to the lowest.

    Args:
        values: (…, E, heads) in CSR order. Equals come in edge order.

    Returns:
        (…, E, heads), int64.
    """
    in_order = _places(csr).argsort()  # CSR positions in edge order
    values = values.detach().index_select(-2, in_order)
    by_value = values.argsort(dim=-2, descending=True, stable=True)
    position = in_order[by_value]  # CSR positions from the highest value to the lowest
    by_row = csr.row[position].argsort(dim=-2, stable=True)
    position = position.gather(-2, by_row)  # the same, destination by destination
    rank = torch.arange(len(csr.row), device=values.device) - csr.ptr[csr.row]
    return torch.empty_like(position).scatter_(-2, position, rank[:, None].expand_as(position))


def _places(csr: CSR) -> Tensor:
    """The place of each edge in edge order, (E,)."""
    return torch.arange(len(csr.row), device=csr.row.device) if csr.edge is None else csr.edge


class _ScatterSum(torch.autograd.Function):
    """torch_scatter's sum with a gradient that can be differentiated again; its own can't."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pointer: Tensor, row: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(row)
        ctx.dim = dim
        return torch_scatter().segment_sum_csr(values, pointer)  # pyright: ignore

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        (row,) = ctx.saved_tensors
        return grad.index_select(ctx.dim, row), None, None, None


def _pointer(values: Tensor, csr: CSR, dim: int) -> Tensor | None:
    """What torch_scatter wants to be told, or None where torch has to do it."""
    if torch.compiler.is_compiling() or torch_scatter() is None:
        return None
    if values.is_cuda and not torch.ops.torch_scatter.cuda_version() > 0:
        return None  # built without CUDA
    return csr.ptr.expand(*values.shape[:dim], -1)


def _empty(values: Tensor, csr: CSR, dim: int, fill: float) -> Tensor:
    shape = list(values.shape)
    shape[dim] = len(csr.ptr) - 1
    return values.new_full(shape, fill)
