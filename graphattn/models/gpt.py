"""A decoder-only language model whose tokens attend over a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.models.layers import graph_of_each, init_weights
from graphattn.nn import Rotary, TransformerBlock


class GPT(nn.Module):
    """Decoder-only transformer (Radford et al. 2018) with rotary positions, RMSNorm and QK-norm.

    The input embedding is the output map too (Press and Wolf 2017). It models text only over a
    graph in which no token hears a later one: a subgraph of `causal(n)`.

    Args:
        vocab_size: Number of tokens.
        dim: Width of a token's features.
        depth: Number of blocks.
        heads: Number of attention heads.
        block: Further arguments of `TransformerBlock`, such as kv_heads, mlp_ratio and dropout.

    Example:
        >>> import torch
        >>> from graphattn import causal, models, sliding_window
        >>> model = models.GPT(256, dim=64, depth=2, heads=4)
        >>> model(torch.zeros(1, 32, dtype=torch.int64), causal(32) & sliding_window(32, 8)).shape
        torch.Size([1, 32, 256])
    """

    def __init__(
        self, vocab_size: int, *, dim: int = 256, depth: int = 6, heads: int = 4, **block: Any
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                heads,
                norm=nn.RMSNorm,
                positions=Rotary(dim // heads),
                qk_norm=True,
                **block,
            )
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim)
        init_weights(self)

    def forward(self, tokens: Tensor, graph: Graph | Sequence[Graph]) -> Tensor:
        """Scores of the next token after each.

        Args:
            tokens: int64 (*batch, n).
            graph: Who attends to whom among the n tokens; or one for each block.

        Returns:
            (*batch, n, vocab_size).
        """
        x = self.embedding(tokens)
        for block, block_graph in zip(self.blocks, graph_of_each(graph, len(self.blocks))):
            x = block(x, block_graph)
        return nn.functional.linear(self.norm(x), self.embedding.weight)
