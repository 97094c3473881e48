"""Graphs with many of the possible edges: torch's fused attention over all pairs, masked."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from graphattn.graphs.memory import shortage
from graphattn.graphs.structure import density_in_words, is_simple
from graphattn.kernels.problem import Kernel, Problem
from graphattn.kernels.sdpa import grid_bias, masked_estimate, scaled_dot_product


class Cost(NamedTuple):
    """What a sparse kernel costs, in the time that this one takes for a multiply-add of one pair.

    edge: A multiply-add of one edge.
    call: What it takes longer to begin.
    """

    edge: float
    call: float


# Forward and backward, on a CPU against the kernel "cpu", elsewhere against the reference: measured
# on a CPU by `python scripts/bench.py --suite crossover`. On a GPU nobody asks.
ON_CPU, ELSEWHERE = Cost(edge=4.0, call=4e6), Cost(edge=80.0, call=0.0)


def unsupported(problem: Problem) -> str | None:
    if (reason := problem.beyond_sdpa) is not None:
        return reason
    graph, item = problem.graph, problem.query.element_size()
    # torch makes a float mask of a boolean one
    item = 1 + item if problem.bias is None else problem.heads * max(4, item)
    needed = graph.num_dst * graph.num_src * item
    if (short := shortage(needed, problem.query.device)) is not None:
        return f"the mask takes {short}"
    if not is_simple(graph):
        return "the graph has parallel edges, and a mask can't count them"
    return None


def declines(problem: Problem) -> str | None:
    graph, query = problem.graph, problem.query
    if query.is_cuda:
        return None
    cost = ON_CPU if query.device.type == "cpu" else ELSEWHERE
    size = query.shape[:-3].numel() * query.shape[-2] * query.shape[-1]
    if graph.num_dst * graph.num_src * size <= cost.edge * graph.num_edges * size + cost.call:
        return None
    return (
        f"{density_in_words(graph)} of all pairs are edges; scoring all pairs pays from "
        f"{100 / cost.edge:.3g}% on, and where there are few"
    )


def run(problem: Problem) -> Tensor:
    mask = problem.graph.mask() if problem.bias is None else grid_bias(problem)
    return scaled_dot_product(
        problem.query,
        problem.key,
        problem.value,
        mask=mask,
        scale=problem.scale,
        dropout=problem.dropout,
    )


KERNEL = Kernel(
    name="masked",
    why="scoring all pairs, masked, is faster than each edge alone: they are few or many are edges",
    unsupported=unsupported,
    run=run,
    declines=declines,
    expected=masked_estimate,
)
