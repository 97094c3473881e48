"""Graphs on PyG's data, sorted by whoever loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, HeteroData
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
from graphattn.pyg.reach import part, sizes_of_part

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


@part.register
def _(graph: SortedEdges) -> Graph | None:
    if (sizes := sizes_of_part(graph)) is None:
        return None
    sides = (
        (ptr[: count + 1], index, edge)
        for count, (ptr, index, edge) in zip(sizes, (graph.by_dst, graph.by_src))
    )
    return SortedEdges(graph.src, graph.dst, *sizes, *sides)


class ToGraph(BaseTransform):
    """Put a graph on data, or on every edge type of it, in the order of its edge_index or adj_t.

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
            if "edge_index" in store or "adj_t" in store:
                num_src, num_dst = store.size()
                store[self.attr] = _sorted(_index(store), num_src, num_dst)
                _is_whole(data, store, self.attr)
        return data


def _is_whole(data: Any, store: Any, attr: str) -> None:
    """Forget where in the attribute of a `Batch` that of each of its data was."""
    if isinstance(data, Batch):
        for name in ("_slice_dict", "_inc_dict"):
            parts, key = getattr(data, name), store._key
            own = {k: v for k, v in (parts if key is None else parts[key]).items() if k != attr}
            setattr(data, name, own if key is None else {**parts, key: own})


class ToLayers(BaseTransform):
    """Put on a batch of a loader the graph of every layer, with the edges and nodes it needs.

    The first nodes of a batch are its seeds, then come their neighbors, then the neighbors of
    these: the last layer has the seeds for destinations, and each layer the sources of the next
    one. Such graphs are the message flow graphs of DGL. Nothing is computed that the seeds don't
    hear of, while layers over the whole batch compute all nodes.

    Args:
        num_layers: Number of layers of the model.
        attr: Name of the attribute: a list of graphs, first layer first, for `HeteroData` of
            dictionaries of graphs by edge type. Features of the edges of a graph are the first
            `graph.num_edges` rows.

    Raises:
        ValueError: If num_layers is not positive.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from graphattn.pyg import TransformerConv
        >>> edge_index = torch.tensor([[1, 2, 3], [0, 0, 1]])
        >>> data = Data(torch.randn(5, 4), edge_index, batch_size=1)
        >>> batch, x = ToLayers(2)(data), data.x
        >>> for graph in batch.layers:
        ...     x = x[: graph.num_src]
        ...     x = TransformerConv(4, 4)((x, x[: graph.num_dst]), graph)
        >>> [(graph.num_src, graph.num_dst) for graph in batch.layers], x.shape
        ([(4, 3), (3, 1)], torch.Size([1, 4]))
    """

    def __init__(self, num_layers: int, attr: str = "layers") -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
        self.num_layers, self.attr = num_layers, attr

    def forward(self, data: Any) -> Any:
        """The batch, a `Data` or `HeteroData` of a loader, with graphs.

        Raises:
            ValueError: If it has no batch_size, or edges are not sorted by destination.
            IndexError: If an edge_index does not fit the data.
        """
        layers = self._layers(data)
        hetero = isinstance(data, HeteroData)
        data[self.attr] = layers if hetero else [next(iter(graphs.values())) for graphs in layers]
        return data

    def _layers(self, data: Any) -> list[dict[Any, Graph]]:
        """The graphs by edge type, first layer first."""
        needed = {
            store._key: store.batch_size for store in data.node_stores if "batch_size" in store
        }
        if not needed:
            raise ValueError(
                "the data has no batch_size; ToLayers is for batches of a NeighborLoader"
            )
        edges = {
            store._key or (None, None, None): _by_destination(store) for store in data.edge_stores
        }
        layers: list[dict[Any, Graph]] = []
        for _ in range(self.num_layers):
            cut = {key: _edges_to(index, needed.get(key[2], 0)) for key, index in edges.items()}
            heard = dict(needed)
            for (kind, _, _), index in cut.items():
                last = int(index[0].max()) if index.numel() else -1
                heard[kind] = max(heard.get(kind, 0), last + 1)
            layers.insert(
                0,
                {
                    key: _sorted(index, heard.get(key[0], 0), needed.get(key[2], 0))
                    for key, index in cut.items()
                },
            )
            needed = heard
        return layers


def _by_destination(store: Any) -> Tensor:
    """The edge_index of an edge type, if it is sorted and fits its nodes."""
    index = _index(store)
    num_src, num_dst = store.size()
    from_edges(index, num_src=num_src, num_dst=num_dst)  # which checks it
    if bool((index[1, 1:] < index[1, :-1]).any()):
        raise ValueError(
            "edges must be sorted by destination, as a loader samples them; "
            "use data.sort(sort_by_row=False)"
        )
    return index


def _edges_to(index: Tensor, num_dst: int) -> Tensor:
    """The edges of the first destinations."""
    return index[:, : int(torch.searchsorted(index[1].contiguous(), num_dst))]


def _index(store: Any) -> Tensor:
    """Edges (2, E) of an edge type, in the order of its edge_index or of its transposed matrix."""
    if "edge_index" not in store:
        dst, src, _ = store.adj_t.coo()
        return torch.stack([src, dst])
    index = store.edge_index
    return index.as_tensor() if isinstance(index, EdgeIndex) else index


def _sorted(edge_index: Tensor, num_src: int, num_dst: int) -> Graph:
    graph = from_edges(edge_index, num_src=num_src, num_dst=num_dst)
    by_dst, by_src = ((side.ptr, side.index, side.edge) for side in compact_both(graph))
    return SortedEdges(*ends(graph), num_dst, num_src, by_dst, by_src)
