"""Multi-head attention over a graph, with its linear maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.attention import attention, attention_weights
from graphattn.biases import PairBias
from graphattn.graphs import Graph
from graphattn.nn.cache import Memory
from graphattn.nn.positions import Positions, at_places
from graphattn.normalizers import Normalizer, NormalizerModule
from graphattn.scores import Score, ScoreModule


class GraphAttention(nn.Module):
    """Multi-head attention over the edges of a graph (Vaswani et al. 2017, section 3.2.2).

    Self-attention over any graph on the nodes of `x`; with `context`, cross-attention over a
    bipartite graph from the nodes of `context` to those of `x`.

    Args:
        dim: Width of `x` and of the output.
        heads: Number of query heads; divides dim.
        kv_heads: Number of key and value heads; divides heads (Ainslie et al. 2023). As many as
            query heads by default.
        context_dim: Width of `context`; dim by default.
        score: As in `attention`; a module, such as `nn.GATv2`, is trained along.
        bias: A function or module `(dst, src) -> (pairs, heads)`, added to the scores.
        positions: A function or module applied to queries and keys, (*batch, nodes, heads,
            head_dim) to the same shape, as `Rotary`; `step` gives it `places` too if it takes them.
        normalizer: As in `attention`; a module, such as `nn.SinkSoftmax`, is trained along.
        softcap: As in `attention`.
        dropout: Probability with which a weight is dropped in training.
        qk_norm: Whether queries and keys pass an RMSNorm (Henry et al. 2020).

    Raises:
        ValueError: If heads does not divide dim, or kv_heads does not divide heads.

    Example:
        >>> import torch
        >>> from graphattn import causal, nn
        >>> layer = nn.GraphAttention(32, heads=4, kv_heads=2, positions=nn.Rotary(8))
        >>> layer(torch.randn(2, 10, 32), causal(10)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        context_dim: int | None = None,
        score: str | Score | ScoreModule = "dot",
        bias: PairBias | None = None,
        positions: Positions | None = None,
        normalizer: str | Normalizer | NormalizerModule = "softmax",
        softcap: float | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, got heads={heads} and kv_heads={kv_heads}"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.context_dim = dim if context_dim is None else context_dim
        kv_dim = kv_heads * self.head_dim
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(self.context_dim, kv_dim)
        self.value = nn.Linear(self.context_dim, kv_dim)
        self.out = nn.Linear(dim, dim)
        self.query_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.score, self.bias, self.positions = score, bias, positions
        self.normalizer, self.softcap = normalizer, softcap
        self.dropout = dropout

    def forward(self, x: Tensor, graph: Graph, context: Tensor | None = None) -> Tensor:
        """Let every destination of the graph attend to its sources.

        Args:
            x: (*batch, num_dst, dim).
            graph: Who attends to whom.
            context: (*batch, num_src, context_dim), what is attended to; `x` itself by default.

        Returns:
            (*batch, num_dst, dim).

        Raises:
            ValueError: If a shape does not fit the layer or the graph.
        """
        context = x if context is None else context
        query, key = self._query_key(x, context)
        out = attention(
            query,
            key,
            self._split(self.value(context), self.kv_heads),
            graph,
            **self._meaning(),
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(out.flatten(-2))

    def step(self, x: Tensor, cache: Memory) -> Tensor:
        """Let nodes that are new attend to those before them, whose keys and values are kept.

        Args:
            x: The next nodes, (*batch, new, dim).
            cache: What is kept of the nodes before them, a `KVCache` or a `Draft`; it takes in the
                new ones.

        Returns:
            (*batch, new, dim): these rows of what `forward` makes of all the nodes.

        Raises:
            ValueError: If the graph of the cache has fewer nodes, or a shape does not fit.
        """
        query, key = self._query_key(x, x, cache.places(x.shape[-2], x.device))
        out = cache.attend(
            query,
            key,
            self._split(self.value(x), self.kv_heads),
            **self._meaning(),
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out(out.flatten(-2))

    def weights(self, x: Tensor, graph: Graph, context: Tensor | None = None) -> Tensor:
        """The weight of every edge, (*batch, E, heads) in the edge order of the graph."""
        query, key = self._query_key(x, x if context is None else context)
        return attention_weights(query, key, graph, **self._meaning())

    def _meaning(self) -> dict[str, Any]:
        names = ("score", "bias", "normalizer", "softcap")
        return {name: getattr(self, name) for name in names}

    def _query_key(
        self, x: Tensor, context: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if x.shape[-1] != self.query.in_features or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"the layer takes x of width {self.query.in_features} and context of width "
                f"{self.context_dim}, got {x.shape[-1]} and {context.shape[-1]}"
            )
        query = self.query_norm(self._split(self.query(x), self.heads))
        key = self.key_norm(self._split(self.key(context), self.kv_heads))
        if self.positions is None:
            return query, key
        if places is None:
            return self.positions(query), self.positions(key)
        return at_places(self.positions, query, places), at_places(self.positions, key, places)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """(*batch, nodes, heads * head_dim) -> (*batch, nodes, heads, head_dim), a view."""
        return x.unflatten(-1, (heads, self.head_dim))

    def extra_repr(self) -> str:
        """What printing the layer shows besides its parts."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}, dropout={self.dropout}"
