"""Random graphs, drawn by networkx's generators and named by their seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import integer
from graphattn.graphs.csr import has_listed_edge, pair_keys, pairs_of
from graphattn.graphs.graph import Graph
from graphattn.graphs.memory import require
from graphattn.graphs.structure import count_edges, is_simple, is_symmetric

DRAWN_EDGE_BYTES = 300  # what networkx takes for an edge of its own


@dataclass(frozen=True, repr=False)
class Expander(Graph):
    num_dst: int
    num_src: int
    degree: int
    seed: int

    def edges(self) -> tuple[Tensor, Tensor]:
        import networkx

        if self.degree == 0:
            none = torch.empty(0, dtype=torch.int64, device=self.device)
            return none, none
        require(
            DRAWN_EDGE_BYTES * self.num_edges,
            torch.device("cpu"),
            f"drawing {self}",
            "take fewer nodes or a smaller degree",
        )
        absent = self.num_dst - 1 - self.degree
        drawn = networkx.random_regular_graph(
            min(self.degree, absent), self.num_dst, seed=self.seed
        )
        if absent < self.degree:  # pairing fails on dense graphs; their complement is sparse
            drawn = networkx.complement(drawn)
        u, v = torch.tensor(list(drawn.edges), dtype=torch.int64, device=self.device).T
        keys = torch.cat([pair_keys(u, v, self.num_src), pair_keys(v, u, self.num_src)])
        return pairs_of(keys.sort().values, self.num_src)

    def has_edge(self, dst, src):
        return has_listed_edge(self, dst, src)

    def __str__(self) -> str:
        return f"expander({self.num_dst}, {self.degree}, seed={self.seed})"


@count_edges.register
def _(graph: Expander) -> int:
    return graph.num_dst * graph.degree


@is_simple.register
def _(graph: Expander) -> bool:
    return True


@is_symmetric.register
def _(graph: Expander) -> bool:
    return True


def expander(n: int, degree: int, seed: int = 0) -> Graph:
    """A random regular graph: few edges, yet any two nodes are a few hops apart.

    Random regular graphs of degree 3 and more are expanders with high probability (Friedman 2008);
    Exphormer attends over them (Shirzad et al. 2023, section 3.2). Edges go both ways; there are
    no self loops.

    Args:
        n: Number of nodes.
        degree: Neighbors of each node, below n; n * degree must be even.
        seed: The same seed gives the same graph.

    Returns:
        A graph on n nodes with n * degree edges.

    Raises:
        ValueError: If no such graph exists.

    Example:
        >>> expander(64, 4, seed=0)
        expander(64, 4, seed=0): 64 nodes, 256 edges, 6.25% of all pairs
    """
    n, degree = integer("n", n), integer("degree", degree)
    if degree >= max(n, 1) or n * degree % 2:
        raise ValueError(
            f"a graph in which each of {n} nodes has {degree} neighbors does not exist: the degree "
            "must be below n, and n * degree even"
        )
    return Expander(n, n, degree, integer("seed", seed))
