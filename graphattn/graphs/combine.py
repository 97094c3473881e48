"""The algebra of graphs, on sets of pairs: union, intersection, difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphattn.graphs.csr import pairs_of, sorted_keys
from graphattn.graphs.graph import (
    Graph,
    common_device,
    num_nodes,
    on_device,
    require_edges,
    require_graph,
)
from graphattn.graphs.order import edge_ahead, last_listener
from graphattn.graphs.sequence import SlidingWindow, edges_of_intervals
from graphattn.graphs.structure import (
    Dense,
    Intervals,
    as_dense,
    as_intervals,
    count_edges,
    count_intervals,
    is_simple,
    is_symmetric,
)


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
        if (intervals := as_intervals(self)) is not None:
            return edges_of_intervals(self, *intervals)
        require_edges(self, self.left.num_edges + self.right.num_edges)
        keys = torch.cat([sorted_keys(self.left), sorted_keys(self.right)])
        return pairs_of(keys.unique(), self.num_src)

    def has_edge(self, dst, src):
        return self.left.has_edge(dst, src) | self.right.has_edge(dst, src)


@as_intervals.register
def _(graph: Union) -> Intervals | None:
    """Two intervals are one wherever they meet, or one of them is empty."""
    left, right = as_intervals(graph.left), as_intervals(graph.right)
    if left is None or right is None:
        return None
    left_empty, right_empty = left.start == left.stop, right.start == right.stop
    apart = torch.maximum(left.start, right.start) > torch.minimum(left.stop, right.stop)
    if bool((apart & ~left_empty & ~right_empty).any()):
        return None
    start, stop = torch.minimum(left.start, right.start), torch.maximum(left.stop, right.stop)
    start = torch.where(left_empty, right.start, torch.where(right_empty, left.start, start))
    stop = torch.where(left_empty, right.stop, torch.where(right_empty, left.stop, stop))
    return Intervals(start, stop)


@count_edges.register
def _(graph: Union) -> int:
    """What both graphs have is found by listing the smaller one, and counts once."""
    simple = is_simple(graph.left) and is_simple(graph.right)
    if as_intervals(graph) is not None or not simple:
        return count_intervals(graph)
    shared = (graph.left & graph.right).num_edges
    return graph.left.num_edges + graph.right.num_edges - shared


@dataclass(frozen=True, repr=False)
class Intersection(SetOperation):
    left: Graph
    right: Graph
    sign = "&"

    def edges(self) -> tuple[Tensor, Tensor]:
        if (intervals := as_intervals(self)) is not None:
            return edges_of_intervals(self, *intervals)
        listed, asked = self.left, self.right
        if listed.num_edges > asked.num_edges:
            listed, asked = asked, listed
        dst, src = pairs_of(sorted_keys(listed).unique_consecutive(), self.num_src)
        kept = asked.has_edge(dst, src)
        return dst[kept], src[kept]

    def has_edge(self, dst, src):
        return self.left.has_edge(dst, src) & self.right.has_edge(dst, src)


@as_intervals.register
def _(graph: Intersection) -> Intervals | None:
    left, right = as_intervals(graph.left), as_intervals(graph.right)
    if left is None or right is None:
        return None
    start, stop = torch.maximum(left.start, right.start), torch.minimum(left.stop, right.stop)
    empty = start >= stop
    return Intervals(start.masked_fill(empty, 0), stop.masked_fill(empty, 0))


@dataclass(frozen=True, repr=False)
class Difference(SetOperation):
    left: Graph
    right: Graph
    sign = "-"

    def edges(self) -> tuple[Tensor, Tensor]:
        if (intervals := as_intervals(self)) is not None:
            return edges_of_intervals(self, *intervals)
        dst, src = pairs_of(sorted_keys(self.left).unique_consecutive(), self.num_src)
        kept = ~self.right.has_edge(dst, src)
        return dst[kept], src[kept]

    def has_edge(self, dst, src):
        return self.left.has_edge(dst, src) & (self.right.has_edge(dst, src) ^ True)


@as_intervals.register
def _(graph: Difference) -> Intervals | None:
    """What is taken away leaves an interval, unless it lies inside."""
    left, right = as_intervals(graph.left), as_intervals(graph.right)
    if left is None or right is None:
        return None
    start, stop = torch.maximum(left.start, right.start), torch.minimum(left.stop, right.stop)
    taken, from_start = start < stop, start == left.start
    if bool((taken & ~from_start & (stop < left.stop)).any()):
        return None
    start, stop = (
        torch.where(taken & from_start, stop, left.start),
        torch.where(taken & ~from_start, start, left.stop),
    )
    empty = start == stop
    return Intervals(start.masked_fill(empty, 0), stop.masked_fill(empty, 0))


@count_edges.register
def _(graph: Difference) -> int:
    if as_intervals(graph) is not None or not is_simple(graph.left):
        return count_intervals(graph)
    return graph.left.num_edges - (graph.left & graph.right).num_edges


count_edges.register(Intersection)(count_intervals)


@is_symmetric.register
def _(graph: SetOperation) -> bool | None:
    return (is_symmetric(graph.left) and is_symmetric(graph.right)) or None


@is_simple.register
def _(graph: SetOperation) -> bool:
    return True


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
    return last_listener.rules.dispatch(Graph)(graph)


@edge_ahead.register
def _(graph: Union) -> tuple[int, int] | None:
    return edge_ahead(graph.left) or edge_ahead(graph.right)


@edge_ahead.register
def _(graph: Intersection) -> tuple[int, int] | None:
    if edge_ahead(graph.left) is None or edge_ahead(graph.right) is None:
        return None
    return edge_ahead.rules.dispatch(Graph)(graph)


@edge_ahead.register
def _(graph: Difference) -> tuple[int, int] | None:
    return None if edge_ahead(graph.left) is None else edge_ahead.rules.dispatch(Graph)(graph)


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
