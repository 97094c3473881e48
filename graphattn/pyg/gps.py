"""PyG's GPS layer, whose nodes attend to those of their own graph, and to no padding.

The attention is a part that is handed in: a module called with the nodes and with what tells their
graphs apart. PyG's `MultiheadAttention` becomes `GraphGPSAttention`, with its parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from torch_geometric import nn as pyg
from torch_geometric.nn.attention import PerformerAttention
from torch_geometric.nn.inits import reset
from torch_geometric.utils import to_dense_batch

from graphattn.attention import attention, attention_weights
from graphattn.graphs import Graph
from graphattn.pyg.batches import read_batch


class GraphGPSAttention(nn.MultiheadAttention):
    """Every node attends to all nodes of its own graph (Rampasek et al. 2022, section 3.2).

    The global part of `torch_geometric.nn.GPSConv`: `torch.nn.MultiheadAttention` with its
    parameters and results, over graphs side by side instead of graphs padded to the longest.

    Args:
        embed_dim: Width of the nodes.
        num_heads: Number of heads; divides embed_dim.
        dropout, bias, add_bias_kv, add_zero_attn, device, dtype: As in torch. With add_bias_kv or
            add_zero_attn, graphs are padded as in PyG.

    Example:
        >>> import torch
        >>> layer = GraphGPSAttention(16, 4)
        >>> layer(torch.randn(5, 16), torch.tensor([0, 0, 1, 1, 1])).shape
        torch.Size([5, 16])
    """

    def __init__(self, embed_dim: int, num_heads: int, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, batch_first=True, **options)

    def forward(self, x: Tensor, batch: Any = None) -> Tensor:  # pyright: ignore
        """Let all nodes attend.

        Args:
            x: (nodes, embed_dim).
            batch: Which graph each node is in, integers (nodes,), in any order; or a graphattn
                graph, as `batch_graph` makes it; or None, if they are all in one.

        Returns:
            (nodes, embed_dim).

        Raises:
            TypeError, ValueError: If the nodes and the batch don't fit.
        """
        if why_padded(self) or (torch.compiler.is_compiling() and not isinstance(batch, Graph)):
            return self._padded(x, batch)
        query, key, value = self._project(x)
        graph, drop = read_batch(batch, x), self.dropout if self.training else 0.0
        return self.out_proj(attention(query, key, value, graph, dropout=drop).flatten(1))

    def weights(self, x: Tensor, batch: Any = None) -> Tensor:
        """The weight of every pair, (E, num_heads) in the edge order of `batch_graph(batch)`."""
        query, key, _ = self._project(x)
        return attention_weights(query, key, read_batch(batch, x))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, (nodes, num_heads, head_dim) each."""
        if x.ndim != 2 or x.shape[1] != self.embed_dim:
            raise ValueError(f"x must be (nodes, {self.embed_dim}), got {tuple(x.shape)}")
        made = linear(x, self.in_proj_weight, self.in_proj_bias)
        return made.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(1)

    def _padded(self, x: Tensor, batch: Tensor | None) -> Tensor:
        """The same as PyG computes it, for a batch in order."""
        if batch is None:
            return super().forward(*(x[None],) * 3, need_weights=False)[0][0]
        if isinstance(batch, Graph):
            batch = batch_of(batch)
        h, mask = to_dense_batch(x, batch)
        h, _ = super().forward(h, h, h, key_padding_mask=~mask, need_weights=False)
        return h[mask]


def why_padded(layer: nn.MultiheadAttention) -> str | None:
    """Why attention needs what graphs have no room for, or None if it does not.

    Example:
        >>> why_padded(nn.MultiheadAttention(4, 1, add_zero_attn=True))
        'its attention has a key that is no node (add_zero_attn)'
    """
    if layer.bias_k is not None or layer.add_zero_attn:
        option = "add_bias_kv" if layer.bias_k is not None else "add_zero_attn"
        return f"its attention has a key that is no node ({option})"
    return "its attention drops every weight" if layer.dropout >= 1 else None


def batch_of(batch: Any) -> Any:
    """The batch vector itself, or that of a graph or of edges that know it; None is None.

    Raises:
        ValueError: If they don't know it.
    """
    if batch is None or isinstance(batch, Tensor):
        return batch
    if not isinstance(made := getattr(batch, "batch", None), Tensor):
        raise ValueError(
            f"it can't be told from {batch} which graph each node is in; pass the batch vector, or "
            "the graph that batch_graph makes of it"
        )
    return made


class GPSConv(pyg.GPSConv):
    """`torch_geometric.nn.GPSConv`, unpadded (Rampasek et al. 2022, eq. 2 to 5).

    `y + mlp(y)`, with `y = norm(x + conv(x)) + norm(x + attention(x))`. Arguments, parameters and
    results are PyG's.

    Args:
        channels: Width of the nodes.
        conv: The local message passing layer, or None.
        heads, dropout, act, act_kwargs, norm, norm_kwargs, attn_type, attn_kwargs: As in PyG.
        attention: A module to attend with, instead of attn_type: it is called with x and batch,
            and returns (nodes, channels). See `Exphormer`.

    Example:
        >>> import torch
        >>> layer = GPSConv(16, pyg.GCNConv(16, 16), heads=4)
        >>> edge_index, batch = torch.tensor([[0, 2, 3], [1, 3, 4]]), torch.tensor([0, 0, 1, 1, 1])
        >>> layer(torch.randn(5, 16), edge_index, batch).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        channels: int,
        conv: Any,
        heads: int = 1,
        dropout: float = 0.0,
        act: Any = "relu",
        act_kwargs: dict[str, Any] | None = None,
        norm: Any = "batch_norm",
        norm_kwargs: dict[str, Any] | None = None,
        attn_type: str = "multihead",
        attn_kwargs: dict[str, Any] | None = None,
        *,
        attention: nn.Module | None = None,
    ) -> None:
        kinds = (act, act_kwargs, norm, norm_kwargs, attn_type, attn_kwargs)
        super().__init__(channels, conv, heads, dropout, *kinds)
        if attention is not None:
            self.attn, self.attn_type = attention, type(attention).__name__
        elif isinstance(self.attn, nn.MultiheadAttention):
            self.attn.__class__ = GraphGPSAttention

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        reset(self.conv)
        own = getattr(self.attn, "_reset_parameters", None)  # PyG's and torch's have no other
        own() if own is not None else reset(self.attn)
        for part in (self.mlp, self.norm1, self.norm2, self.norm3):
            reset(part)

    def forward(self, x: Tensor, edge_index: Any, batch: Any = None, **kwargs: Any) -> Tensor:
        """Let nodes hear their neighbors, and attend to their graph.

        Args:
            x: (nodes, channels).
            edge_index: What the local layer takes.
            batch: Which graph each node is in, integers (nodes,), in any order; or a graphattn
                graph, as `batch_graph` makes it; or None, if they are all in one. An attention of
                your own may take something else, which holds the vector as its `batch`.
            kwargs: Further arguments of the local layer, as `edge_attr`.

        Returns:
            (nodes, channels).

        Raises:
            TypeError, ValueError: If the nodes and the batch don't fit.
        """
        if isinstance(self.attn, PerformerAttention):
            return super().forward(x, edge_index, batch_of(batch), **kwargs)
        of_node = batch_of(batch) if self.norm_with_batch else None
        parts = []
        if self.conv is not None:
            h = dropout(self.conv(x, edge_index, **kwargs), self.dropout, self.training) + x
            parts.append(self._normalized(self.norm1, h, of_node))
        h = dropout(self.attn(x, batch), self.dropout, self.training) + x
        out = sum([*parts, self._normalized(self.norm2, h, of_node)])
        return self._normalized(self.norm3, out + self.mlp(out), of_node)

    def _normalized(self, norm: Any, h: Tensor, batch: Tensor | None) -> Tensor:
        if norm is None:
            return h
        return norm(h, batch=batch) if self.norm_with_batch else norm(h)
