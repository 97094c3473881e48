"""Graphs of sequences: every node attends to an interval of nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import integer
from graphattn.graphs.csr import row_order
from graphattn.graphs.graph import Graph, destinations, require_edges
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


class IntervalGraph(Graph):
    """A graph in which destination i attends to the sources `start <= j < stop` of its bounds.

    A new one is a class with `num_dst, num_src, bounds(dst), has_edge(dst, src)`.
    """

    @abstractmethod
    def bounds(self, dst: Tensor) -> tuple[Tensor, Tensor]:
        """`(start, stop)` for a tensor of destinations; cut to the range of sources later."""

    def edges(self) -> tuple[Tensor, Tensor]:
        intervals = as_intervals(self)
        assert intervals is not None
        return edges_of_parts(self, [intervals])


@as_intervals.register
def _(graph: IntervalGraph) -> Intervals:
    start, stop = (bound.clamp(0, graph.num_src) for bound in graph.bounds(destinations(graph)))
    empty = start >= stop
    return Intervals(start.masked_fill(empty, 0), stop.masked_fill(empty, 0))


count_edges.register(IntervalGraph)(count_intervals)


@row_order.register
def _(graph: IntervalGraph) -> None:
    return None


@is_simple.register
def _(graph: IntervalGraph) -> bool:
    return True


def edges_of_parts(graph: Graph, parts: Sequence[Intervals]) -> tuple[Tensor, Tensor]:
    """The `(dst, src)` of a graph whose rows are known as intervals, some in each, in order."""
    start = torch.stack([part.start for part in parts], 1).flatten()  # row by row
    degree = torch.stack([part.stop - part.start for part in parts], 1).flatten()
    num_edges = int(degree.sum())
    require_edges(graph, num_edges)
    number = torch.arange(len(degree), device=graph.device)
    interval = number.repeat_interleave(degree, output_size=num_edges)  # of each edge
    first = degree.cumsum(0) - degree  # place of each interval's first edge
    src = torch.arange(num_edges, device=graph.device) + (start - first)[interval]
    return interval if len(parts) == 1 else interval // len(parts), src


@dataclass(frozen=True, repr=False)
class Complete(IntervalGraph):
    num_dst: int
    num_src: int

    def bounds(self, dst: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(dst), torch.full_like(dst, self.num_src)

    def has_edge(self, dst, src):
        return (dst >= 0) & (src >= 0)

    def __str__(self) -> str:
        if self.num_dst == self.num_src:
            return f"complete({self.num_dst})"
        return f"bipartite({self.num_dst}, {self.num_src})"


@as_dense.register
def _(graph: Complete) -> Dense:
    return Dense(causal=False)


@count_edges.register
def _(graph: Complete) -> int:
    return graph.num_dst * graph.num_src


@is_symmetric.register
def _(graph: Complete) -> bool | None:
    return graph.num_dst == graph.num_src or None


@dataclass(frozen=True, repr=False)
class Causal(IntervalGraph):
    num_dst: int
    num_src: int

    def bounds(self, dst: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(dst), dst + 1

    def has_edge(self, dst, src):
        return src <= dst

    def __str__(self) -> str:
        return f"causal({self.num_dst})"


@as_dense.register
def _(graph: Causal) -> Dense:
    return Dense(causal=True)


@count_edges.register
def _(graph: Causal) -> int:
    return graph.num_dst * (graph.num_dst + 1) // 2


@dataclass(frozen=True, repr=False)
class Prefix(IntervalGraph):
    num_dst: int
    num_src: int
    prefix_len: int

    def bounds(self, dst: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(dst), (dst + 1).clamp(min=self.prefix_len)

    def has_edge(self, dst, src):
        return (src <= dst) | (src < self.prefix_len)

    def __str__(self) -> str:
        return f"prefix({self.num_dst}, {self.prefix_len})"


@count_edges.register
def _(graph: Prefix) -> int:
    return (graph.num_dst * (graph.num_dst + 1) + graph.prefix_len * (graph.prefix_len - 1)) // 2


@dataclass(frozen=True, repr=False)
class SlidingWindow(IntervalGraph):
    num_dst: int
    num_src: int
    radius: int

    def bounds(self, dst: Tensor) -> tuple[Tensor, Tensor]:
        return dst - self.radius, dst + self.radius + 1

    def has_edge(self, dst, src):
        return abs(dst - src) <= self.radius

    def __str__(self) -> str:
        return f"sliding_window({self.num_dst}, {self.radius})"


@count_edges.register
def _(graph: SlidingWindow) -> int:
    reach = min(graph.radius, max(graph.num_dst - 1, 0))
    return graph.num_dst * (2 * reach + 1) - reach * (reach + 1)


@is_symmetric.register
def _(graph: SlidingWindow) -> bool:
    return True


def complete(n: int) -> Graph:
    """Every node attends to every node (Vaswani et al. 2017, section 3.2, without a mask).

    Args:
        n: Number of nodes.

    Returns:
        A graph on n nodes with n^2 edges, none of which is listed before somebody asks.

    Raises:
        ValueError: If n is negative or above 2^31 - 1.

    Example:
        >>> complete(1_000_000)
        complete(1000000): 1,000,000 nodes, 1,000,000,000,000 edges, 100% of all pairs
    """
    n = integer("n", n)
    return Complete(n, n)


def bipartite(num_dst: int, num_src: int) -> Graph:
    """Every destination attends to every source: cross-attention (Vaswani et al. 2017, 3.2.3).

    Args:
        num_dst: Number of nodes that listen (queries).
        num_src: Number of nodes that speak (keys and values).

    Returns:
        A graph with num_dst * num_src edges.

    Raises:
        ValueError: If a number is negative or above 2^31 - 1.

    Example:
        >>> bipartite(2, 3).edge_index.tolist()
        [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]]
    """
    return Complete(integer("num_dst", num_dst), integer("num_src", num_src))


def causal(n: int) -> Graph:
    """A node attends to itself and to all before it: a DAG with loops (Vaswani et al. 2017, 3.2.3).

    Args:
        n: Number of nodes.

    Returns:
        A graph on n nodes with n (n + 1) / 2 edges.

    Raises:
        ValueError: If n is negative or above 2^31 - 1.

    Example:
        >>> causal(3).mask().int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    n = integer("n", n)
    return Causal(n, n)


def prefix(n: int, prefix_len: int) -> Graph:
    """Causal, but all nodes attend to the whole prefix (prefix LM, Raffel et al. 2020, 3.2.1).

    Args:
        n: Number of nodes.
        prefix_len: Length of the prefix, 0 to n.

    Returns:
        A graph on n nodes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> prefix(4, 2).mask().int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    n = integer("n", n)
    return Prefix(n, n, integer("prefix_len", prefix_len, high=n))


def sliding_window(n: int, radius: int) -> Graph:
    """A node attends to those at most `radius` away (Longformer, Beltagy et al. 2020, 3.1).

    `causal(n) & sliding_window(n, radius)` is the window of language models.

    Args:
        n: Number of nodes.
        radius: Nodes to each side; 0 leaves every node alone with itself.

    Returns:
        A graph on n nodes with at most 2 * radius + 1 edges a node.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> sliding_window(5, 1).in_degree().tolist()
        [2, 3, 3, 3, 2]
    """
    n = integer("n", n)
    return SlidingWindow(n, n, integer("radius", radius))
