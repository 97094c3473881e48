"""Graphs side by side: the sentences of a batch, molecules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import items
from graphattn.graphs.csr import row_order
from graphattn.graphs.graph import Graph, common_device, on_device, require_graph
from graphattn.graphs.spans import Spans, as_spans
from graphattn.graphs.structure import (
    Blocks,
    Intervals,
    as_blocks,
    as_intervals,
    count_edges,
    is_simple,
    is_symmetric,
    stack_blocks,
)
from graphattn.graphs.windows import sharing_order


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
    return _side_by_side(graph, [as_intervals(part) for part in graph.graphs])


@as_spans.register
def _(graph: Batch) -> Spans | None:
    found = [as_spans(part) for part in graph.graphs]
    first, second = (
        _side_by_side(graph, [spans and spans[which] for spans in found]) for which in (0, 1)
    )
    return None if first is None or second is None else Spans(first, second)


def _side_by_side(graph: Batch, found: list[Intervals | None]) -> Intervals | None:
    """The intervals of the graphs of a batch as its own, if all are known."""
    starts, stops = [], []
    for intervals, (_, src_offset) in zip(found, graph.offsets, strict=True):
        if intervals is None:
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


@is_symmetric.register
def _(graph: Batch) -> bool | None:
    return all(is_symmetric(part) for part in graph.graphs) or None


@row_order.register
def _(graph: Batch) -> Tensor | None:
    if all(row_order(part) is None for part in graph.graphs):
        return None
    return row_order.default(graph)


@sharing_order.register
def _(graph: Batch) -> Tensor | None:
    found = [sharing_order(part) for part in graph.graphs]
    if all(order is None for order in found):
        return None
    orders = []
    for part, order, (first, _) in zip(graph.graphs, found, graph.offsets, strict=True):
        own = torch.arange(part.num_dst, device=graph.device) if order is None else order
        orders.append(own + first)
    return torch.cat(orders) if graph.num_dst == graph.num_src else None


@is_simple.register
def _(graph: Batch) -> bool:
    return all(is_simple(part) for part in graph.graphs)


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
    parts = tuple(require_graph(part) for part in items("graphs", graphs))
    if not parts:
        raise ValueError("batch needs at least one graph, got none")
    device = common_device(parts)
    return on_device(Batch(tuple(part.to(device) for part in parts)), device)
