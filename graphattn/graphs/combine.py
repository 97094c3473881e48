"""Graphs made of graphs: the algebra on sets of pairs, and disjoint unions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphattn.graphs.checks import integer, integers
from graphattn.graphs.csr import pair_keys, pairs_of, sorted_keys
from graphattn.graphs.graph import Graph, common_device, on_device, require_edges
from graphattn.graphs.sequence import Complete, SlidingWindow, edges_of_intervals
from graphattn.graphs.structure import (
    Blocks,
    Intervals,
    as_blocks,
    as_intervals,
    count_edges,
    count_intervals,
    is_simple,
    is_symmetric,
    stack_blocks,
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
        src, dst = self.graph.edge_index
        keys = pair_keys(self.place[dst], self.place[src], self.num_src)
        return pairs_of(keys.sort().values, self.num_src)

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
        if (intervals := as_intervals(self)) is not None:
            return edges_of_intervals(self, *intervals)
        rows = self.graph.csr()
        first, last = rows.ptr[self.start], rows.ptr[self.stop]
        return rows.row[first:last] - self.start, rows.index[first:last]

    def has_edge(self, dst, src):
        return self.graph.has_edge(dst + self.start, src)

    def __str__(self) -> str:
        return f"{self.graph}.rows({self.start}, {self.stop})"


@as_intervals.register
def _(graph: Rows) -> Intervals | None:
    if (intervals := as_intervals(graph.graph)) is None:
        return None
    start, stop = intervals
    return Intervals(start[graph.start : graph.stop], stop[graph.start : graph.stop])


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
        found = False
        for node in self.nodes:
            found = found | (dst == node) | (src == node)
        return found if self.nodes else (dst < 0) & (src < 0)

    def __str__(self) -> str:
        return f"hubs({self.num_dst}, {list(self.nodes)})"


@count_edges.register
def _(graph: Hubs) -> int:
    return graph.num_dst**2 - (graph.num_dst - len(graph.nodes)) ** 2


@as_intervals.register
def _(graph: Hubs) -> Intervals | None:
    """Hubs side by side are the interval that all others attend to."""
    hubs = torch.tensor(graph.nodes, dtype=torch.int64, device=graph.device)
    first, last = (graph.nodes[0], graph.nodes[-1] + 1) if graph.nodes else (0, 0)
    if last - first != len(hubs):
        return None
    start, stop = (torch.full((graph.num_dst,), end, device=graph.device) for end in (first, last))
    return Intervals(start.index_fill(0, hubs, 0), stop.index_fill(0, hubs, graph.num_src))


@dataclass(frozen=True, repr=False)
class Batch(Graph):
    graphs: tuple[Graph, ...]

    @property
    def num_dst(self) -> int:
        return sum(graph.num_dst for graph in self.graphs)

    @property
    def num_src(self) -> int:
        return sum(graph.num_src for graph in self.graphs)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The first destination and the first source of every graph."""
        offsets, dst, src = [], 0, 0
        for graph in self.graphs:
            offsets.append((dst, src))
            dst, src = dst + graph.num_dst, src + graph.num_src
        return offsets

    def edges(self) -> tuple[Tensor, Tensor]:
        dst, src = [], []
        for graph, (dst_offset, src_offset) in zip(self.graphs, self.offsets, strict=True):
            dst.append(graph.edge_index[1] + dst_offset)
            src.append(graph.edge_index[0] + src_offset)
        return torch.cat(dst), torch.cat(src)

    def has_edge(self, dst, src):
        both_numbers = not isinstance(dst, Tensor) and not isinstance(src, Tensor)
        dst, src = torch.as_tensor(dst), torch.as_tensor(src)
        found = (dst < 0) & (src < 0)
        for graph, (dst_offset, src_offset) in zip(self.graphs, self.offsets, strict=True):
            if graph.num_dst and graph.num_src:
                to, place = dst - dst_offset, src - src_offset
                near_to, near = to.clamp(0, graph.num_dst - 1), place.clamp(0, graph.num_src - 1)
                inside = (to == near_to) & (place == near)
                found = found | (inside & graph.has_edge(near_to, near))
        return bool(found) if both_numbers else found

    def __str__(self) -> str:
        shown = [str(graph) for graph in self.graphs[:3]]
        more = [f"... {len(self.graphs)} in all"] if len(self.graphs) > 3 else []
        return f"batch([{', '.join(shown + more)}])"


@count_edges.register
def _(graph: Batch) -> int:
    return sum(part.num_edges for part in graph.graphs)


@as_intervals.register
def _(graph: Batch) -> Intervals | None:
    starts, stops = [], []
    for part, (_, src_offset) in zip(graph.graphs, graph.offsets, strict=True):
        if (intervals := as_intervals(part)) is None:
            return None
        heard = (intervals.stop > intervals.start) * src_offset
        starts.append(intervals.start + heard)
        stops.append(intervals.stop + heard)
    return Intervals(torch.cat(starts), torch.cat(stops))


@as_blocks.register
def _(graph: Batch) -> Blocks | None:
    found = []
    for part, (dst_offset, src_offset) in zip(graph.graphs, graph.offsets, strict=True):
        if (blocks := as_blocks(part)) is None:
            return None
        for dst, src, causal in blocks.groups:
            found.extend(
                (to + dst_offset, place + src_offset, causal)
                for to, place in zip(dst, src, strict=True)
            )
    return stack_blocks(found, graph.num_dst, graph.num_src)


@count_edges.register
def _(graph: Transpose | Permuted) -> int:
    return graph.graph.num_edges


for _kind in (Intersection, Rows):
    count_edges.register(_kind)(count_intervals)


@is_symmetric.register
def _(graph: SetOperation) -> bool | None:
    return (is_symmetric(graph.left) and is_symmetric(graph.right)) or None


@is_symmetric.register
def _(graph: Batch) -> bool | None:
    return all(is_symmetric(part) for part in graph.graphs) or None


@is_simple.register
def _(graph: SetOperation | Hubs) -> bool:
    return True


@is_simple.register
def _(graph: Transpose | Permuted) -> bool:
    return is_simple(graph.graph)


@is_simple.register
def _(graph: Batch) -> bool:
    return all(is_simple(part) for part in graph.graphs)


@is_symmetric.register
def _(graph: Hubs) -> bool:
    return True


def union(left: Graph, right: Graph) -> Graph:
    """Edges of either graph; `left | right`. Sets of pairs: no edge comes out twice."""
    return _joined(Union, left, right)


def intersection(left: Graph, right: Graph) -> Graph:
    """Edges of both graphs; `left & right`."""
    return _joined(Intersection, left, right)


def difference(left: Graph, right: Graph) -> Graph:
    """Edges of the first graph that the second does not have; `left - right`."""
    return _joined(Difference, left, right)


def transpose(graph: Graph) -> Graph:
    """Every edge turned around; `graph.T`."""
    if is_symmetric(graph):
        return graph
    if isinstance(graph, Complete):
        return on_device(Complete(graph.num_src, graph.num_dst), graph.device)
    return (
        graph.graph if isinstance(graph, Transpose) else on_device(Transpose(graph), graph.device)
    )


def loops(graph: Graph) -> Graph:
    """The self loops of a graph's nodes and nothing else."""
    n = _num_nodes(graph, "self loops need")
    return on_device(SlidingWindow(n, n, 0), graph.device)


def permuted(graph: Graph, order: Tensor | Iterable[int]) -> Graph:
    """The graph renumbered; see `Graph.permuted`."""
    n = _num_nodes(graph, "a permutation needs")
    order = integers("order", order if isinstance(order, Tensor) else _items("order", order))
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


def batch(graphs: Iterable[Graph]) -> Graph:
    """Graphs side by side, with no edge between them: sentences of a batch, molecules.

    Args:
        graphs: Graphs; the nodes of each follow those of the one before.

    Returns:
        A graph on the sum of the nodes; a batch of complete or causal graphs runs as blocks.

    Raises:
        TypeError: If something else than a graph is among them.
        ValueError: If there is none, or they are on different devices.

    Example:
        >>> from graphattn import causal, complete
        >>> batch([complete(2), causal(2)]).mask().int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    parts = tuple(_require_graph(part) for part in _items("graphs", graphs))
    if not parts:
        raise ValueError("batch needs at least one graph, got none")
    device = common_device(parts)
    return on_device(Batch(tuple(part.to(device) for part in parts)), device)


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
    found = sorted(set(integers("nodes", _items("nodes", nodes)).tolist()))
    for node in found:
        if not 0 <= node < n:
            raise IndexError(f"hub {node} is not among the nodes 0..{n - 1}")
    return Hubs(n, n, tuple(found))


def _joined(operation: Callable[[Graph, Graph], Graph], left: Graph, right: Graph) -> Graph:
    _require_graph(right)
    if (left.num_dst, left.num_src) != (right.num_dst, right.num_src):
        raise ValueError(
            f"graphs are joined on the same nodes, got {left.num_src} sources -> {left.num_dst} "
            f"destinations in {left} and {right.num_src} -> {right.num_dst} in {right}"
        )
    device = common_device((left, right))
    return on_device(operation(left.to(device), right.to(device)), device)


def _require_graph(value: object) -> Graph:
    if not isinstance(value, Graph):
        raise TypeError(f"expected a graph, got {type(value).__name__} {value!r:.60}")
    return value


def _items(name: str, values: object) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be several, as a list, got {type(values).__name__}")
    return list(values)


def _num_nodes(graph: Graph, what: str) -> int:
    if graph.num_dst != graph.num_src:
        raise ValueError(
            f"{what} a graph from a set of nodes to itself, got {graph.num_src} sources and "
            f"{graph.num_dst} destinations"
        )
    return graph.num_dst
