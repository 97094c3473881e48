"""Graphs on PyG's data, sorted by whoever loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.transforms import BaseTransform

from graphattn.graphs import Graph, from_edges
from graphattn.graphs.csr import (
    CompactCSR,
    compact_both,
    compact_by_destination,
    compact_by_source,
    ends,
    has_listed_edge,
)
from graphattn.graphs.graph import on_device
from graphattn.graphs.structure import count_edges

Side = tuple[Tensor, Tensor, Tensor | None]
"""The parts of a `CompactCSR`, as a plain tuple, which graphs move and pickle."""


@dataclass(frozen=True, repr=False, eq=False)
class SortedEdges(Graph):
    """A list of edges that travels with its order by destination and by source.

    What other graphs derive is left behind when they are pickled; a worker would sort in vain.
    """

    src: Tensor
    dst: Tensor
    num_dst: int
    num_src: int
    by_dst: Side
    by_src: Side

    def __post_init__(self) -> None:
        on_device(self, self.src.device)

    def edges(self) -> tuple[Tensor, Tensor]:
        return self.dst, self.src

    def has_edge(self, dst: Any, src: Any) -> Any:
        return has_listed_edge(self, dst, src)

    def __str__(self) -> str:
        return "edge list"


@count_edges.register
def _(graph: SortedEdges) -> int:
    return len(graph.src)


@ends.register
def _(graph: SortedEdges) -> tuple[Tensor, Tensor]:
    return graph.src, graph.dst


@compact_by_destination.register
def _(graph: SortedEdges) -> CompactCSR:
    return CompactCSR(*graph.by_dst)


@compact_by_source.register
def _(graph: SortedEdges) -> CompactCSR:
    return CompactCSR(*graph.by_src)


class ToGraph(BaseTransform):
    """Put a graph on data, or on every edge type of it, in the order of its edge_index.

    As `transform=` of a loader, it sorts in the loader's workers. Of a `Batch` of small graphs, it
    is applied to the batch. Layers of `graphattn.pyg` and `graphattn.attention` take the graph.

    Args:
        attr: Name of the attribute.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]]))
        >>> ToGraph()(data).graph
        edge list: 3 nodes, 2 edges, 22.2% of all pairs
    """

    def __init__(self, attr: str = "graph") -> None:
        self.attr = attr

    def forward(self, data: Any) -> Any:
        """The data, a `Data`, `HeteroData` or `Batch`, with graphs.

        Raises:
            ValueError, IndexError: If an edge_index does not fit the data.
        """
        for store in data.edge_stores:
            if "edge_index" in store:
                num_src, num_dst = store.size()
                store[self.attr] = _sorted(store.edge_index, num_src, num_dst)
        return data


def _sorted(edge_index: Tensor, num_src: int, num_dst: int) -> Graph:
    index = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    graph = from_edges(index, num_src=num_src, num_dst=num_dst)
    by_dst, by_src = ((side.ptr, side.index, side.edge) for side in compact_both(graph))
    return SortedEdges(*ends(graph), num_dst, num_src, by_dst, by_src)
