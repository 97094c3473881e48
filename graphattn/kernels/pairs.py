"""The pairs that edges join, gathered: what the reference computes, and user-made scores need."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.biases import bias_of_edges
from graphattn.features import Features, dense
from graphattn.graphs.memory import shortage
from graphattn.graphs.structure import LISTED_EDGE_BYTES
from graphattn.kernels.problem import Problem


def too_many(problem: Problem, numbers: int) -> str | None:
    """Why pairs of so many numbers a head don't fit in memory, if so."""
    query, edges = problem.query, problem.graph.num_edges
    pairs = edges * problem.heads * query.shape[:-3].numel()
    needed = pairs * numbers * max(4, query.element_size()) + edges * LISTED_EDGE_BYTES
    if (short := shortage(needed, query.device)) is not None:
        return f"the gathered pairs take {short}"
    return None


def edge_logits(problem: Problem) -> Tensor:
    """`softcap(scale * score) + bias` in CSR order, (*batch, E, heads), float32 at least."""
    csr = problem.graph.csr()
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    q_i = problem.query.index_select(-3, csr.row).to(wide)  # (*batch, E, heads, head_dim)
    k_j = gather(problem.key, problem.edge_key, problem)
    edge = torch.arange(len(csr.row), device=csr.row.device) if csr.edge is None else csr.edge
    s = problem.score(q_i, k_j, edge)
    require_shape("score(q_i, k_j, edge)", s, q_i.shape[:-1])
    s = problem.scale * s
    if problem.softcap is not None:
        s = problem.softcap * torch.tanh(s / problem.softcap)
    if problem.bias is not None:
        s = s + bias_of_edges(problem.bias, problem.graph, problem.heads)
    return s.to(wide)


def gather(x: Tensor, features: Features | None, problem: Problem) -> Tensor:
    """What travels along every edge, with its own features, for every query head.

    Returns (*batch, E, heads, dim) in CSR order, float32 at least.
    """
    csr, wide = problem.graph.csr(), torch.promote_types(x.dtype, torch.float32)
    x_j = x.index_select(-3, csr.index).to(wide)
    if features is not None:
        x_j = x_j + csr.from_edge_order(dense(features), dim=-3).to(wide)
    return x_j.repeat_interleave(problem.group_size, dim=-2) if problem.group_size > 1 else x_j


def normalized(problem: Problem, logits: Tensor) -> Tensor:
    """Weights in CSR order of logits in CSR order, both (*batch, E, heads)."""
    w = problem.normalizer(logits, problem.graph.csr())
    require_shape("normalizer(logits, csr)", w, logits.shape)
    return w


def require_shape(call: str, values: object, shape: torch.Size) -> None:
    """Check what a function of the user returned: floats of shape (*batch, E, heads)."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{call} must return a floating tensor, got {kind}")
    if values.shape != shape:
        raise ValueError(
            f"{call} must return {tuple(shape)}, (*batch, E, heads), got {tuple(values.shape)}"
        )
