"""Global tokens: a few nodes that hear all and are heard by all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import integer, integers, items
from graphattn.graphs.csr import pair_keys, pairs_of, row_order
from graphattn.graphs.graph import Graph, require_edges
from graphattn.graphs.order import edge_ahead, last_listener
from graphattn.graphs.spans import Spans, as_spans, only_intervals
from graphattn.graphs.structure import Intervals, as_intervals, count_edges, is_simple, is_symmetric


@dataclass(frozen=True, repr=False)
class Hubs(Graph):
    num_dst: int
    num_src: int
    nodes: tuple[int, ...]

    def edges(self) -> tuple[Tensor, Tensor]:
        require_edges(self, 2 * self.num_dst * len(self.nodes))
        every = torch.arange(self.num_dst, device=self.device).repeat(len(self.nodes))
        hub = torch.tensor(self.nodes, dtype=torch.int64, device=self.device)
        hub = hub.repeat_interleave(self.num_dst)
        keys = torch.cat([pair_keys(every, hub, self.num_src), pair_keys(hub, every, self.num_src)])
        return pairs_of(keys.unique(), self.num_src)

    def has_edge(self, dst, src):
        if not isinstance(dst, Tensor) and not isinstance(src, Tensor):
            return dst in self.nodes or src in self.nodes
        hubs = torch.tensor(self.nodes, dtype=torch.int64)
        is_hub = torch.zeros(self.num_dst, dtype=torch.bool).index_fill(0, hubs, True)
        is_hub = is_hub.to(dst.device if isinstance(dst, Tensor) else src.device)
        return is_hub[dst] | is_hub[src]

    def __str__(self) -> str:
        return f"hubs({self.num_dst}, {list(self.nodes)})"


@count_edges.register
def _(graph: Hubs) -> int:
    return graph.num_dst**2 - (graph.num_dst - len(graph.nodes)) ** 2


@as_spans.register
def _(graph: Hubs) -> Spans | None:
    """All others attend to the hubs, which are an interval or two if they lie side by side."""
    nodes = set(graph.nodes)
    begins = [node for node in graph.nodes if node - 1 not in nodes]
    stops = [node + 1 for node in graph.nodes if node + 1 not in nodes]
    if len(begins) > 2:
        return None
    hubs = torch.tensor(graph.nodes, dtype=torch.int64, device=graph.device)
    runs, parts = [*zip(begins, stops), (0, 0), (0, 0)], []
    for bound, heard_by_hubs in zip(runs, (graph.num_src, 0)):
        start, stop = (torch.full((graph.num_dst,), end, device=graph.device) for end in bound)
        start, stop = start.index_fill(0, hubs, 0), stop.index_fill(0, hubs, heard_by_hubs)
        parts.append(Intervals(start, stop))
    return Spans(*parts)


@as_intervals.register
def _(graph: Hubs) -> Intervals | None:
    return only_intervals(as_spans(graph))


@last_listener.register
def _(graph: Hubs) -> Tensor:
    last = torch.full((graph.num_src,), max(graph.nodes, default=-1), device=graph.device)
    hubs = torch.tensor(graph.nodes, dtype=torch.int64, device=graph.device)
    return last.index_fill_(0, hubs, graph.num_dst - 1)


@edge_ahead.register
def _(graph: Hubs) -> tuple[int, int] | None:
    hub, n = max(graph.nodes, default=0), graph.num_dst
    if not graph.nodes or n == 1:
        return None
    return (hub, n - 1) if hub < n - 1 else (0, hub)


@is_symmetric.register
def _(graph: Hubs) -> bool:
    return True


@row_order.register
def _(graph: Hubs) -> None:
    return None


def hubs(n: int, nodes: Iterable[int]) -> Graph:
    """Global tokens: they hear all nodes and all nodes hear them (Longformer 2020, section 3.1).

    Args:
        n: Number of nodes.
        nodes: Which of them are hubs.

    Returns:
        A graph on n nodes: an edge wherever one end is a hub.

    Raises:
        IndexError: If a hub is not a node.

    Example:
        >>> hubs(4, [0]).mask().int().tolist()
        [[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    """
    n = integer("n", n)
    found = sorted(set(integers("nodes", items("nodes", nodes)).tolist()))
    for node in found:
        if not 0 <= node < n:
            raise IndexError(f"hub {node} is not among the nodes 0..{n - 1}")
    return Hubs(n, n, tuple(found))


@is_simple.register
def _(graph: Hubs) -> bool:
    return True
