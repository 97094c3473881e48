"""Complete and causal graphs: one call of torch's fused scaled_dot_product_attention."""

from __future__ import annotations

from torch import Tensor

from graphattn.graphs.structure import as_dense
from graphattn.kernels.cost import milliseconds
from graphattn.kernels.problem import Estimate, Kernel, Problem
from graphattn.kernels.sdpa import flash_work, grid_bias, masked_estimate, scaled_dot_product


def unsupported(problem: Problem) -> str | None:
    if (reason := problem.beyond_sdpa) is not None:
        return reason
    if as_dense(problem.graph) is None:
        return "the graph is neither complete nor causal"
    return None


def expected(problem: Problem) -> Estimate | None:
    if problem.beyond_sdpa is not None or (facts := as_dense(problem.graph)) is None:
        return None
    if problem.bias is not None:
        return masked_estimate(problem)
    pairs = problem.graph.num_dst * problem.graph.num_src / (2 if facts.causal else 1)
    return Estimate(milliseconds(problem, flash_work(problem, pairs)))


def run(problem: Problem) -> Tensor:
    facts = as_dense(problem.graph)
    assert facts is not None
    mask, causal = None, facts.causal
    if problem.bias is not None:
        mask, causal = grid_bias(problem), False  # the bias is -inf where a causal graph ends
    return scaled_dot_product(
        problem.query,
        problem.key,
        problem.value,
        mask=mask,
        causal=causal,
        scale=problem.scale,
        dropout=problem.dropout,
    )


KERNEL = Kernel(
    name="dense",
    why="the graph is complete or causal: one call of torch's scaled_dot_product_attention",
    unsupported=unsupported,
    run=run,
    expected=expected,
)
