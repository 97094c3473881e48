"""Graphs with many of the possible edges: torch's fused attention over all pairs, masked."""

from __future__ import annotations

from torch import Tensor

from graphattn.graphs.facts import fact
from graphattn.graphs.graph import Graph
from graphattn.graphs.memory import free_bytes, human
from graphattn.graphs.structure import is_simple
from graphattn.kernels.problem import Kernel, Problem
from graphattn.kernels.sdpa import grid_bias, scaled_dot_product

# Time of one edge in the reference kernel over that of one pair here, forward and backward. On a
# CPU `python scripts/bench.py --suite crossover` measured 50 to 130; on a GPU it was not measured.
EDGE_OVER_PAIR = 80.0


@fact
def too_sparse(graph: Graph) -> str | None:
    """Why scoring each edge alone is faster, if it is."""
    if graph.density * EDGE_OVER_PAIR >= 1:
        return None
    return (
        f"{100 * graph.density:.3g}% of all pairs are edges; scoring all pairs pays from "
        f"{100 / EDGE_OVER_PAIR:.3g}% on"
    )


def unsupported(problem: Problem) -> str | None:
    if (reason := problem.beyond_sdpa) is not None:
        return reason
    graph, item = problem.graph, problem.query.element_size()
    # torch makes a float mask of a boolean one
    item = 1 + item if problem.bias is None else problem.heads * max(4, item)
    needed, free = graph.num_dst * graph.num_src * item, free_bytes(problem.query.device)
    if needed > free:
        return f"the mask takes {human(needed)}, and {human(free)} are free"
    if not is_simple(graph):
        return "the graph has parallel edges, and a mask can't count them"
    return None


def declines(problem: Problem) -> str | None:
    return too_sparse(problem.graph)


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
    why="so many pairs are edges that scoring all of them, masked, is faster than each edge alone",
    unsupported=unsupported,
    run=run,
    declines=declines,
)
