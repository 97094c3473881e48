"""Gather, score, scatter-softmax, scatter-sum: the meaning of attention, for every other kernel.

Message passing as Vaswani et al. 2017, eq. 1 reads on a graph: `out_i = sum_j w_ij v_j` over the
edges j -> i, with `w_ij = softmax_j(scale * score(q_i, k_j) + b_ij)`. Half types are computed in
float32. It keeps tensors of E x heads x head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphattn.biases import bias_of_edges
from graphattn.graphs.memory import shortage
from graphattn.graphs.structure import LISTED_EDGE_BYTES
from graphattn.kernels.problem import Kernel, Problem
from graphattn.segments import segment_softmax, segment_sum

# Time of one edge here over that of one pair in the kernel "masked", forward and backward: measured
# on a CPU by `python scripts/bench.py --suite crossover`.
EDGE_OVER_PAIR = 80.0


def unsupported(problem: Problem) -> str | None:
    query, value = problem.query, problem.value
    # Of each pair: query, key and their product, value and message, and four numbers a head.
    numbers = 3 * query.shape[-1] + 2 * value.shape[-1] + 4
    pairs = problem.graph.num_edges * problem.heads * query.shape[:-3].numel()
    needed = pairs * numbers * max(4, query.element_size())
    needed += problem.graph.num_edges * LISTED_EDGE_BYTES
    if (short := shortage(needed, query.device)) is not None:
        return f"the gathered pairs take {short}"
    return None


def declines(problem: Problem) -> str | None:
    if problem.beyond_sdpa is not None or problem.graph.density * EDGE_OVER_PAIR < 1:
        return None
    return (
        f"{100 * problem.graph.density:.3g}% of all pairs are edges; from "
        f"{100 / EDGE_OVER_PAIR:.3g}% on it is faster to score all pairs"
    )


def run(problem: Problem) -> Tensor:
    csr = problem.graph.csr()
    w = edge_weights(problem)  # (*batch, E, heads)
    v_j = gather(problem.value, problem.edge_value, problem)
    return segment_sum(w[..., None] * v_j, csr, dim=-3).to(problem.value.dtype)


def weights(problem: Problem) -> Tensor:
    w = edge_weights(problem).to(problem.query.dtype)
    return problem.graph.csr().to_edge_order(w, dim=-2)


def log_sum_exp(problem: Problem) -> Tensor:
    """`log sum_j exp(s_ij)` of shape (*batch, num_dst, heads); -inf where nobody is heard."""
    return segment_softmax(edge_logits(problem), problem.graph.csr())[1]


def edge_weights(problem: Problem) -> Tensor:
    """Weights in CSR order after dropout, (*batch, E, heads), float32 at least."""
    s = edge_logits(problem)
    w = problem.normalizer(s, problem.graph.csr())
    require_shape("normalizer(logits, csr)", w, s.shape)
    return F.dropout(w, problem.dropout) if problem.dropout else w


def edge_logits(problem: Problem) -> Tensor:
    """`scale * score + bias` in CSR order, (*batch, E, heads), float32 at least."""
    csr = problem.graph.csr()
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    q_i = problem.query.index_select(-3, csr.row).to(wide)  # (*batch, E, heads, head_dim)
    k_j = gather(problem.key, problem.edge_key, problem)
    edge = torch.arange(len(csr.row), device=csr.row.device) if csr.edge is None else csr.edge
    s = problem.score(q_i, k_j, edge)
    require_shape("score(q_i, k_j, edge)", s, q_i.shape[:-1])
    s = problem.scale * s
    if problem.bias is not None:
        s = s + bias_of_edges(problem.bias, problem.graph, problem.heads)
    return s.to(wide)


def gather(x: Tensor, features: Tensor | None, problem: Problem) -> Tensor:
    """What travels along every edge, with its own features, for every query head.

    Returns (*batch, E, heads, dim) in CSR order, float32 at least.
    """
    csr, wide = problem.graph.csr(), torch.promote_types(x.dtype, torch.float32)
    x_j = x.index_select(-3, csr.index).to(wide)
    if features is not None:
        x_j = x_j + csr.from_edge_order(features, dim=-3).to(wide)
    return x_j.repeat_interleave(problem.group_size, dim=-2) if problem.group_size > 1 else x_j


def require_shape(call: str, values: object, shape: torch.Size) -> None:
    """Check what a function of the user returned: floats of shape (*batch, E, heads)."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{call} must return a floating tensor, got {kind}")
    if values.shape != shape:
        raise ValueError(
            f"{call} must return {tuple(shape)}, (*batch, E, heads), got {tuple(values.shape)}"
        )


KERNEL = Kernel(
    name="reference",
    why="it computes every graph, score and bias on every device, edge by edge",
    unsupported=unsupported,
    run=run,
    weights=weights,
    declines=declines,
)
