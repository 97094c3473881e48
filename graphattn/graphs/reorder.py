"""Nodes renumbered, so that neighbors share sources and what is read lies together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from graphattn.graphs.graph import Graph, num_nodes
from graphattn.graphs.relabel import Permuted, edge_before, permuted
from graphattn.graphs.windows import SIZES


class Reordered(NamedTuple):
    """A graph whose nodes were renumbered; see `Graph.reordered`.

    graph: The same edges on the new numbers.
    order: int64 (n,); node i of it is node `order[i]` of the graph that it comes from.
    seconds: How long it took to find the order.
    """

    graph: Permuted
    order: Tensor
    seconds: float

    def edge_order(self) -> Tensor:
        """int64 (E,); edge i of `graph` is edge `edge_order()[i]` of the one that it comes from."""
        return edge_before(self.graph)


def reordered(graph: Graph, method: str) -> Reordered:
    """The graph in an order that a method finds; see `Graph.reordered`."""
    n = num_nodes(graph, "reordering needs")
    if not isinstance(method, str) or method not in METHODS:
        names = ", ".join(f'"{name}"' for name in METHODS)
        raise ValueError(
            f"method must be one of {names}, got {method!r}; permuted() takes an order of your own"
        )

    begin = time.perf_counter()
    order = METHODS[method](graph) if n else torch.empty(0, dtype=torch.int64)
    seconds = time.perf_counter() - begin
    order = order.to(graph.device)
    return Reordered(permuted(graph, order), order, seconds)


def _undirected(graph: Graph) -> Any:
    """Who is joined with whom, either way, as a scipy matrix of both; without loops."""
    from scipy.sparse import csr_array

    src, dst = graph.edge_index.cpu().numpy()
    apart = src != dst
    ends = numpy.concatenate([src, dst])[numpy.tile(apart, 2)]
    others = numpy.concatenate([dst, src])[numpy.tile(apart, 2)]
    joined = csr_array(
        (numpy.ones(len(ends), numpy.int8), (ends, others)), shape=(graph.num_dst, graph.num_dst)
    )
    joined.sum_duplicates()
    return joined


def _rcm(graph: Graph) -> Tensor:
    return _reverse_cuthill_mckee(_undirected(graph))


def _reverse_cuthill_mckee(joined: Any) -> Tensor:
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    order = reverse_cuthill_mckee(joined, symmetric_mode=True)
    return torch.from_numpy(order.astype(numpy.int64))


def _degree(graph: Graph) -> Tensor:
    ends = graph.edge_index.flatten()
    return ends.bincount(minlength=graph.num_dst).argsort(descending=True, stable=True)


def _metis(graph: Graph) -> Tensor:
    try:
        import pymetis
    except ImportError:
        raise ImportError(
            'method="metis" needs pymetis; pip install pymetis, or take method="rcm"'
        ) from None
    joined, parts = _undirected(graph), -(-graph.num_dst // SIZES[-1])
    order = _reverse_cuthill_mckee(joined)  # within the parts
    if parts == 1:
        return order
    # Cut in halves again and again: parts that lie together have numbers that do.
    _, label = pymetis.part_graph(
        parts,
        pymetis.CSRAdjacency(joined.indptr, joined.indices),
        recursive=True,
        options=pymetis.Options(seed=0),
    )
    return order[torch.tensor(label)[order].argsort(stable=True)]


METHODS: dict[str, Callable[[Graph], Tensor]] = {"rcm": _rcm, "metis": _metis, "degree": _degree}
