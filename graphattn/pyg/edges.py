"""The edges that a layer of PyG is given, in any of their forms, as a graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import Linear
from torch_geometric.utils import (
    add_self_loops,
    is_torch_sparse_tensor,
    remove_self_loops,
    to_edge_index,
)

from graphattn.graphs import Graph, from_edges
from graphattn.graphs.facts import fact
from graphattn.pyg.cache import graph_cache


class Edges(NamedTuple):
    """What a layer knows of its edges.

    graph: Who attends to whom.
    attr: Features of the edges, (E, edge_dim) in the edge order of the graph, or None.
    index: What PyG returns beside the weights of these edges.
    """

    graph: Graph
    attr: Tensor | None
    index: Any


class Looped(NamedTuple):
    """A graph in which each node hears itself once, as PyG adds self loops: behind all others.

    kept: Places of the other edges in the edge order of the graph without, (E',).
    """

    graph: Graph
    kept: Tensor


@fact
def looped(graph: Graph) -> Looped:
    """Loops are added to nodes that are both a source and a destination."""
    src, dst = graph.edge_index
    kept = (src != dst).nonzero().squeeze(1)
    both = torch.arange(min(graph.num_src, graph.num_dst), device=graph.device)
    index = torch.stack([torch.cat([end[kept], both]) for end in (src, dst)])
    return Looped(from_edges(index, num_src=graph.num_src, num_dst=graph.num_dst), kept)


def node_pair(x: Any) -> tuple[Tensor, Tensor | None]:
    """Features of sources and destinations, (nodes, channels) each; a tensor is both.

    Raises:
        ValueError: If there are others than two dimensions.
    """
    x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
    for nodes in (x_src, x_dst):
        if nodes is not None and nodes.ndim != 2:
            raise ValueError(f"x must be (nodes, channels), got the shape {tuple(nodes.shape)}")
    return x_src, x_dst


def both_nodes(x: Any) -> tuple[Tensor, Tensor]:
    """The same, if none is missing; else a ValueError."""
    x_src, x_dst = node_pair(x)
    if x_dst is None:
        raise ValueError("x must hold destinations, too, got a pair with None; pass (x_src, x_dst)")
    return x_src, x_dst


def read_edges(
    edge_index: Any, edge_attr: Tensor | None, like: Tensor, num_src: int, num_dst: int
) -> Edges:
    """The edges that a user passes.

    Args:
        edge_index: Integers (2, E), an `EdgeIndex`, a torch sparse tensor (num_dst, num_src), or a
            graph.
        edge_attr: (E, edge_dim), or None.
        like: Features of the nodes: the edges have to be on their device.
        num_src, num_dst: Numbers of nodes.

    Raises:
        TypeError: If it is none of these, or not of integers.
        ValueError: If the shape, the length of edge_attr, the device or the nodes don't fit.
        IndexError: If a node is out of range.
    """
    if not isinstance(edge_index, Tensor | Graph):
        raise TypeError(
            "edge_index must be a tensor (2, E), a sparse tensor or a graph, got "
            f"{type(edge_index).__name__} {edge_index!r:.60}"
        )
    if isinstance(edge_index, Graph) and not edge_index.stores_tensors:
        edge_index = edge_index.to(like.device)
    if edge_index.device != like.device:
        raise ValueError(
            f"x is on {like.device} but edge_index on {edge_index.device}; "
            f'use edge_index.to("{like.device}")'
        )
    if isinstance(edge_index, Tensor) and is_torch_sparse_tensor(edge_index):
        graph, values = _of_sparse(edge_index, num_src, num_dst)
        attr = values if edge_attr is None and values.ndim > 1 else edge_attr
        return _checked(Edges(graph, attr, edge_index))
    if isinstance(edge_index, Tensor):
        plain = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
        graph = graph_cache.graph(plain, num_src=num_src, num_dst=num_dst)
        return _checked(Edges(graph, edge_attr, edge_index))
    _check_nodes("the graph", edge_index.num_src, edge_index.num_dst, num_src, num_dst)
    return _checked(Edges(edge_index, edge_attr, edge_index.edge_index))


def required_attr(layer: Any, edges: Edges) -> Tensor:
    """The features of edges of a layer that was built for them.

    Raises:
        ValueError: If there are none.
    """
    if edges.attr is None:
        raise ValueError(
            f"the layer was built with edge_dim={layer.edge_dim}, but edge_attr is missing; "
            "pass it, or build the layer without edge_dim"
        )
    return edges.attr


def is_a_matrix(linear: Any) -> bool:
    """Whether a map is nothing but a product with a matrix, at which nobody looks."""
    hooked = linear._forward_hooks or linear._forward_pre_hooks  # -1 waits in a hook
    return type(linear) is Linear and not hooked


def with_loops(edges: Edges, fill_value: Any) -> Edges:
    """Every node hears itself once; see `Looped`. The features of loops are PyG's to fill."""
    if is_torch_sparse_tensor(edges.index):
        adj = add_self_loops(remove_self_loops(edges.index)[0], None, fill_value)[0]
        graph, values = _of_sparse(adj, edges.graph.num_src, edges.graph.num_dst)
        return Edges(graph, values if values.ndim > 1 else None, adj)
    graph, kept = looped(edges.graph)
    index, attr = graph.edge_index, edges.attr
    if attr is not None:
        others, num_loops = index[:, : len(kept)], graph.num_edges - len(kept)
        attr = add_self_loops(others, attr.index_select(0, kept), fill_value, num_loops)[1]
    return Edges(graph, attr, index)


def _of_sparse(adj: Tensor, num_src: int, num_dst: int) -> tuple[Graph, Tensor]:
    """The graph of an adjacency matrix as PyG has it, transposed, and the values in its order."""
    _check_nodes("the sparse edge_index", adj.shape[1], adj.shape[0], num_src, num_dst)
    (dst, src), values = to_edge_index(adj)
    return from_edges(torch.stack([src, dst]), num_src=num_src, num_dst=num_dst), values


def _check_nodes(what: str, has_src: int, has_dst: int, num_src: int, num_dst: int) -> None:
    if (has_src, has_dst) != (num_src, num_dst):
        raise ValueError(
            f"{what} has {has_src} source and {has_dst} destination nodes, but x has {num_src} and "
            f"{num_dst}; build it for as many"
        )


def _checked(edges: Edges) -> Edges:
    """The edges, if there are as many features."""
    if edges.attr is not None and (edges.attr.ndim < 1 or len(edges.attr) != edges.graph.num_edges):
        raise ValueError(
            f"edge_attr must have a row for each of the {edges.graph.num_edges} edges, got the "
            f"shape {tuple(edges.attr.shape)}"
        )
    return edges
