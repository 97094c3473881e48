"""A decoder-only language model whose tokens attend over a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.models import generation
from graphattn.models.generation import Graphs
from graphattn.models.layers import graph_of_each, init_weights
from graphattn.nn import Rotary, TransformerBlock
from graphattn.nn.cache import Memory


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
        return self.scores(x)

    def step(self, tokens: Tensor, caches: Sequence[Memory]) -> Tensor:
        """Features of tokens that come next; `scores` of them are those of `forward`.

        Args:
            tokens: int64 (*batch, new).
            caches: A `KVCache` for each block, which takes in the new tokens, or a `Draft` of it.

        Returns:
            (*batch, new, dim).

        Raises:
            ValueError: If there is not one cache for each block, or its graph has fewer nodes.
        """
        if len(caches) != len(self.blocks):
            raise ValueError(
                f"give one cache for each of the {len(self.blocks)} blocks, got {len(caches)}"
            )
        x = self.embedding(tokens)
        for block, cache in zip(self.blocks, caches):
            assert isinstance(block, TransformerBlock)
            x = block.step(x, cache)
        return x

    def scores(self, x: Tensor) -> Tensor:
        """Scores of the next token, (…, vocab_size), of features (…, dim)."""
        return nn.functional.linear(self.norm(x), self.embedding.weight)

    def generate(
        self,
        prompts: Sequence[Tensor] | Tensor,
        graph: Graphs,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Iterable[int] = (),
    ) -> list[Tensor]:
        """Go on from prompts, token by token, each drawn from what the model expects.

        Args:
            prompts: int64 (n_i,) each, of any lengths, or (batch, n). They never attend to each
                other, and nothing is padded.
            graph: Who attends to whom among the tokens of a prompt and those that follow it, as
                many as they may become or more; one for each block; or a function of how many
                nodes are needed. No token may attend to a later one.
            max_new_tokens: Tokens written after each prompt, at most.
            temperature: What scores are divided by; 0 takes the likeliest token.
            top_k: Only so many of the likeliest tokens are drawn (Fan et al. 2018, section 5.2).
            top_p: Only the likeliest tokens are drawn that together have this probability (Holtzman
                et al. 2020, section 3.1).
            seed: Of what is drawn; prompt i draws as it would alone with `seed + i`. By default
                one that torch draws.
            stop: Tokens that end a text.

        Returns:
            What follows each prompt, int64 (length,), without the token that ended it.

        Raises:
            TypeError: If something is not of the right kind.
            ValueError: If a prompt is empty, a graph has too few nodes or an edge from a later
                node, or a number is out of range.

        Example:
            >>> import torch
            >>> from graphattn import causal, models
            >>> model = models.GPT(256, dim=64, depth=2, heads=4)
            >>> prompts = [torch.tensor([1, 2, 3]), torch.tensor([4])]
            >>> texts = model.generate(prompts, causal(32), max_new_tokens=8, seed=0)
            >>> [len(text) for text in texts]
            [8, 8]
        """
        choice = generation.Choice(temperature, top_k, top_p)
        return generation.generate(
            self, prompts, graph, max_new_tokens=max_new_tokens, choice=choice, seed=seed, stop=stop
        )

    def stream(
        self,
        prompt: Tensor,
        graph: Graphs,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Iterable[int] = (),
    ) -> Iterator[int]:
        """The tokens that follow one prompt, int64 (n,), one after the other as they are drawn.

        They are those of `generate`, which has the arguments and what is raised.

        Example:
            >>> import torch
            >>> from graphattn import causal, models
            >>> model = models.GPT(256, dim=64, depth=2, heads=4)
            >>> prompt = torch.tensor([1, 2, 3])
            >>> len(list(model.stream(prompt, causal(32), max_new_tokens=8)))
            8
        """
        choice = generation.Choice(temperature, top_k, top_p)
        return generation.stream(
            self, prompt, graph, max_new_tokens=max_new_tokens, choice=choice, seed=seed, stop=stop
        )
