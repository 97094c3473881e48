"""The algebra of graphs, on sets of pairs: union, intersection, difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphattn.graphs.csr import pairs_of, row_order, sorted_keys
from graphattn.graphs.graph import (
    Graph,
    common_device,
    num_nodes,
    on_device,
    require_edges,
    require_graph,
)
from graphattn.graphs.order import edge_ahead, last_listener
from graphattn.graphs.sequence import SlidingWindow, edges_of_parts
from graphattn.graphs.spans import (
    Spans,
    as_spans,
    count_spans,
    difference_of,
    intersection_of,
    only_intervals,
    union_of,
)
from graphattn.graphs.structure import (
    Blocks,
    Dense,
    Intervals,
    as_blocks,
    as_dense,
    as_intervals,
    count_edges,
    is_simple,
    is_symmetric,
)
from graphattn.graphs.windows import sharing_order


class SetOperation(Graph):
    """Two graphs on the same nodes, joined by a sign."""

    left: Graph
    right: Graph
    sign: ClassVar[str]

    @property
    def num_dst(self) -> int:
        return self.left.num_dst

    @property
    def num_src(self) -> int:
        return self.left.num_src

    def __str__(self) -> str:
        return f"({self.left} {self.sign} {self.right})"


@dataclass(frozen=True, repr=False)
class Union(SetOperation):
    left: Graph
    right: Graph
    sign = "|"

    def edges(self) -> tuple[Tensor, Tensor]:
        if (spans := as_spans(self)) is not None:
            return edges_of_parts(self, spans.parts)
        require_edges(self, self.left.num_edges + self.right.num_edges)
        keys = torch.cat([sorted_keys(self.left), sorted_keys(self.right)])
        return pairs_of(keys.unique(), self.num_src)

    def has_edge(self, dst, src):
        return self.left.has_edge(dst, src) | self.right.has_edge(dst, src)


@as_spans.register
def _(graph: Union) -> Spans | None:
    return union_of(as_spans(graph.left), as_spans(graph.right))


@dataclass(frozen=True, repr=False)
class Intersection(SetOperation):
    left: Graph
    right: Graph
    sign = "&"

    def edges(self) -> tuple[Tensor, Tensor]:
        if (spans := as_spans(self)) is not None:
            return edges_of_parts(self, spans.parts)
        listed, asked = self.left, self.right
        if listed.num_edges > asked.num_edges:
            listed, asked = asked, listed
        dst, src = pairs_of(sorted_keys(listed).unique_consecutive(), self.num_src)
        kept = asked.has_edge(dst, src)
        return dst[kept], src[kept]

    def has_edge(self, dst, src):
        return self.left.has_edge(dst, src) & self.right.has_edge(dst, src)


@as_spans.register
def _(graph: Intersection) -> Spans | None:
    return intersection_of(as_spans(graph.left), as_spans(graph.right))


@dataclass(frozen=True, repr=False)
class Difference(SetOperation):
    left: Graph
    right: Graph
    sign = "-"

    def edges(self) -> tuple[Tensor, Tensor]:
        if (spans := as_spans(self)) is not None:
            return edges_of_parts(self, spans.parts)
        dst, src = pairs_of(sorted_keys(self.left).unique_consecutive(), self.num_src)
        kept = ~self.right.has_edge(dst, src)
        return dst[kept], src[kept]

    def has_edge(self, dst, src):
        return self.left.has_edge(dst, src) & (self.right.has_edge(dst, src) ^ True)


@as_spans.register
def _(graph: Difference) -> Spans | None:
    return difference_of(as_spans(graph.left), as_spans(graph.right), graph.num_src)


@as_intervals.register
def _(graph: SetOperation) -> Intervals | None:
    return only_intervals(as_spans(graph))


@as_blocks.register
def _(graph: SetOperation) -> Blocks | None:
    """Two intervals in a row are not worth listing all edges for blocks that are seldom there."""
    if as_spans(graph) is not None and as_intervals(graph) is None:
        return None
    return as_blocks.default(graph)


count_edges.register(Intersection)(count_spans)


@count_edges.register
def _(graph: Union) -> int:
    """What both graphs have is found by listing the smaller one, and counts once."""
    left, right = graph.left, graph.right
    if as_spans(graph) is not None or not is_simple(left) or not is_simple(right):
        return count_spans(graph)
    return left.num_edges + right.num_edges - (left & right).num_edges


@count_edges.register
def _(graph: Difference) -> int:
    if as_spans(graph) is not None or not is_simple(graph.left):
        return count_spans(graph)
    return graph.left.num_edges - (graph.left & graph.right).num_edges


@is_symmetric.register
def _(graph: SetOperation) -> bool | None:
    return (is_symmetric(graph.left) and is_symmetric(graph.right)) or None


@is_simple.register
def _(graph: SetOperation) -> bool:
    return True


@sharing_order.register
def _(graph: SetOperation) -> Tensor | None:
    order = sharing_order(graph.left)
    return sharing_order(graph.right) if order is None else order


@row_order.register
def _(graph: SetOperation) -> None:
    return None


@last_listener.register
def _(graph: Union) -> Tensor:
    return torch.maximum(last_listener(graph.left), last_listener(graph.right))


@last_listener.register
def _(graph: Intersection) -> Tensor:
    """Beside a causal graph the other one tells it, whose edges are not listed."""
    for causal, other in ((graph.left, graph.right), (graph.right, graph.left)):
        if as_intervals(graph) is None and as_dense(causal) == Dense(causal=True):
            last = last_listener(other)
            node = torch.arange(len(last), device=last.device)
            return last.masked_fill(last < node, -1)
    return last_listener.default(graph)


@edge_ahead.register
def _(graph: Union) -> tuple[int, int] | None:
    return edge_ahead(graph.left) or edge_ahead(graph.right)


@edge_ahead.register
def _(graph: Intersection) -> tuple[int, int] | None:
    if edge_ahead(graph.left) is None or edge_ahead(graph.right) is None:
        return None
    return edge_ahead.default(graph)


@edge_ahead.register
def _(graph: Difference) -> tuple[int, int] | None:
    return None if edge_ahead(graph.left) is None else edge_ahead.default(graph)


def union(left: Graph, right: Graph) -> Graph:
    """Edges of either graph; `left | right`. Sets of pairs: no edge comes out twice."""
    return _joined(Union, left, right)


def intersection(left: Graph, right: Graph) -> Graph:
    """Edges of both graphs; `left & right`."""
    return _joined(Intersection, left, right)


def difference(left: Graph, right: Graph) -> Graph:
    """Edges of the first graph that the second does not have; `left - right`."""
    return _joined(Difference, left, right)


def loops(graph: Graph) -> Graph:
    """The self loops of a graph's nodes and nothing else."""
    n = num_nodes(graph, "self loops need")
    return on_device(SlidingWindow(n, n, 0), graph.device)


def _joined(operation: Callable[[Graph, Graph], Graph], left: Graph, right: Graph) -> Graph:
    require_graph(right)
    if (left.num_dst, left.num_src) != (right.num_dst, right.num_src):
        raise ValueError(
            f"graphs are joined on the same nodes, got {left.num_src} sources -> {left.num_dst} "
            f"destinations in {left} and {right.num_src} -> {right.num_dst} in {right}"
        )
    device = common_device((left, right))
    return on_device(operation(left.to(device), right.to(device)), device)
