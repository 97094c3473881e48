"""torch's fused attention, called in graphattn's layout, and how long it is expected to take."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.biases import bias_of_grid
from graphattn.kernels.cost import Work, head_counts, milliseconds
from graphattn.kernels.problem import Estimate, Problem


def scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float,
    dropout: float,
) -> Tensor:
    """`scaled_dot_product_attention` on (*batch, nodes, heads, head_dim), without a copy.

    Args:
        mask: bool (num_dst, num_src), True where attended; or a float bias (…, heads or 1, num_dst,
            num_src), where … is nothing or broadcasts to batch.

    Returns:
        (*batch, num_dst, heads, value_dim).
    """
    batch = query.shape[:-3]
    size = math.prod(batch)
    query, key, value = (
        x.reshape(size, *x.shape[-3:]).transpose(1, 2) for x in (query, key, value)
    )
    if mask is not None:
        if mask.is_floating_point():
            mask = mask.to(query.dtype)
        if mask.ndim > 3:
            mask = mask.expand(*batch, *mask.shape[-3:]).reshape(size, *mask.shape[-3:])
        elif mask.ndim == 3:
            mask = mask[None]  # the fused kernels take masks of 2 and 4 dimensions only
    if scale <= 0:  # torch's kernels take the maximum before they scale, and 0 * -inf is NaN
        query, scale = query * (-1.0 if scale else 0.0), -scale or 1.0
    # Under torch.compile shapes may be symbols, and their comparison no bool.
    grouped = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    out = F.scaled_dot_product_attention(
        query, key, value, mask, dropout, causal, scale=scale, **grouped
    ).transpose(1, 2)
    return out.reshape(*batch, *out.shape[1:])


def flash_work(problem: Problem, pairs: float) -> Work:
    """Of torch's fused attention without a mask, over so many pairs."""
    heads, _, dims = head_counts(problem)
    return Work(
        products=2 * pairs * heads * dims,
        share=0.6,
        instructions=8 * pairs * heads,
        backward=(3.0, 3.5, 2.5),
    )


def masked_estimate(problem: Problem) -> Estimate:
    """Of torch's fused attention over all pairs with a mask, made of bits or of the bias."""
    heads, _, dims = head_counts(problem)
    pairs, item = problem.graph.num_dst * problem.graph.num_src, problem.query.element_size()
    mask = 1 + 2 * item if problem.bias is None else problem.heads * (4 + 2 * item)
    work = Work(
        streamed=pairs * mask,
        products=2 * pairs * heads * dims,
        share=0.2,
        instructions=20 * pairs * heads,
        host=(0.03, 0.04),
    )
    return Estimate(milliseconds(problem, work))


def grid_bias(problem: Problem) -> Tensor:
    """The bias of all pairs, -inf where they are no edge: (…, heads or 1, num_dst, num_src)."""
    graph = problem.graph
    dst = torch.arange(graph.num_dst, device=graph.device)[:, None]
    src = torch.arange(graph.num_src, device=graph.device)
    assert problem.bias is not None
    return bias_of_grid(problem.bias, graph, problem.heads, dst, src).movedim(-1, -3)
