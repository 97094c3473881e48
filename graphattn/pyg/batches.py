"""The graphs of a batch, as PyG's `batch` vector tells them apart: each node hears its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphattn.graphs import Graph, complete
from graphattn.graphs.facts import fact
from graphattn.graphs.graph import on_device, require_edges
from graphattn.graphs.structure import (
    Blocks,
    Intervals,
    as_blocks,
    as_intervals,
    count_edges,
    is_simple,
    is_symmetric,
    label_blocks,
)
from graphattn.pyg.cache import graph_cache


@dataclass(frozen=True, repr=False, eq=False)
class BatchGraph(Graph):
    """Every node attends to all nodes of its graph; `batch` says which that is, int64 (nodes,)."""

    batch: Tensor

    def __post_init__(self) -> None:
        on_device(self, self.batch.device)

    @property
    def num_dst(self) -> int:
        return len(self.batch)

    @property
    def num_src(self) -> int:
        return len(self.batch)

    def edges(self) -> tuple[Tensor, Tensor]:
        require_edges(self, self.num_edges)
        order = self.batch.argsort(stable=True)
        size = sizes(self)
        degree = size[self.batch]
        dst = torch.arange(len(degree), device=self.device).repeat_interleave(degree)
        first_edge, first_node = degree.cumsum(0) - degree, size.cumsum(0) - size
        place = torch.arange(len(dst), device=self.device) - first_edge[dst]
        return dst, order[first_node[self.batch[dst]] + place]

    def has_edge(self, dst: Any, src: Any) -> Any:
        same = self.batch[dst] == self.batch[src]
        return same if isinstance(dst, Tensor) or isinstance(src, Tensor) else bool(same)

    def __str__(self) -> str:
        return f"batch of {int((sizes(self) > 0).sum())} complete graphs"


@fact
def sizes(graph: BatchGraph) -> Tensor:
    """Number of nodes of every graph, int64."""
    return torch.bincount(graph.batch)


@count_edges.register
def _(graph: BatchGraph) -> int:
    return int(sizes(graph).square().sum())


@is_symmetric.register
def _(graph: BatchGraph) -> bool:
    return True


@is_simple.register
def _(graph: BatchGraph) -> bool:
    return True


@as_intervals.register
def _(graph: BatchGraph) -> Intervals | None:
    """The nodes of a graph are an interval, unless others lie between them."""
    _, run, length = graph.batch.unique_consecutive(return_inverse=True, return_counts=True)
    if len(length) > int((sizes(graph) > 0).sum()):
        return None
    stop = length.cumsum(0)
    return Intervals((stop - length)[run], stop[run])


@as_blocks.register
def _(graph: BatchGraph) -> Blocks:
    return label_blocks(graph.batch, graph.batch)


def batch_graph(batch: Tensor) -> Graph:
    """The graph in which every node attends to all nodes of its own graph, and to itself.

    It is `graphattn.batch([complete(n), ...])` for the sizes of the graphs, if these lie one after
    the other.

    Args:
        batch: PyG's batch vector, which graph each node is in: integers (nodes,), in any order.

    Returns:
        A graph on as many nodes, made once for each batch vector; see `GraphCache`.

    Raises:
        TypeError: If it is not a tensor of integers.
        ValueError: If it has another shape, or a negative number.

    Example:
        >>> import torch
        >>> batch_graph(torch.tensor([0, 0, 2, 2, 2]))
        batch of 2 complete graphs: 5 nodes, 13 edges, 52% of all pairs
    """
    _check_batch(batch)
    return graph_cache.of(batch, _batch_graph)


def read_batch(batch: Any, x: Tensor) -> Graph:
    """Who attends to whom, of a batch vector, of a graph, or of None: all nodes are in one graph.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it does not fit the nodes x (nodes, channels), or their device.
    """
    if batch is None:
        return complete(len(x)).to(x.device)
    if not isinstance(batch, Graph):
        _check_batch(batch)
        _check_nodes("batch", len(batch), len(x))
    elif not batch.stores_tensors:
        batch = batch.to(x.device)
    if batch.device != x.device:
        raise ValueError(
            f"x is on {x.device} but batch on {batch.device}; use batch.to({str(x.device)!r})"
        )
    if isinstance(batch, Tensor):
        return batch_graph(batch)
    for count in (batch.num_dst, batch.num_src):
        _check_nodes("the graph", count, len(x))
    return batch


def _batch_graph(batch: Tensor) -> Graph:
    if len(batch) and int(batch.min()) < 0:
        raise ValueError(f"batch must not be negative, got {int(batch.min())}")
    return BatchGraph(batch.detach().to(torch.int64, copy=True))


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, Tensor):
        raise TypeError(
            "batch must be a tensor that says which graph each node is in, a graph, or None, got "
            f"{type(batch).__name__} {batch!r:.60}"
        )
    if batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool:
        raise TypeError(f"batch must hold integers, got {batch.dtype}")
    if batch.ndim != 1:
        raise ValueError(f"batch must have the shape (nodes,), got {tuple(batch.shape)}")


def _check_nodes(what: str, has: int, nodes: int) -> None:
    if has != nodes:
        raise ValueError(f"{what} has {has} nodes, but x has {nodes}; they must be the same")
