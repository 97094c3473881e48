"""Where the tokens of a call lie on a graph: some of its rows and sources, renumbered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.facts import fact
from graphattn.graphs.graph import on_device
from graphattn.graphs.spans import empty_as_zero, register_change
from graphattn.graphs.structure import Intervals, as_intervals, is_simple

KEPT_PLACES = 32  # of each graph: shapes that come again, as in training


class Place(NamedTuple):
    """Which nodes of a graph are the queries and the keys of a call.

    num_dst, num_src: Number of queries and of keys.
    row, column: Nodes that query 0 and key 0 are; negative where padding comes first.
    stop: Sources of the graph from here on are cut off.
    """

    num_dst: int
    num_src: int
    row: int
    column: int
    stop: int


def place(graph: Graph, at: Place) -> Graph:
    """The part of a graph that the tokens of a call are, made once for each place.

    Args:
        graph: A graph.
        at: Where; queries and keys that lie outside of the graph are isolated.

    Example:
        >>> from graphattn import causal
        >>> left_padded = Place(4, 4, row=-2, column=-2, stop=2)
        >>> place(causal(9), left_padded).mask().int().tolist()
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    if at == (graph.num_dst, graph.num_src, 0, 0, graph.num_src):
        return graph
    kept = _places(graph)
    if (placed := kept.get(at)) is None:
        placed = kept[at] = on_device(Placed(graph, at), graph.device)
        if len(kept) > KEPT_PLACES:
            kept.popitem(last=False)
    return placed


@fact
def _places(graph: Graph) -> OrderedDict[Place, Graph]:
    return OrderedDict()


@dataclass(frozen=True, repr=False)
class Placed(Graph):
    """A `place` of a graph."""

    graph: Graph
    at: Place

    @property
    def num_dst(self) -> int:
        return self.at.num_dst

    @property
    def num_src(self) -> int:
        return self.at.num_src

    @property
    def rows(self) -> tuple[int, int]:
        """The first destination that is a row of the graph, and one past the last."""
        return _overlap(self.at.num_dst, self.at.row, self.graph.num_dst)

    def edges(self) -> tuple[Tensor, Tensor]:
        at, rows = self.at, self.graph.csr()
        first, last = self.rows
        edges = slice(int(rows.ptr[first + at.row]), int(rows.ptr[last + at.row]))
        dst, src = rows.row[edges] - at.row, rows.index[edges] - at.column
        begin, end = _overlap(at.num_src, at.column, min(at.stop, self.graph.num_src))
        inside = (src >= begin) & (src < end)
        return dst[inside], src[inside]

    def has_edge(self, dst, src):
        at, graph = self.at, self.graph
        both_numbers = not isinstance(dst, Tensor) and not isinstance(src, Tensor)
        row, node = torch.as_tensor(dst) + at.row, torch.as_tensor(src) + at.column
        inside = (row >= 0) & (row < graph.num_dst) & (node >= 0) & (node < at.stop)
        if not graph.num_dst or not graph.num_src:
            found = inside
        else:
            row, node = row.clamp(0, graph.num_dst - 1), node.clamp(0, graph.num_src - 1)
            found = inside & graph.has_edge(row, node)
        return bool(found) if both_numbers else found

    def __str__(self) -> str:
        return f"{self.graph} from {self.at.row}, {self.at.column}"


def _overlap(size: int, shift: int, stop: int) -> tuple[int, int]:
    """The numbers i of 0..size with 0 <= i + shift < stop, as first and one past the last."""
    first = min(max(-shift, 0), size)
    return first, max(first, min(stop - shift, size))


def _placed(graph: Placed, intervals: Intervals) -> Intervals:
    at, (first, last) = graph.at, graph.rows
    begin, end = _overlap(at.num_src, at.column, at.stop)
    rows, outside = slice(first + at.row, last + at.row), (first, at.num_dst - last)
    bounds = (
        torch.nn.functional.pad((bound[rows] - at.column).clamp(begin, end), outside)
        for bound in intervals
    )
    return empty_as_zero(*bounds)


register_change(Placed, _placed)


@is_simple.register
def _(graph: Placed) -> bool:
    return is_simple(graph.graph)


# --- how far rows reach ---------------------------------------------------------------------------


@fact
def last_source(graph: Graph) -> Tensor:
    """The last source of each destination, int64 (num_dst,); -1 if it hears nobody."""
    if (intervals := as_intervals(graph)) is not None:
        return intervals.stop - 1  # those that hear nobody stop at 0
    rows = graph.csr()
    if not len(rows.index):
        return torch.full_like(rows.ptr[1:], -1)
    last = rows.index[(rows.ptr[1:] - 1).clamp(min=0)]
    return last.masked_fill(rows.ptr.diff() == 0, -1)


@fact
def first_source(graph: Graph) -> Tensor:
    """The first source of each destination, int64 (num_dst,); num_src if it hears nobody."""
    if (intervals := as_intervals(graph)) is not None:
        return intervals.start.masked_fill(intervals.start == intervals.stop, graph.num_src)
    rows = graph.csr()
    if not len(rows.index):
        return torch.full_like(rows.ptr[1:], graph.num_src)
    first = rows.index[rows.ptr[:-1].clamp(max=len(rows.index) - 1)]
    return first.masked_fill(rows.ptr.diff() == 0, graph.num_src)


@fact
def reach(graph: Graph) -> list[int]:
    """For each node the last source of all destinations before it; -1 for the first."""
    last = last_source(graph)
    return [-1, *last.cummax(0).values.tolist()] if len(last) else [-1]


def edge_across(graph: Graph, node: int) -> tuple[int, int] | None:
    """An edge `(src, dst)` with dst < node <= src: dst was computed before src was there."""
    if reach(graph)[node] < node:
        return None
    last = last_source(graph)[:node]
    dst = int((last >= node).nonzero()[0])
    return int(last[dst]), dst
