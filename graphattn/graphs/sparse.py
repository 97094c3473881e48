"""Graphs given by their edges: lists, masks, and the graphs of other libraries."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphattn.graphs.checks import integer, integers, tensor
from graphattn.graphs.csr import check_range, ends, has_listed_edge
from graphattn.graphs.graph import Graph, on_device
from graphattn.graphs.structure import count_edges

if TYPE_CHECKING:
    import networkx
    from torch_geometric.data import Data


@dataclass(frozen=True, repr=False, eq=False)
class EdgeList(Graph):
    """A graph that keeps its edges in the order in which they came, parallel edges too.

    `edge_attrs` maps names to per-edge tensors in edge order; `node_labels` are the names that the
    nodes had where the graph came from. Two edge lists are equal only if they are one object.
    """

    src: Tensor
    dst: Tensor
    num_dst: int
    num_src: int
    edge_attrs: dict[str, Tensor] = field(default_factory=dict)
    node_labels: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        on_device(self, self.src.device)

    def edges(self) -> tuple[Tensor, Tensor]:
        return self.dst, self.src

    def has_edge(self, dst, src):
        return has_listed_edge(self, dst, src)

    def __str__(self) -> str:
        return "edge list"


@count_edges.register
def _(graph: EdgeList) -> int:
    return len(graph.src)


@ends.register
def _(graph: EdgeList) -> tuple[Tensor, Tensor]:
    check_range((graph.src, graph.dst), graph.num_dst, graph.num_src)
    return graph.src, graph.dst


def from_edges(
    edge_index: Any,
    num_nodes: int | None = None,
    *,
    num_dst: int | None = None,
    num_src: int | None = None,
) -> Graph:
    """A graph from a list of edges, as PyG has it.

    Args:
        edge_index: Integers of shape (2, E): row 0 sources, row 1 destinations. A tensor, an array
            or nested lists. Order and parallel edges are kept.
        num_nodes: Number of nodes, if sources and destinations are the same nodes.
        num_dst: Number of destinations; with `num_src`, in place of `num_nodes`.
        num_src: Number of sources.

    Returns:
        A graph on the device of `edge_index`.

    Raises:
        TypeError: If the indices are not integers, or no number of nodes is given.
        ValueError: If the shape is not (2, E).
        IndexError: If an index is out of range.

    Example:
        >>> graph = from_edges([[0, 1, 2], [1, 2, 0]], 3)
        >>> graph.has_edge(dst=1, src=0), graph.has_edge(dst=0, src=1)
        (True, False)
    """
    num_dst, num_src = _node_counts(num_nodes, num_dst, num_src)
    index = integers("edge_index", edge_index)
    if index.ndim != 2 or len(index) != 2:
        hint = "; transpose it" if index.ndim == 2 and index.shape[1] == 2 else ""
        raise ValueError(f"edge_index must have shape (2, E), got {tuple(index.shape)}{hint}")
    check_range(index, num_dst, num_src)
    src, dst = index
    return EdgeList(src, dst, num_dst, num_src)


def from_mask(mask: Any, num_nodes: int | None = None) -> Graph:
    """A graph from an attention mask: `mask[i, j]` says whether i attends to j.

    Args:
        mask: Booleans of shape (num_dst, num_src).
        num_nodes: Number of nodes, to be checked against a square mask; optional.

    Returns:
        A graph, with edges ordered by destination, then source.

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If it is no matrix, or does not fit `num_nodes`.

    Example:
        >>> import torch
        >>> from_mask(torch.ones(3, 3, dtype=torch.bool).tril()).in_degree().tolist()
        [1, 2, 3]
    """
    mask = tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}; write mask != 0, or mask == 0")
    if mask.ndim != 2:
        raise ValueError(f"mask must have shape (num_dst, num_src), got {tuple(mask.shape)}")
    if num_nodes is not None and tuple(mask.shape) != (integer("num_nodes", num_nodes),) * 2:
        raise ValueError(
            f"num_nodes={num_nodes} needs a mask of shape ({num_nodes}, {num_nodes}), got "
            f"{tuple(mask.shape)}; leave num_nodes out for a bipartite graph"
        )
    dst, src = mask.nonzero(as_tuple=True)
    return EdgeList(src, dst, *mask.shape)


def from_scipy(matrix: Any) -> Graph:
    """A graph from a scipy sparse matrix, read as scipy's csgraph and PyG do.

    Args:
        matrix: Sparse matrix or array of shape (num_src, num_dst); a stored entry [i, j] that is
            not zero is an edge from i to j, so that j attends to i.

    Returns:
        A graph, with edges ordered by source, then destination.

    Raises:
        TypeError: If it is not a scipy sparse matrix.
        ValueError: If it has not two dimensions.

    Example:
        >>> import scipy.sparse
        >>> from_scipy(scipy.sparse.eye(3, k=1)).edge_index.tolist()
        [[0, 1], [1, 2]]
    """
    import scipy.sparse

    if not scipy.sparse.issparse(matrix):
        raise TypeError(
            f"expected a scipy sparse matrix, got {type(matrix).__name__}; "
            "a dense one goes through from_mask"
        )
    if len(matrix.shape) != 2:
        raise ValueError(f"expected a matrix (num_src, num_dst), got the shape {matrix.shape}")
    entries = matrix.tocsr().tocoo()
    entries.eliminate_zeros()
    return from_edges(
        torch.stack([torch.as_tensor(entries.row).long(), torch.as_tensor(entries.col).long()]),
        num_src=matrix.shape[0],
        num_dst=matrix.shape[1],
    )


def from_pyg(data: Any) -> Graph:
    """A graph from PyG data: its `edge_index` and number of nodes, on the same device.

    Args:
        data: A `torch_geometric.data.Data` or Batch. Features stay where they are; `edge_attr`
            is in edge order and can be passed as bias.

    Returns:
        A graph in the edge order of the data.

    Raises:
        TypeError: If it has no `edge_index` (a HeteroData has one for each edge type).

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from_pyg(Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=4)).num_dst
        4
    """
    index = getattr(data, "edge_index", None)
    if not isinstance(index, Tensor):
        raise TypeError(
            f"expected PyG data with an edge_index, got {type(data).__name__}; for one edge type "
            "of a HeteroData use from_edges(data[edge_type].edge_index, num_dst=..., num_src=...)"
        )
    return from_edges(index.as_subclass(Tensor), data.num_nodes)


def from_networkx(graph: networkx.Graph, edge_attrs: Sequence[str] = ()) -> Graph:
    """A graph from networkx: an edge (u, v) lets v attend to u, an undirected one both ways.

    Args:
        graph: A Graph, DiGraph, MultiGraph or MultiDiGraph with any node labels.
        edge_attrs: Names of numeric edge attributes to bring along.

    Returns:
        An `EdgeList` with nodes numbered in networkx's order: `node_labels[i]` is the label of
        node i, `edge_attrs[name]` a float tensor of shape (E,) in edge order.

    Raises:
        TypeError: If it is not a networkx graph.
        ValueError: If an edge lacks an attribute, or it is not a number.

    Example:
        >>> import networkx
        >>> from_networkx(networkx.karate_club_graph(), edge_attrs=["weight"])
        edge list: 34 nodes, 156 edges, 13.5% of all pairs
    """
    import networkx

    if not isinstance(graph, networkx.Graph):
        raise TypeError(f"expected a networkx graph, got {type(graph).__name__}")
    names = [edge_attrs] if isinstance(edge_attrs, str) else list(edge_attrs)
    number = {label: node for node, label in enumerate(graph.nodes)}
    pairs: list[tuple[int, int]] = []
    values: dict[str, list[float]] = {name: [] for name in names}
    for u, v, attributes in graph.edges(data=True):
        ways = [(u, v)] if graph.is_directed() or u == v else [(u, v), (v, u)]
        pairs.extend((number[a], number[b]) for a, b in ways)
        for name in names:
            values[name].extend([_edge_number(u, v, attributes, name)] * len(ways))
    src, dst = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T.contiguous()
    return EdgeList(
        src,
        dst,
        len(number),
        len(number),
        {name: torch.tensor(column) for name, column in values.items()},
        tuple(graph.nodes),
    )


def to_networkx(graph: Graph) -> networkx.DiGraph:
    """The graph as a networkx one; see `Graph.to_networkx`.

    Raises:
        ValueError: If sources and destinations are not the same nodes.
    """
    import networkx

    _require_square(graph, "networkx")
    parallel = graph.edge_index.unique(dim=1).shape[1] < graph.num_edges
    result = networkx.MultiDiGraph() if parallel else networkx.DiGraph()
    labels = getattr(graph, "node_labels", None) or range(graph.num_dst)
    result.add_nodes_from(labels)
    columns = {name: column.tolist() for name, column in getattr(graph, "edge_attrs", {}).items()}
    for edge, (src, dst) in enumerate(graph.edge_index.T.tolist()):
        attributes = {name: column[edge] for name, column in columns.items()}
        result.add_edge(labels[src], labels[dst], **attributes)
    return result


def to_pyg(graph: Graph) -> Data:
    """The graph as PyG data; see `Graph.to_pyg`.

    Raises:
        ValueError: If sources and destinations are not the same nodes.
    """
    from torch_geometric.data import Data

    _require_square(graph, "PyG's Data")
    data = Data(edge_index=graph.edge_index.clone(), num_nodes=graph.num_dst)
    for name, column in getattr(graph, "edge_attrs", {}).items():
        data[name] = column
    return data


def _require_square(graph: Graph, where: str) -> None:
    if graph.num_dst != graph.num_src:
        raise ValueError(
            f"{where} has one set of nodes; this graph has {graph.num_src} sources and "
            f"{graph.num_dst} destinations, use its edge_index"
        )


def _edge_number(u: Hashable, v: Hashable, attributes: dict[str, Any], name: str) -> float:
    if name not in attributes:
        raise ValueError(
            f"edge ({u!r}, {v!r}) has no attribute {name!r} (it has {list(attributes)}); "
            f"set it on every edge, or leave {name!r} out of edge_attrs"
        )
    try:
        if isinstance(attributes[name], str | bytes):
            raise TypeError  # although float("3") is 3.0
        return float(attributes[name])
    except (TypeError, ValueError):
        raise ValueError(
            f"attribute {name!r} of edge ({u!r}, {v!r}) must be a number, got {attributes[name]!r}"
        ) from None


def _node_counts(
    num_nodes: int | None, num_dst: int | None, num_src: int | None
) -> tuple[int, int]:
    if num_nodes is not None and num_dst is None and num_src is None:
        num_nodes = integer("num_nodes", num_nodes)
        return num_nodes, num_nodes
    if num_nodes is None and num_dst is not None and num_src is not None:
        return integer("num_dst", num_dst), integer("num_src", num_src)
    raise TypeError(
        "give num_nodes, or both num_dst and num_src; "
        f"got num_nodes={num_nodes}, num_dst={num_dst}, num_src={num_src}"
    )
