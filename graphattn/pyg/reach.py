"""Batches of a loader: the nodes that came last hear nobody, and the very last speak to nobody."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphattn.graphs import Graph
from graphattn.graphs.csr import ends
from graphattn.graphs.facts import fact
from graphattn.graphs.sparse import EdgeList

WORTH = 7 / 8
"""Nodes are left out if at most this share of them takes part."""


def first_nodes(graph: Graph) -> Graph:
    """The same edges between the first nodes: up to the last destination, and the last source.

    Only lists of edges are looked at; within compiled code, where every graph would have sizes of
    its own, none is.

    Example:
        >>> import graphattn as ga
        >>> first_nodes(ga.from_edges([[1, 3, 2], [0, 0, 1]], 9))
        edge list: 4 sources -> 2 destinations, 3 edges, 37.5% of all pairs
    """
    if torch.compiler.is_compiling() or not hasattr(graph, "src"):
        return graph
    return _first_nodes(graph)


@fact
def _first_nodes(graph: Graph) -> Graph:
    src, dst = ends(graph)
    num_src, num_dst = (int(end.max()) + 1 if len(end) else 0 for end in (src, dst))
    if num_src + num_dst > WORTH * (graph.num_src + graph.num_dst):
        return graph
    return EdgeList(src, dst, num_dst, num_src)


def with_others(out: Tensor, num_dst: int) -> Tensor:
    """The rows of first destinations, and 0 for all others up to num_dst, which hear nobody."""
    return out if len(out) == num_dst else pad(out, (0, 0, 0, num_dst - len(out)))
