"""The transformer blocks, with the graphs as arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from graphattn.biases import PairBias
from graphattn.graphs import Graph
from graphattn.nn.attention import GraphAttention
from graphattn.nn.cache import Memory

Map = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Map, Map], Tensor]
"""`residual(x, norm, part)`: a part of a block, with its normalization and what goes around it."""


def pre_norm(x: Tensor, norm: Map, part: Map) -> Tensor:
    """`x + part(norm(x))`: what the part takes is normalized (Xiong et al. 2020, figure 1b).

    Args:
        x: (*batch, nodes, dim).
        norm, part: Functions of such a tensor to one of the same shape.

    Returns:
        (*batch, nodes, dim).

    Example:
        >>> import torch
        >>> pre_norm(torch.tensor([3.0]), torch.sign, torch.neg)
        tensor([2.])
    """
    return x + part(norm(x))


def post_norm(x: Tensor, norm: Map, part: Map) -> Tensor:
    """`norm(x + part(x))`: the sum is normalized (Vaswani et al. 2017, section 3.1).

    Args:
        x: (*batch, nodes, dim).
        norm, part: Functions of such a tensor to one of the same shape.

    Returns:
        (*batch, nodes, dim).

    Example:
        >>> import torch
        >>> post_norm(torch.tensor([3.0]), torch.sign, torch.neg)
        tensor([0.])
    """
    return norm(x + part(x))


def perceptron(dim: int, hidden: int, activation: Callable[[], nn.Module] = nn.GELU) -> nn.Module:
    """Two linear maps with an activation between them (Vaswani et al. 2017, eq. 2).

    Args:
        dim: Width of a node.
        hidden: Width between the maps.
        activation: Makes the activation.

    Example:
        >>> import torch
        >>> perceptron(8, 32)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """
    return nn.Sequential(nn.Linear(dim, hidden), activation(), nn.Linear(hidden, dim))


class GatedPerceptron(nn.Module):
    """`out(activation(gate(x)) * inner(x))`: SwiGLU with SiLU (Shazeer 2020, eq. 6).

    Args:
        dim: Width of a node.
        hidden: Width between the maps.
        activation: Makes the activation.

    Example:
        >>> import torch
        >>> GatedPerceptron(8, 32)(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(
        self, dim: int, hidden: int, activation: Callable[[], nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden)
        self.inner = nn.Linear(dim, hidden)
        self.activation = activation()
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(*batch, nodes, dim) to the same."""
        return self.out(self.activation(self.gate(x)) * self.inner(x))


class TransformerBlock(nn.Module):
    """Attention over a graph, then a perceptron for each node, both residual and normalized.

    Vaswani et al. 2017, section 3.1; in the pre-norm form of Xiong et al. 2020, figure 1b, unless
    another one is given.

    Args:
        dim: Width of every node.
        heads: Number of attention heads.
        mlp_ratio: Width of the perceptron's hidden layer over dim.
        dropout: Probability of dropping a weight of attention, and an output of either part.
        norm: Makes a normalization of a width; `torch.nn.LayerNorm` or `torch.nn.RMSNorm`.
        residual: Where it stands: `pre_norm`, `post_norm`, or a function `(x, norm, part) -> x`.
        mlp: Makes the perceptron of its two widths: `perceptron`, `GatedPerceptron` or your own.
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
        residual: Residual = pre_norm,
        mlp: Callable[[int, int], nn.Module] = perceptron,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.attention_norm = norm(dim)
        self.attention = GraphAttention(dim, heads, dropout=dropout, **attention)
        self.mlp_norm = norm(dim)
        self.mlp = mlp(dim, int(dim * mlp_ratio))
        self.dropout = nn.Dropout(dropout)
        self.residual = residual

    def forward(self, x: Tensor, graph: Graph, context: Tensor | None = None) -> Tensor:
        """(*batch, num_dst, dim) to the same; `graph` and `context` as in `GraphAttention`."""
        return self._around(x, lambda y: self.attention(y, graph, context))

    def step(self, x: Tensor, cache: Memory) -> Tensor:
        """Nodes that are new, (*batch, new, dim) to the same; `cache` as in `GraphAttention`."""
        return self._around(x, lambda y: self.attention.step(y, cache))

    def _around(self, x: Tensor, attend: Map) -> Tensor:
        x = self.residual(x, self.attention_norm, lambda y: self.dropout(attend(y)))
        return self.residual(x, self.mlp_norm, lambda y: self.dropout(self.mlp(y)))


class DecoderBlock(nn.Module):
    """Attention to oneself, to a context, then a perceptron; all residual and normalized first.

    Vaswani et al. 2017, section 3.1 and figure 1 on the right, in the pre-norm form of Xiong et al.
    2020, figure 1b.

    Args:
        dim: Width of every node.
        heads: Number of attention heads, of either attention.
        context_dim: Width of the context's nodes; dim by default.
        mlp_ratio: Width of the perceptron's hidden layer over dim.
        dropout: Probability of dropping a weight of attention, and an output of each part.
        norm: Makes a normalization of a width; `torch.nn.LayerNorm` or `torch.nn.RMSNorm`.
        bias, positions: Of the attention among the nodes, as in `GraphAttention`.
        attention: Further arguments of both `GraphAttention`s.

    Example:
        >>> import torch
        >>> from graphattn import bipartite, causal, nn
        >>> block = nn.DecoderBlock(32, heads=4)
        >>> x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
        >>> block(x, causal(5), context, bipartite(5, 7)).shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        bias: PairBias | None = None,
        positions: Callable[[Tensor], Tensor] | None = None,
        **attention: Any,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        attention["dropout"] = dropout
        self.attention_norm = norm(dim)
        self.attention = GraphAttention(dim, heads, bias=bias, positions=positions, **attention)
        self.cross_norm = norm(dim)
        self.cross = GraphAttention(dim, heads, context_dim=context_dim, **attention)
        self.mlp_norm = norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, graph: Graph, context: Tensor, cross_graph: Graph) -> Tensor:
        """Let the nodes of `x` attend to each other, and then to the context.

        Args:
            x: (*batch, num_dst, dim).
            graph: Who attends to whom among the nodes of `x`.
            context: (*batch, num_src, context_dim).
            cross_graph: Who attends to whom from the nodes of `x` to those of the context.

        Returns:
            (*batch, num_dst, dim).

        Raises:
            ValueError: If a shape does not fit the layer or a graph.
        """
        x = self.attend(x, graph)
        x = x + self.dropout(self.cross(self.cross_norm(x), cross_graph, context))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def attend(self, x: Tensor, graph: Graph) -> Tensor:
        """The first part alone, the attention among the nodes of `x`."""
        return x + self.dropout(self.attention(self.attention_norm(x), graph))

    def cross_weights(self, x: Tensor, graph: Graph, context: Tensor, cross_graph: Graph) -> Tensor:
        """The weight of every edge of `cross_graph`, (*batch, E, heads), for `forward`'s inputs."""
        return self.cross.weights(self.cross_norm(self.attend(x, graph)), cross_graph, context)
