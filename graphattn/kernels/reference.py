"""Gather, score, scatter-softmax, scatter-sum: the meaning of attention, for every other kernel.

Message passing as Vaswani et al. 2017, eq. 1 reads on a graph: `out_i = sum_j w_ij v_j` over the
edges j -> i, with `w_ij = softmax_j(scale * score(q_i, k_j) + b_ij)`. Half types are computed in
float32. It keeps tensors of E x heads x head_dim.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from graphattn.graphs.structure import density_in_words
from graphattn.kernels.cost import Work, head_counts, milliseconds
from graphattn.kernels.pairs import edge_logits, gather, normalized, too_many
from graphattn.kernels.problem import Estimate, Kernel, Problem
from graphattn.segments import segment_softmax, segment_sum

# Time of one edge here over that of one pair in the kernel "masked", forward and backward: measured
# on a CPU by `python scripts/bench.py --suite crossover`.
EDGE_OVER_PAIR = 80.0


def unsupported(problem: Problem) -> str | None:
    # Of each pair: query, key and their product, value and message, and four numbers a head.
    numbers = 3 * problem.query.shape[-1] + 2 * problem.value.shape[-1] + 4
    return too_many(problem, numbers)


def declines(problem: Problem) -> str | None:
    on_gpu = problem.query.is_cuda
    if on_gpu or problem.beyond_sdpa is not None or problem.graph.density * EDGE_OVER_PAIR < 1:
        return None
    return (
        f"{density_in_words(problem.graph)} of all pairs are edges; from "
        f"{100 / EDGE_OVER_PAIR:.3g}% on it is faster to score all pairs"
    )


def expected(problem: Problem) -> Estimate:
    heads, _, dims = head_counts(problem)
    numbers_moved = 5 * problem.graph.num_edges * heads * dims  # gathered, multiplied, scattered
    work = Work(streamed=4 * numbers_moved, host=(0.3, 0.6))
    return Estimate(milliseconds(problem, work))


def run(problem: Problem) -> Tensor:
    w = normalized(problem, edge_logits(problem))  # (*batch, E, heads)
    w = F.dropout(w, problem.dropout) if problem.dropout else w
    v_j = gather(problem.value, problem.edge_value, problem)
    out = segment_sum(w[..., None] * v_j, problem.graph.csr(), dim=-3)
    return out.to(problem.value.dtype)


def weights(problem: Problem) -> Tensor:
    w = normalized(problem, edge_logits(problem)).to(problem.query.dtype)
    return problem.graph.csr().to_edge_order(w, dim=-2)


def log_sum_exp(problem: Problem) -> Tensor:
    """`log sum_j exp(s_ij)` of shape (*batch, num_dst, heads); -inf where nobody is heard."""
    return segment_softmax(edge_logits(problem), problem.graph.csr())[1]


KERNEL = Kernel(
    name="reference",
    why="it computes every graph, score and bias on every device, edge by edge",
    unsupported=unsupported,
    run=run,
    weights=weights,
    declines=declines,
    expected=expected,
)
