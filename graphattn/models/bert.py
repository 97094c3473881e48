"""A bidirectional encoder that tells masked tokens, which attend over a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.models import pretrained
from graphattn.models.layers import graph_of_each, init_weights
from graphattn.nn import TransformerBlock, post_norm


class BERT(nn.Module):
    """Encoder with a head for masked tokens (Devlin et al. 2019, section 3 and appendix A.2).

    The token embedding is the output map too (Press and Wolf 2017). Sequences of one length are a
    batch over one graph; those of different lengths need no padding: they stand one after another,
    `positions` starts anew with each, and the graph is `graphattn.batch` of theirs.

    Args:
        vocab_size: Number of tokens.
        max_len: Number of positions.
        num_segments: Number of segments; 2 where a sequence is a pair of sentences.
        dim: Width of a token's features.
        depth: Number of blocks.
        heads: Number of attention heads.
        dropout: Of the embeddings, and as in `TransformerBlock`.
        activation: Makes the activation of the head.
        block: Further arguments of `TransformerBlock`, such as mlp_ratio.

    Example:
        >>> import torch
        >>> from graphattn import batch, complete, models
        >>> model = models.BERT(1000, dim=64, depth=2, heads=4)
        >>> model(torch.zeros(3, 32, dtype=torch.int64), complete(32)).shape
        torch.Size([3, 32, 1000])
        >>> positions = torch.tensor([0, 1, 2, 0, 1])  # three tokens, then two
        >>> tokens = torch.zeros(5, dtype=torch.int64)
        >>> model(tokens, batch([complete(3), complete(2)]), positions=positions).shape
        torch.Size([5, 1000])
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        max_len: int = 512,
        num_segments: int = 2,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        dropout: float = 0.1,
        activation: Callable[[], nn.Module] = nn.GELU,
        **block: Any,
    ) -> None:
        super().__init__()
        shape = {"norm": partial(nn.LayerNorm, eps=1e-12), "residual": post_norm, **block}
        norm = shape["norm"]
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_len, dim)
        self.segments = nn.Embedding(num_segments, dim)
        self.embedding_norm = norm(dim)
        self.dropout = nn.Dropout(dropout)
        shape["dropout"] = dropout
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, **shape) for _ in range(depth))
        self.head = nn.Sequential(nn.Linear(dim, dim), activation(), norm(dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        init_weights(self)

    @classmethod
    def from_hf(cls, model: Any) -> BERT:
        """With a copy of the weights of a BERT of transformers, its features and its scores.

        Over `complete(n)` it computes what the model does. Of a model without a head for masked
        tokens, `encode` has the features, and the head is a new one.

        Args:
            model: A `BertModel`, `BertForMaskedLM`, or another model around a `BertModel`, whose
                own head is left out; mode, dtype and device stay.

        Raises:
            TypeError: If it is no such model.
            ValueError: If its config asks for what our blocks don't have.

        Example:
            >>> import torch, transformers
            >>> from graphattn import complete, models
            >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
            >>> config = transformers.BertConfig(vocab_size=50, **sizes)
            >>> theirs = transformers.BertForMaskedLM(config).eval()
            >>> ours, tokens = models.BERT.from_hf(theirs).eval(), torch.tensor([[3, 1, 4, 1, 5]])
            >>> torch.allclose(ours(tokens, complete(5)), theirs(tokens).logits, atol=1e-5)
            True
        """
        return pretrained.bert(cls, model)

    def forward(
        self,
        tokens: Tensor,
        graph: Graph | Sequence[Graph],
        segments: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Scores of what each token is.

        Args:
            tokens: int64 (*batch, n).
            graph: Who attends to whom among the n tokens; or one for each block.
            segments: int64, the segment of each token, of a shape that broadcasts to that of
                tokens; all 0 by default.
            positions: int64, the place of each token in its sequence, in the same way; 0, 1, 2, ...
                by default.

        Returns:
            (*batch, n, vocab_size).

        Raises:
            ValueError: If there are more tokens than positions, and theirs are not given.
        """
        x = self.encode(tokens, graph, segments, positions)
        return nn.functional.linear(self.head(x), self.embedding.weight, self.bias)

    def encode(
        self,
        tokens: Tensor,
        graph: Graph | Sequence[Graph],
        segments: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Features of the tokens, (*batch, n, dim), for a head of your own; takes as `forward`."""
        x = self.embed(tokens, segments, positions)
        for block, block_graph in zip(self.blocks, graph_of_each(graph, len(self.blocks))):
            x = block(x, block_graph)
        return x

    def embed(
        self, tokens: Tensor, segments: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """What the first block takes: (*batch, n) to (*batch, n, dim)."""
        if positions is None:
            positions = self._places(tokens)
        if segments is None:
            segments = torch.zeros_like(positions)
        x = self.embedding(tokens) + self.positions(positions) + self.segments(segments)
        return self.dropout(self.embedding_norm(x))

    def _places(self, tokens: Tensor) -> Tensor:
        n, max_len = tokens.shape[-1], self.positions.num_embeddings
        if n > max_len:
            raise ValueError(
                f"the model has {max_len} positions, but there are {n} tokens; build it with "
                f"max_len={n}, or give the positions of several sequences side by side"
            )
        return torch.arange(n, device=tokens.device)


def mask_tokens(
    tokens: Tensor,
    *,
    vocab_size: int,
    mask: int,
    special: Iterable[int] = (),
    rate: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide tokens that a model is to tell (Devlin et al. 2019, section 3.1 and appendix A.1).

    Each token is chosen with probability `rate`. Of those chosen, 80% become the mask, 10% a token
    drawn from the vocabulary, and 10% stay, so that the model can trust no token that it sees.

    Args:
        tokens: int64, of any shape.
        vocab_size: Number of tokens there are.
        mask: The token that stands for a hidden one.
        special: Further tokens, such as separators, that are neither chosen nor drawn.
        rate: Probability of a token to be chosen.
        generator: What is drawn from, on the device of tokens; torch's own by default.

    Returns:
        The tokens as the model sees them, int64, and which were chosen, bool; of the shape of
        tokens. The loss is that of the chosen ones alone.

    Raises:
        ValueError: If rate is no probability, a special token is none of the vocabulary, or all
            tokens are special.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> tokens = torch.arange(1, 9)
        >>> seen, chosen = mask_tokens(tokens, vocab_size=9, mask=0, rate=0.5, generator=generator)
        >>> seen.tolist()
        [0, 2, 0, 0, 0, 6, 0, 8]
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be a probability, from 0 to 1, got {rate}")
    ordinary = _ordinary(vocab_size, {mask, *special})
    candidates = ordinary.nonzero()[:, 0].to(tokens.device)
    options = {"generator": generator, "device": tokens.device}
    chosen = torch.rand(tokens.shape, **options) < rate
    chosen &= ordinary.to(tokens.device)[tokens]
    fate = torch.rand(tokens.shape, **options)
    drawn = candidates[torch.randint(len(candidates), tokens.shape, **options)]
    seen = tokens.masked_fill(chosen & (fate < 0.8), mask)
    return torch.where(chosen & (fate >= 0.9), drawn, seen), chosen


def _ordinary(vocab_size: int, special: set[int]) -> Tensor:
    """Whether each token may be hidden, (vocab_size,)."""
    if strange := [token for token in special if not 0 <= token < vocab_size]:
        raise ValueError(
            f"special tokens must be among the {vocab_size} of the vocabulary, got {strange[0]}"
        )
    ordinary = torch.ones(vocab_size, dtype=torch.bool)
    ordinary[list(special)] = False
    if not ordinary.any():
        raise ValueError(f"all of the {vocab_size} tokens are special: there is none to hide")
    return ordinary
