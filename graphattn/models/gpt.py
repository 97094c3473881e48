"""A decoder-only language model whose tokens attend over a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.models import generation, pretrained
from graphattn.models.generation import Graphs
from graphattn.models.layers import graph_of_each, init_weights
from graphattn.nn import LearnedPositions, Rotary, TransformerBlock
from graphattn.nn.cache import Memory


class GPT(nn.Module):
    """Decoder-only transformer (Radford et al. 2018) with rotary positions, RMSNorm and QK-norm.

    It models text only over a graph in which no token hears a later one: a subgraph of `causal(n)`.

    Args:
        vocab_size: Number of tokens.
        dim: Width of a token's features.
        depth: Number of blocks.
        heads: Number of attention heads.
        max_len: Number of learned positions that are added to the embedding; None adds none.
        head: The output map, (…, dim) to (…, vocab_size); by default the input embedding is it too
            (Press and Wolf 2017).
        dropout: Of the embedding, and as in `TransformerBlock`.
        block: Further arguments of `TransformerBlock`, such as kv_heads and mlp_ratio; also norm,
            positions and qk_norm, to have others.

    Example:
        >>> import torch
        >>> from graphattn import causal, models, sliding_window
        >>> model = models.GPT(256, dim=64, depth=2, heads=4)
        >>> model(torch.zeros(1, 32, dtype=torch.int64), causal(32) & sliding_window(32, 8)).shape
        torch.Size([1, 32, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 256,
        depth: int = 6,
        heads: int = 4,
        max_len: int | None = None,
        head: nn.Module | None = None,
        dropout: float = 0.0,
        **block: Any,
    ) -> None:
        super().__init__()
        block = {"norm": nn.RMSNorm, "qk_norm": True, "dropout": dropout, **block}
        if "positions" not in block:
            block["positions"] = Rotary(dim // heads)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.max_len = max_len
        self.positions = None if max_len is None else LearnedPositions(max_len, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, **block) for _ in range(depth))
        self.norm = block["norm"](dim)
        self.head = head
        init_weights(self)

    @classmethod
    def from_hf(cls, model: Any) -> GPT:
        """With a copy of the weights of a GPT-2 or a Llama of transformers, and its scores.

        Over `causal(n)` it computes what the model does. Biases that the model has not are 0.

        Args:
            model: A `GPT2Model`, `LlamaModel` or either with its output map; its mode, dtype and
                device stay.

        Raises:
            TypeError: If it is no such model.
            ValueError: If its config asks for what our blocks don't have.

        Example:
            >>> import torch, transformers
            >>> from graphattn import causal, models
            >>> config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)
            >>> theirs = transformers.GPT2LMHeadModel(config).eval()
            >>> ours, tokens = models.GPT.from_hf(theirs).eval(), torch.tensor([[3, 1, 4, 1, 5]])
            >>> torch.allclose(ours(tokens, causal(5)), theirs(tokens).logits, atol=1e-5)
            True
        """
        return pretrained.gpt(cls, model)

    def forward(self, tokens: Tensor, graph: Graph | Sequence[Graph]) -> Tensor:
        """Scores of the next token after each.

        Args:
            tokens: int64 (*batch, n).
            graph: Who attends to whom among the n tokens; or one for each block.

        Returns:
            (*batch, n, vocab_size).
        """
        x = self.embed(tokens)
        for block, block_graph in zip(self.blocks, graph_of_each(graph, len(self.blocks))):
            x = block(x, block_graph)
        return self.scores(x)

    def embed(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """What the first block takes, (*batch, n, dim); places as in `LearnedPositions`."""
        x = self.embedding(tokens)
        return self.dropout(x if self.positions is None else self.positions(x, places))

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
        x = self.embed(tokens, caches[0].places(tokens.shape[-1], tokens.device))
        for block, cache in zip(self.blocks, caches):
            assert isinstance(block, TransformerBlock)
            x = block.step(x, cache)
        return x

    def scores(self, x: Tensor) -> Tensor:
        """Scores of the next token, (…, vocab_size), of features (…, dim)."""
        x = self.norm(x)
        if self.head is not None:
            return self.head(x)
        return nn.functional.linear(x, self.embedding.weight)

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
