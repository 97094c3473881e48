"""The same edges seen otherwise: turned around, renumbered, or some rows of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import integer, integers, items
from graphattn.graphs.csr import pair_keys, pairs_of, row_order
from graphattn.graphs.facts import fact
from graphattn.graphs.graph import Graph, num_nodes, on_device
from graphattn.graphs.sequence import Complete, edges_of_parts
from graphattn.graphs.spans import (
    Spans,
    as_spans,
    count_spans,
    empty_as_zero,
    register_change,
    transposed_spans,
)
from graphattn.graphs.structure import (
    Intervals,
    as_intervals,
    count_edges,
    is_simple,
    is_symmetric,
    transposed_intervals,
)


@dataclass(frozen=True, repr=False)
class Transpose(Graph):
    graph: Graph

    @property
    def num_dst(self) -> int:
        return self.graph.num_src

    @property
    def num_src(self) -> int:
        return self.graph.num_dst

    def edges(self) -> tuple[Tensor, Tensor]:
        turned = self.graph.csc()
        return turned.row, turned.index

    def has_edge(self, dst, src):
        return self.graph.has_edge(src, dst)

    def __str__(self) -> str:
        return f"{self.graph}.T"


@dataclass(frozen=True, repr=False)
class Permuted(Graph):
    graph: Graph
    order: Tensor
    place: Tensor  # place[order[i]] = i

    @property
    def num_dst(self) -> int:
        return self.graph.num_dst

    @property
    def num_src(self) -> int:
        return self.graph.num_src

    def edges(self) -> tuple[Tensor, Tensor]:
        return pairs_of(self.keys().sort().values, self.num_src)

    def keys(self) -> Tensor:
        """The edges as numbers, in the order of the other graph."""
        src, dst = self.graph.edge_index
        return pair_keys(self.place[dst], self.place[src], self.num_src)

    def has_edge(self, dst, src):
        both_numbers = not isinstance(dst, Tensor) and not isinstance(src, Tensor)
        found = self.graph.has_edge(self.order[dst], self.order[src])
        return bool(found) if both_numbers else found

    def __str__(self) -> str:
        return f"{self.graph}.permuted(...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permuted):
            return NotImplemented
        return self.graph == other.graph and torch.equal(self.order, other.order.to(self.device))

    def __hash__(self) -> int:
        return hash((self.graph, len(self.order)))


@fact
def edge_before(graph: Permuted) -> Tensor:
    """Which of the edges of the graph that was renumbered each edge is, int64 (E,)."""
    return graph.keys().argsort(stable=True)


@dataclass(frozen=True, repr=False)
class Rows(Graph):
    graph: Graph
    start: int
    stop: int

    @property
    def num_dst(self) -> int:
        return self.stop - self.start

    @property
    def num_src(self) -> int:
        return self.graph.num_src

    def edges(self) -> tuple[Tensor, Tensor]:
        if (spans := as_spans(self)) is not None:
            return edges_of_parts(self, spans.parts)
        rows = self.graph.csr()
        first, last = rows.ptr[self.start], rows.ptr[self.stop]
        return rows.row[first:last] - self.start, rows.index[first:last]

    def has_edge(self, dst, src):
        return self.graph.has_edge(dst + self.start, src)

    def __str__(self) -> str:
        return f"{self.graph}.rows({self.start}, {self.stop})"


def _rows_of(graph: Rows, intervals: Intervals) -> Intervals:
    return Intervals(*(ends[graph.start : graph.stop] for ends in intervals))


register_change(Rows, _rows_of)


@dataclass(frozen=True, repr=False, eq=False)
class Columns(Graph):
    graph: Graph
    nodes: Tensor  # int64, ascending

    @property
    def num_dst(self) -> int:
        return self.graph.num_dst

    @property
    def num_src(self) -> int:
        return len(self.nodes)

    def edges(self) -> tuple[Tensor, Tensor]:
        if (spans := as_spans(self)) is not None:
            return edges_of_parts(self, spans.parts)
        dst, src = self.graph.edges()
        column = torch.searchsorted(self.nodes, src)
        kept = torch.nn.functional.pad(self.nodes, (0, 1), value=-1)[column] == src
        return dst[kept], column[kept]

    def has_edge(self, dst, src):
        both_numbers = not isinstance(dst, Tensor) and not isinstance(src, Tensor)
        found = self.graph.has_edge(dst, self.nodes[src])
        return bool(found) if both_numbers else found

    def __str__(self) -> str:
        return f"{self.graph}, {self.num_src} of its sources"


def _columns_of(graph: Columns, intervals: Intervals) -> Intervals:
    """What was apart may meet where the sources between were left out."""
    return empty_as_zero(*(torch.searchsorted(graph.nodes, end) for end in intervals))


register_change(Columns, _columns_of)


@as_intervals.register
def _(graph: Transpose) -> Intervals | None:
    intervals = transposed_intervals(graph.graph)
    return as_intervals.default(graph) if intervals is None else intervals


@as_spans.register
def _(graph: Transpose) -> Spans | None:
    spans = transposed_spans(graph.graph)
    return as_spans.default(graph) if spans is None else spans


@transposed_spans.register
def _(graph: Transpose) -> Spans | None:
    spans = as_spans(graph.graph)
    return transposed_spans.default(graph) if spans is None else spans


@row_order.register
def _(graph: Transpose) -> Tensor | None:
    return None


@row_order.register
def _(graph: Rows | Columns) -> Tensor | None:
    return None if row_order(graph.graph) is None else row_order.default(graph)


@is_simple.register
def _(graph: Rows | Columns) -> bool:
    known = as_spans(graph) is not None or is_simple(graph.graph)
    return known or is_simple.default(graph)


@count_edges.register
def _(graph: Transpose | Permuted) -> int:
    return graph.graph.num_edges


@is_simple.register
def _(graph: Transpose | Permuted) -> bool:
    return is_simple(graph.graph)


@is_symmetric.register
def _(graph: Permuted) -> bool | None:
    return is_symmetric(graph.graph)


def transpose(graph: Graph) -> Graph:
    """Every edge turned around; `graph.T`."""
    if is_symmetric(graph):
        return graph
    if isinstance(graph, Complete):
        return on_device(Complete(graph.num_src, graph.num_dst), graph.device)
    return (
        graph.graph if isinstance(graph, Transpose) else on_device(Transpose(graph), graph.device)
    )


def permuted(graph: Graph, order: Tensor | Iterable[int]) -> Permuted:
    """The graph renumbered; see `Graph.permuted`."""
    n = num_nodes(graph, "a permutation needs")
    order = integers("order", order if isinstance(order, Tensor) else items("order", order))
    order = order.to(graph.device)
    place = torch.arange(n, device=graph.device)
    if order.shape != (n,) or not torch.equal(order.sort().values, place):
        raise ValueError(
            f"order must hold each of 0..{n - 1} once, got {order.numel()} numbers "
            f"of shape {tuple(order.shape)}"
        )
    inverse = torch.empty_like(order).scatter_(0, order, place)
    return on_device(Permuted(graph, order, inverse), graph.device)


def rows(graph: Graph, start: int, stop: int) -> Graph:
    """Some destinations of a graph; see `Graph.rows`."""
    stop = integer("stop", stop, high=graph.num_dst)
    return on_device(Rows(graph, integer("start", start, high=stop), stop), graph.device)


def columns(graph: Graph, nodes: Tensor) -> Graph:
    """Some sources of a graph alone, numbered from 0; all the destinations.

    Args:
        nodes: Which sources, int64 (columns,), ascending.

    Example:
        >>> from graphattn import causal
        >>> columns(causal(3), torch.tensor([0, 2])).mask().int().tolist()
        [[1, 0], [1, 0], [1, 1]]
    """
    return on_device(Columns(graph, nodes.to(graph.device)), graph.device)


count_edges.register(Rows)(count_spans)
count_edges.register(Columns)(count_spans)
