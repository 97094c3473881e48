"""PyG's graph attention layers, fused; `transformer_conv.py` says why they derive from PyG's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch_geometric import nn as pyg
from torch_geometric.utils import is_torch_sparse_tensor
from torch_geometric.utils.sparse import set_sparse_value

from graphattn.attention import attention, attention_weights
from graphattn.pyg.edges import (
    Edges,
    both_nodes,
    is_a_matrix,
    node_pair,
    read_edges,
    required_attr,
    with_loops,
)
from graphattn.pyg.fallback import for_pyg, keep_templates, why_never, why_not_now
from graphattn.scores import Additive


class Pairs(NamedTuple):
    """What is weighed by `<weight, leaky_relu(query + key + edge_key)>`, and what is summed.

    query, key (nodes, heads, dim); value (nodes, heads, out_channels); weight (heads, dim);
    edge_key (E, heads, dim) or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    weight: Tensor
    edge_key: Tensor | None


class GATv2Conv(pyg.GATv2Conv):
    """`torch_geometric.nn.GATv2Conv`, fused (Brody et al. 2022, eq. 7).

    `sum_j w_ij W_l x_j`, with `w_ij = softmax_j <a, leaky_relu(W_r x_i + W_l x_j + W_e e_ij)>`.
    Arguments, parameters and results are PyG's.

    Args:
        in_channels: Width of x, or of sources and destinations; -1 takes that of the first call.
        out_channels: Width of a head.
        heads, concat, negative_slope, dropout, add_self_loops, edge_dim, fill_value, bias,
            share_weights, residual: As in PyG.

    Example:
        >>> import torch
        >>> layer = GATv2Conv(16, 8, heads=4)
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> layer(torch.randn(3, 16), edge_index).shape
        torch.Size([3, 32])
    """

    _set_jittable_templates = keep_templates

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Let every destination attend to its sources, and to itself with add_self_loops.

        Args:
            x: (nodes, in_channels), or a pair of sources and destinations.
            edge_index: Integers (2, E), an `EdgeIndex`, a sparse tensor (num_dst, num_src), or a
                graphattn graph, which is quickest: it is sorted once.
            edge_attr: (E, edge_dim), or (E,) where edge_dim is 1.
            return_attention_weights: Whether to return weights, too, as in PyG.

        Returns:
            (num_dst, heads * out_channels), or (num_dst, out_channels) without concat; with
            weights `(out, (edge_index, weights))`, added loops among them.

        Raises:
            TypeError, ValueError, IndexError: If nodes, edges and features don't fit.
        """
        if _goes_pygs_way(self, edge_index, return_attention_weights):
            index = for_pyg(edge_index)
            return super().forward(x, index, edge_attr, return_attention_weights)
        if edge_attr is not None and self.lin_edge is None:
            raise ValueError("edge_attr is given, but the layer was built without edge_dim")
        x_src, x_dst = both_nodes(x)
        edges = _edges(self, edge_index, edge_attr, (x_src, x_dst), None)
        key = _split(self, self.lin_l(x_src))
        shared = self.share_weights and isinstance(x, Tensor)
        query = key if shared else _split(self, self.lin_r(x_dst))
        edge = None
        if self.lin_edge is not None:
            edge = _split(self, self.lin_edge(_columns(required_attr(self, edges))))
        pairs = Pairs(query, key, key, self.att.squeeze(0), edge)
        return _result(self, pairs, edges, x_dst, return_attention_weights)


class GATConv(pyg.GATConv):
    """`torch_geometric.nn.GATConv`, fused (Velickovic et al. 2018, eq. 3 and 4).

    `sum_j w_ij W x_j`, with `w_ij = softmax_j leaky_relu(<a, W x_i> + <b, W x_j> + <c, W_e e_ij>)`.
    Arguments, parameters and results are PyG's.

    Args:
        in_channels: Width of x, or of sources and destinations; -1 takes that of the first call.
        out_channels: Width of a head.
        heads, concat, negative_slope, dropout, add_self_loops, edge_dim, fill_value, bias,
            residual: As in PyG.

    Example:
        >>> import torch
        >>> layer = GATConv((16, 4), 8, heads=4, add_self_loops=False)
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 1, 0]])
        >>> layer((torch.randn(3, 16), torch.randn(2, 4)), edge_index).shape
        torch.Size([2, 32])
    """

    _set_jittable_templates = keep_templates

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Let every destination attend to its sources, and to itself with add_self_loops.

        Args:
            x: (nodes, in_channels), or a pair of sources and destinations; the second may be None.
            edge_index, edge_attr, return_attention_weights: As in `GATv2Conv`.
            size: Numbers of sources and destinations; of use where destinations are None.

        Returns:
            As `GATv2Conv`.

        Raises:
            TypeError, ValueError, IndexError: If nodes, edges and features don't fit.
        """
        if _goes_pygs_way(self, edge_index, return_attention_weights):
            index = for_pyg(edge_index)
            return super().forward(x, index, edge_attr, size, return_attention_weights)
        x_src, x_dst = node_pair(x)
        edges = _edges(self, edge_index, edge_attr, (x_src, x_dst), size)
        maps: Any = (self.lin_src, self.lin_dst) if self.lin is None else (self.lin, self.lin)
        sent = heard = _split(self, maps[0](x_src))
        if x_dst is not None and not (self.lin is not None and isinstance(x, Tensor)):
            heard = _split(self, maps[1](x_dst))
        key = (sent * self.att_src).sum(-1, keepdim=True)
        if x_dst is None:
            query = key.new_zeros(edges.graph.num_dst, self.heads, 1)
        else:
            query = (heard * self.att_dst).sum(-1, keepdim=True)
        pairs = Pairs(query, key, sent, query.new_ones(self.heads, 1), self._edge_logits(edges))
        return _result(self, pairs, edges, x_dst, return_attention_weights)

    def _edge_logits(self, edges: Edges) -> Tensor | None:
        """`<c, W_e e_ij>`, (E, heads, 1); as `<W_e^T c, e_ij>` if W_e is nothing but a matrix."""
        if self.lin_edge is None:
            return None
        attr = _columns(required_attr(self, edges))
        if not is_a_matrix(self.lin_edge):
            return (_split(self, self.lin_edge(attr)) * self.att_edge).sum(-1, keepdim=True)
        of_heads = (_split(self, self.lin_edge.weight.T) * self.att_edge).sum(
            -1
        )  # (edge_dim, heads)
        return linear(attr, of_heads.T)[..., None]


def _goes_pygs_way(layer: Any, edge_index: Any, return_attention_weights: bool | None) -> bool:
    """Weights are returned as they were dropped, and only PyG's own way knows which."""
    dropped = return_attention_weights and layer.training and layer.dropout > 0
    return bool(dropped or why_never(layer) or why_not_now(layer, edge_index))


def _edges(
    layer: Any,
    edge_index: Any,
    edge_attr: Tensor | None,
    x: tuple[Tensor, Tensor | None],
    size: tuple[int, int] | None,
) -> Edges:
    """The edges of a call; size is that which the user gave."""
    x_src, x_dst = x
    num_dst = len(x_dst) if x_dst is not None else size[1] if size is not None else len(x_src)
    if size is not None and tuple(size) != (len(x_src), num_dst):
        raise ValueError(f"size is {tuple(size)}, but x has ({len(x_src)}, {num_dst}) nodes")
    edges = read_edges(edge_index, edge_attr, x_src, len(x_src), num_dst)
    return with_loops(edges, layer.fill_value) if layer.add_self_loops else edges


def _result(
    layer: Any,
    pairs: Pairs,
    edges: Edges,
    x_dst: Tensor | None,
    return_attention_weights: bool | None,
) -> Any:
    """What both layers do with what they made of nodes and edges.

    The vector of the score is not cast by autocast, and what it meets takes its dtype, as in PyG.
    """
    if len({x.dtype for x in pairs if x is not None}) > 1:
        wide = reduce(torch.promote_types, (x.dtype for x in pairs if x is not None))
        pairs = pairs._replace(
            **{name: x.to(wide) for name, x in pairs._asdict().items() if x is not None}
        )
    query, key, value, weight, edge_key = pairs
    score = Additive(weight, "leaky_relu", layer.negative_slope)
    options: dict[str, Any] = {"score": score, "edge_key": edge_key}
    with _no_autocast(value):
        dropout = layer.dropout if layer.training else 0.0
        out = attention(query, key, value, edges.graph, dropout=dropout, **options)
    out = out.flatten(1) if layer.concat else out.mean(1)
    if layer.res is not None and x_dst is not None:
        out = out + layer.res(x_dst)
    if layer.bias is not None:
        out = out + layer.bias
    if not return_attention_weights:
        return out
    with _no_autocast(value):
        weights = attention_weights(query, key, edges.graph, **options)
    if is_torch_sparse_tensor(edges.index):
        return out, (set_sparse_value(edges.index, weights), weights)
    return out, (edges.index, weights)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _columns(attr: Tensor) -> Tensor:
    """(E,) -> (E, 1)."""
    return attr[:, None] if attr.ndim == 1 else attr


def _split(layer: Any, x: Tensor) -> Tensor:
    """(rows, heads * out_channels) -> (rows, heads, out_channels)."""
    return x.view(-1, layer.heads, layer.out_channels)
