"""The transformer block, with the graph as an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.nn.attention import GraphAttention


class TransformerBlock(nn.Module):
    """Attention over a graph, then a perceptron for each node, both residual and normalized first.

    Vaswani et al. 2017, section 3.1, in the pre-norm form of Xiong et al. 2020, figure 1b.

    Args:
        dim: Width of every node.
        heads: Number of attention heads.
        mlp_ratio: Width of the perceptron's hidden layer over dim.
        dropout: Probability of dropping a weight of attention, and an output of either part.
        norm: Makes a normalization of a width; `torch.nn.LayerNorm` or `torch.nn.RMSNorm`.
        attention: Further arguments of `GraphAttention`.

    Example:
        >>> import torch
        >>> from graphattn import nn, sliding_window
        >>> block = nn.TransformerBlock(32, heads=4, bias=nn.ALiBi(4))
        >>> block(torch.randn(2, 10, 32), sliding_window(10, 2)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        **attention: Any,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attention_norm = norm(dim)
        self.attention = GraphAttention(dim, heads, dropout=dropout, **attention)
        self.mlp_norm = norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, graph: Graph, context: Tensor | None = None) -> Tensor:
        """(*batch, num_dst, dim) to the same; `graph` and `context` as in `GraphAttention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), graph, context))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
