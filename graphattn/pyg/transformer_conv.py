"""PyG's graph transformer layer, fused.

A drop-in has PyG's constructor, parameters, hooks and type, so it is PyG's layer, with another
forward; where that one has nothing to offer (`fallback.py`), it is PyG's own again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric import nn as pyg

from graphattn.attention import attention, attention_weights
from graphattn.features import Features, Projected
from graphattn.pyg.edges import Edges, both_nodes, is_a_matrix, read_edges, required_attr
from graphattn.pyg.fallback import for_pyg, keep_templates, why_never, why_not_now
from graphattn.pyg.folded import folded_attention, is_worth_folding
from graphattn.pyg.reach import add_to_first, first_nodes, first_rows, with_others


class TransformerConv(pyg.TransformerConv):
    """`torch_geometric.nn.TransformerConv`, fused (Shi et al. 2021, section 3.1).

    `W_1 x_i + sum_j w_ij (W_2 x_j + W_6 e_ij)`, with
    `w_ij = softmax_j(<W_3 x_i, W_4 x_j + W_6 e_ij> / sqrt(out_channels))`. Arguments, parameters
    and results are PyG's.

    Args:
        in_channels: Width of x, or of sources and destinations; -1 takes that of the first call.
        out_channels: Width of a head.
        heads, concat, beta, dropout, edge_dim, bias, root_weight: As in PyG.

    Example:
        >>> import torch
        >>> layer = TransformerConv(16, 8, heads=4)
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
        """Let every destination attend to its sources.

        Args:
            x: (nodes, in_channels), or a pair of sources and destinations.
            edge_index: Integers (2, E), an `EdgeIndex`, a sparse tensor (num_dst, num_src), or a
                graphattn graph, which is quickest: it is sorted once.
            edge_attr: (E, edge_dim).
            return_attention_weights: If True or False, weights are returned, too, as in PyG.

        Returns:
            (num_dst, heads * out_channels), or (num_dst, out_channels) without concat; with
            weights `(out, (edge_index, weights))`, the weights (E, heads).

        Raises:
            TypeError, ValueError, IndexError: If nodes, edges and features don't fit.
        """
        if (
            why_never(self)
            or why_not_now(self, edge_index)
            or (self.lin_edge is None and edge_attr is not None)  # PyG adds them to the values
        ):
            index = for_pyg(edge_index)
            return super().forward(x, index, edge_attr, return_attention_weights)
        x_src, x_dst = both_nodes(x)
        edges = read_edges(edge_index, edge_attr, x_src, len(x_src), len(x_dst))
        edge = self._edge_features(edges)
        graph = first_nodes(edges.graph)
        sent, weighed = first_rows(x_src, graph.num_src), isinstance(return_attention_weights, bool)
        asking = first_rows(sent if x_dst is x_src else x_dst, graph.num_dst)
        query = self._split(self.lin_query(asking))
        if not weighed and is_worth_folding(self, sent, graph, edge):
            return self._finish(folded_attention(self, query, sent, graph), x_dst)
        key, value = (self._split(linear(sent)) for linear in (self.lin_key, self.lin_value))
        dropout = self.dropout if self.training else 0.0
        out = attention(query, key, value, graph, edge_key=edge, edge_value=edge, dropout=dropout)
        out = self._finish(out, x_dst)
        if not weighed:
            return out
        weights = attention_weights(query, key, graph, edge_key=edge)
        return out, (edges.index, weights)

    def _edge_features(self, edges: Edges) -> Features | None:
        """`W_6 e_ij`, (E, heads, out_channels); not written out if W_6 is nothing but a matrix."""
        if self.lin_edge is None:
            return None
        attr, linear = required_attr(self, edges), self.lin_edge
        if not is_a_matrix(linear) or attr.shape[-1] != linear.in_channels:  # torch has the error
            return self._split(linear(attr))
        return Projected(attr, linear.weight.unflatten(0, (self.heads, self.out_channels)))

    def _finish(self, out: Tensor, x: Tensor) -> Tensor:
        """`beta W_1 x + (1 - beta) out`, or their sum, of all destinations."""
        out = out.flatten(1) if self.concat else out.mean(1)
        if not self.root_weight:
            return with_others(out, len(x))
        root = self.lin_skip(x)
        if self.lin_beta is None and is_a_matrix(self.lin_skip):
            return add_to_first(root, out)
        out = with_others(out, len(x))
        if self.lin_beta is None:
            return out + root
        beta = self.lin_beta(torch.cat([out, root, out - root], dim=-1)).sigmoid()
        return beta * root + (1 - beta) * out

    def _split(self, x: Tensor) -> Tensor:
        """(rows, heads * out_channels) -> (rows, heads, out_channels)."""
        return x.view(-1, self.heads, self.out_channels)
