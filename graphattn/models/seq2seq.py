"""The encoder-decoder transformer, over sentences of different lengths in one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.graphs import Graph, batch, bipartite, causal, complete
from graphattn.models.layers import init_weights
from graphattn.nn import DecoderBlock, SinusoidalPositions, TransformerBlock

# A sentence of some length comes again and again: what is known of its graph is kept.
_complete, _causal, _bipartite = (lru_cache(4096)(f) for f in (complete, causal, bipartite))

Sentences = Sequence[Tensor] | Tensor
"""Tokens of each sentence, int64 (length,); sentences of one length may be one (batch, length)."""

Graphs = Callable[[Sentences, Sentences], tuple[Graph, Graph, Graph]]


def sentence_graphs(source: Sentences, target: Sentences) -> tuple[Graph, Graph, Graph]:
    """The graphs of the encoder-decoder transformer (Vaswani et al. 2017, section 3.2.3).

    Sentences lie side by side in one graph, so that nothing is padded: no arithmetic goes into
    tokens that are not there, in the linear maps neither, and no mask is made.

    Args:
        source: The sentences to read.
        target: The sentences to write, one for each of `source`.

    Returns:
        encoder: Every token attends to all of its own sentence.
        decoder: Every token attends to itself and to those before it in its own sentence.
        cross: Every token of a target attends to all of its source.

    Raises:
        ValueError: If there is no sentence, or not one target for each source.

    Example:
        >>> source, target = [torch.tensor([5, 6, 7]), torch.tensor([5])], torch.zeros(2, 2)
        >>> [graph.num_edges for graph in sentence_graphs(source, target)]
        [10, 6, 8]
    """
    if len(source) != len(target):
        raise ValueError(f"give a target for each source, got {len(source)} and {len(target)}")
    read, written = [len(tokens) for tokens in source], [len(tokens) for tokens in target]
    return (
        batch([_complete(n) for n in read]),
        batch([_causal(m) for m in written]),
        batch([_bipartite(m, n) for m, n in zip(written, read)]),
    )


class Seq2SeqTransformer(nn.Module):
    """Encoder-decoder transformer (Vaswani et al. 2017, figure 1), its blocks in pre-norm form.

    Sentences of a batch have lengths of their own and lie side by side in one graph, as
    `sentence_graphs` makes it. Positions count from the beginning of each sentence. The target
    embedding is the output map too (section 3.4).

    Args:
        source_vocab: Number of tokens of the sentences read.
        target_vocab: Number of tokens of the sentences written.
        dim: Width of a token's features.
        depth: Number of blocks of the encoder, and of the decoder.
        heads: Number of attention heads.
        dropout: Probability of dropping a feature of an embedding, and as in `TransformerBlock`.
        block: Further arguments of `TransformerBlock` and `DecoderBlock`, such as kv_heads and
            mlp_ratio.

    Example:
        >>> import torch
        >>> from graphattn import models
        >>> model = models.Seq2SeqTransformer(50, 20, dim=32, depth=2, heads=4)
        >>> source = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2, 6])]
        >>> target = [torch.tensor([0, 5]), torch.tensor([0, 3, 5])]
        >>> model(source, target, *models.sentence_graphs(source, target)).shape
        torch.Size([5, 20])
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        *,
        dim: int = 256,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        **block: Any,
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocab, dim)
        self.target_embedding = nn.Embedding(target_vocab, dim)
        self.positions = SinusoidalPositions(dim)
        self.dropout = nn.Dropout(dropout)
        block["dropout"] = dropout
        self.encoder = nn.ModuleList(TransformerBlock(dim, heads, **block) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim)
        self.decoder = nn.ModuleList(DecoderBlock(dim, heads, **block) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(dim)
        init_weights(self, std=dim**-0.5)

    def forward(
        self,
        source: Sentences,
        target: Sentences,
        encoder_graph: Graph,
        decoder_graph: Graph,
        cross_graph: Graph,
    ) -> Tensor:
        """Scores of the next token after each token of the targets.

        Args:
            source: The sentences to read, int64 (n_i,) each.
            target: The sentences to write, int64 (m_i,) each, as far as they are known.
            encoder_graph: Who attends to whom among the tokens of the sources, which are numbered
                sentence after sentence.
            decoder_graph: The same for the targets; none may attend to a later one.
            cross_graph: Who attends to whom from the tokens of the targets to the sources.

        Returns:
            (sum of all m_i, target_vocab), sentence after sentence.
        """
        return self.decode(target, self.encode(source, encoder_graph), decoder_graph, cross_graph)

    def encode(self, source: Sentences, graph: Graph) -> Tensor:
        """What the decoder attends to: (sum of all n_i, dim)."""
        x = self._embed(source, self.source_embedding)
        for block in self.encoder:
            x = block(x, graph)
        return self.encoder_norm(x)

    def decode(self, target: Sentences, memory: Tensor, graph: Graph, cross_graph: Graph) -> Tensor:
        """Scores of the next token after each, (sum of all m_i, target_vocab)."""
        x = self._embed(target, self.target_embedding)
        for block in self.decoder:
            x = block(x, graph, memory, cross_graph)
        return nn.functional.linear(self.decoder_norm(x), self.target_embedding.weight)

    def weights(
        self,
        source: Sentences,
        target: Sentences,
        encoder_graph: Graph,
        decoder_graph: Graph,
        cross_graph: Graph,
    ) -> Tensor:
        """What the targets attend to in the sources, for the arguments of `forward`.

        Returns:
            (depth, E, heads) in the edge order of cross_graph.
        """
        memory = self.encode(source, encoder_graph)
        x, weights = self._embed(target, self.target_embedding), []
        for block in self.decoder:
            assert isinstance(block, DecoderBlock)
            weights.append(block.cross_weights(x, decoder_graph, memory, cross_graph))
            x = block(x, decoder_graph, memory, cross_graph)
        return torch.stack(weights)

    def begin(
        self, source: Sentences, width: int = 1, graphs: Graphs = sentence_graphs
    ) -> TransformerTargets:
        """Encode, once; from each source grow `width` targets, which lie side by side.

        Args:
            source: The sentences to read.
            width: Targets of each source.
            graphs: Makes the graphs of sources and targets, as `sentence_graphs` does.

        Returns:
            Targets without a token, for `graphattn.models.greedy` and `beam_search`.
        """
        memory = self.encode(source, graphs(source, source)[0])
        parts = memory.split([len(tokens) for tokens in source])
        memory = torch.cat([part for part in parts for _ in range(width)])
        source = [tokens for tokens in source for _ in range(width)]
        prefix = torch.empty(len(source), 0, dtype=torch.int64, device=memory.device)
        return TransformerTargets(self, graphs, source, memory, prefix)

    def _embed(self, sentences: Sentences, embedding: nn.Embedding) -> Tensor:
        """Tokens and their places in their sentences: (sum of all lengths, dim)."""
        lengths = [len(tokens) for tokens in sentences]
        x = embedding(torch.cat(list(sentences))) * embedding.embedding_dim**0.5
        places = torch.cat([torch.arange(n, device=x.device) for n in lengths])
        table = self.positions(x.new_zeros(max(lengths), x.shape[-1]))
        return self.dropout(x + table[places])


@dataclass(frozen=True)
class TransformerTargets:
    """Targets that grow token by token: the transformer reads all of each again at every step.

    Args:
        model: The transformer.
        graphs: Makes the graphs of sources and targets.
        source: The source of each target.
        memory: The encoded sources, (sum of their lengths, dim).
        prefix: The targets so far, int64 (targets, length).
    """

    model: Seq2SeqTransformer
    graphs: Graphs
    source: Sentences
    memory: Tensor
    prefix: Tensor

    def step(self, tokens: Tensor) -> tuple[Tensor, TransformerTargets]:
        """Append a token to each, int64 (targets,): scores of the next, (targets, target_vocab)."""
        prefix = torch.cat([self.prefix, tokens[:, None]], dim=1)
        _, decoder_graph, cross_graph = self.graphs(self.source, prefix)
        scores = self.model.decode(prefix, self.memory, decoder_graph, cross_graph)
        return scores.unflatten(0, prefix.shape)[:, -1], replace(self, prefix=prefix)

    def select(self, rows: Tensor) -> TransformerTargets:
        """The targets of these numbers, (targets,), in place of those here, of the same sources."""
        return replace(self, prefix=self.prefix[rows])
