"""Recurrent encoder-decoders whose decoder attends to the source (Bahdanau, Luong)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence, unpack_sequence

from graphattn.graphs import Graph, batch, bipartite
from graphattn.models.seq2seq import Sentences
from graphattn.nn import GlobalAttention, LocalAttention

_bipartite = lru_cache(4096)(bipartite)  # what is known of a sentence's graph is kept

State = tuple[Tensor, ...]
"""What a decoder remembers of each target, (targets, dim) each."""


def source_graph(source: Sentences, width: int = 1) -> Graph:
    """Every decoder attends to all tokens of its source (Bahdanau et al. 2015, section 3.1).

    Args:
        source: The sentences to read, int64 (n_i,) each.
        width: Targets that are written from each source; they lie side by side.

    Returns:
        A graph from the tokens, sentence after sentence, to the targets. It is the same at every
        step: a destination is the state that a decoder has then.

    Example:
        >>> source_graph([torch.tensor([5, 6, 7]), torch.tensor([5])]).mask().int().tolist()
        [[1, 1, 1, 0], [0, 0, 0, 1]]
    """
    return batch([_bipartite(width, len(tokens)) for tokens in source])


class Seq2SeqGRU(nn.Module):
    """A bidirectional GRU reads, and a decoder that attends to its states writes.

    Bahdanau et al. 2015, section 3.2 and figure 1.

    Args:
        source_vocab: Number of tokens of the sentences read.
        decoder: `BahdanauDecoder` or `LuongDecoder`.

    Example:
        >>> from graphattn import models
        >>> model = models.Seq2SeqGRU(50, models.BahdanauDecoder(20, dim=32))
        >>> source = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2, 6])]
        >>> target = [torch.tensor([0, 5]), torch.tensor([0, 3, 5])]
        >>> model(source, target, models.source_graph(source)).shape
        torch.Size([5, 20])
    """

    def __init__(self, source_vocab: int, decoder: BahdanauDecoder | LuongDecoder) -> None:
        super().__init__()
        dim = decoder.dim
        self.embedding = nn.Embedding(source_vocab, dim)
        self.encoder = nn.GRU(dim, dim // 2, bidirectional=True)
        self.decoder = decoder

    def forward(self, source: Sentences, target: Sentences, graph: Graph) -> Tensor:
        """Scores of the next token after each token of the targets.

        Args:
            source: The sentences to read, int64 (n_i,) each.
            target: The sentences to write, int64 (m_i,) each, as far as they are known.
            graph: Which tokens of the sources, numbered sentence after sentence, the decoder of
                each target attends to, at every step; see `source_graph`.

        Returns:
            (sum of all m_i, target_vocab), sentence after sentence.
        """
        targets, scores = self._begin(source, graph), []
        tokens = pad_sequence(list(target), batch_first=True)
        for column in tokens.T:
            following, targets = targets.step(column)
            scores.append(following)
        lengths = torch.tensor([len(sentence) for sentence in target], device=tokens.device)
        given = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return torch.stack(scores, dim=1)[given]

    def weights(self, source: Sentences, target: Sentences, graph: Graph) -> Tensor:
        """What the decoders attend to in the sources, for the arguments of `forward`.

        Returns:
            (longest m_i, E) in the edge order of the graph: the weights at every step.
        """
        targets, weights = self._begin(source, graph), []
        for column in pad_sequence(list(target), batch_first=True).T:
            weights.append(targets.weights(column))
            _, targets = targets.step(column)
        return torch.stack(weights)

    def begin(
        self,
        source: Sentences,
        width: int = 1,
        graphs: Callable[[Sentences, int], Graph] = source_graph,
    ) -> RecurrentTargets:
        """Encode, once; from each source grow `width` targets, which lie side by side.

        Args:
            source: The sentences to read.
            width: Targets of each source.
            graphs: Makes the graph of sources and their targets, as `source_graph` does.

        Returns:
            Targets without a token, for `graphattn.models.greedy` and `beam_search`.
        """
        return self._begin(source, graphs(source, width), width)

    def _begin(self, source: Sentences, graph: Graph, width: int = 1) -> RecurrentTargets:
        memory, last = self.encode(source)
        state = self.decoder.begin(last.repeat_interleave(width, dim=0))
        return RecurrentTargets(
            self.decoder, self.decoder.attention.key(memory), memory, graph, state
        )

    def encode(self, source: Sentences) -> tuple[Tensor, Tensor]:
        """The states after each token, (sum of all n_i, dim), and after the last, (sentences, dim).

        Each is of two halves: one of a GRU that reads forwards, one of a GRU that reads backwards.

        Raises:
            ValueError: If a sentence is empty.
        """
        lengths = [len(tokens) for tokens in source]
        if 0 in lengths:
            raise ValueError(
                f"a GRU reads one token or more, got none in source {lengths.index(0)}"
            )
        embedded = self.embedding(torch.cat(list(source))).split(lengths)
        states, last = self.encoder(pack_sequence(embedded, enforce_sorted=False))
        return torch.cat(unpack_sequence(states)), last.transpose(0, 1).flatten(1)


class BahdanauDecoder(nn.Module):
    """The state before attends to the source, then a GRU and a maxout layer (RNNsearch).

    Bahdanau et al. 2015, section 3.1 and A.2.2: from the state s and the token y before,

        c = attention(s, source)
        s' = GRU(s, [y; c])
        scores = W maxout(U s' + V y + C c)

    torch's GRU resets the state behind its matrix, and the paper's before it.

    Args:
        vocab: Number of tokens of the sentences written.
        dim: Width of the states and of the embedded tokens; even.
        attention: `GlobalAttention` or `LocalAttention`; the former, with the additive score of the
            paper, by default.

    Raises:
        ValueError: If dim is odd.

    Example:
        >>> BahdanauDecoder(20, dim=32).begin(torch.zeros(3, 32))[0].shape
        torch.Size([3, 32])
    """

    def __init__(
        self,
        vocab: int,
        *,
        dim: int = 256,
        attention: GlobalAttention | LocalAttention | None = None,
    ) -> None:
        super().__init__()
        self.dim = _even(dim)
        self.embedding = nn.Embedding(vocab, dim)
        self.attention = GlobalAttention(dim, "concat") if attention is None else attention
        self.first = nn.Linear(dim // 2, dim)
        self.cell = nn.GRUCell(2 * dim, dim)
        self.readout = nn.Linear(3 * dim, dim)
        self.out = nn.Linear(dim // 2, vocab)

    def begin(self, last: Tensor) -> State:
        """The first states, from that of the encoder which read backwards (A.2.2)."""
        return (self.first(last[:, self.dim // 2 :]).tanh(),)

    def step(
        self, tokens: Tensor, state: State, key: Tensor, memory: Tensor, graph: Graph
    ) -> tuple[Tensor, State]:
        """Scores of the next token, (targets, vocab), after one, (targets,); and the new state."""
        word, (hidden,) = self.embedding(tokens), state
        context = self.attention(hidden, key, memory, graph)
        hidden = self.cell(torch.cat([word, context], dim=-1), hidden)
        deep = self.readout(torch.cat([hidden, word, context], dim=-1))
        return self.out(deep.unflatten(-1, (-1, 2)).amax(dim=-1)), (hidden,)

    def query(self, tokens: Tensor, state: State) -> Tensor:
        """What `step` attends with, (targets, dim)."""
        return state[0]


class LuongDecoder(nn.Module):
    """A GRU, whose new state attends to the source; what comes of it is fed to the next step.

    Luong et al. 2015, section 3 and 3.3: from the state h, the token y before and the attentional
    state a before (input feeding),

        h' = GRU(h, [y; a])
        c = attention(h', source)
        a' = tanh(W [c; h'])                      (eq. 5)
        scores = W_s a'                           (eq. 6)

    The paper has LSTMs in place of GRUs.

    Args:
        vocab: Number of tokens of the sentences written.
        dim: Width of the states and of the embedded tokens; even.
        attention: `GlobalAttention` or `LocalAttention`; the former, with the score "general", by
            default.

    Raises:
        ValueError: If dim is odd.

    Example:
        >>> from graphattn import nn
        >>> decoder = LuongDecoder(20, dim=32, attention=nn.LocalAttention(32, radius=3))
        >>> [part.shape for part in decoder.begin(torch.zeros(3, 32))]
        [torch.Size([3, 32]), torch.Size([3, 32])]
    """

    def __init__(
        self,
        vocab: int,
        *,
        dim: int = 256,
        attention: GlobalAttention | LocalAttention | None = None,
    ) -> None:
        super().__init__()
        self.dim = _even(dim)
        self.embedding = nn.Embedding(vocab, dim)
        self.attention = GlobalAttention(dim, "general") if attention is None else attention
        self.cell = nn.GRUCell(2 * dim, dim)
        self.combine = nn.Linear(2 * dim, dim, bias=False)
        self.out = nn.Linear(dim, vocab, bias=False)

    def begin(self, last: Tensor) -> State:
        """The last states of the encoder, and an attentional state of 0."""
        return last, torch.zeros_like(last)

    def step(
        self, tokens: Tensor, state: State, key: Tensor, memory: Tensor, graph: Graph
    ) -> tuple[Tensor, State]:
        """Scores of the next token, (targets, vocab), after one, (targets,); and the new state."""
        hidden = self.query(tokens, state)
        context = self.attention(hidden, key, memory, graph)
        attentional = self.combine(torch.cat([context, hidden], dim=-1)).tanh()
        return self.out(attentional), (hidden, attentional)

    def query(self, tokens: Tensor, state: State) -> Tensor:
        """What `step` attends with, (targets, dim)."""
        hidden, attentional = state
        return self.cell(torch.cat([self.embedding(tokens), attentional], dim=-1), hidden)


@dataclass(frozen=True)
class RecurrentTargets:
    """Targets that grow token by token.

    Args:
        decoder: What writes.
        key: What the attention made of the memory, (tokens, 1, dim).
        memory: The encoded sources, (tokens, dim).
        graph: Which tokens each target attends to.
        state: What the decoder remembers of each target.
    """

    decoder: BahdanauDecoder | LuongDecoder
    key: Tensor
    memory: Tensor
    graph: Graph
    state: State

    def step(self, tokens: Tensor) -> tuple[Tensor, RecurrentTargets]:
        """Append a token to each, int64 (targets,): scores of the next, (targets, target_vocab)."""
        scores, state = self.decoder.step(tokens, self.state, self.key, self.memory, self.graph)
        return scores, replace(self, state=state)

    def weights(self, tokens: Tensor) -> Tensor:
        """What `step` attends to, (E,) in the edge order of the graph."""
        query = self.decoder.query(tokens, self.state)
        return self.decoder.attention.weights(query, self.key, self.graph).squeeze(-1)

    def select(self, rows: Tensor) -> RecurrentTargets:
        """The targets of these numbers, (targets,), in place of those here, of the same sources."""
        return replace(self, state=tuple(part[rows] for part in self.state))


def _even(dim: int) -> int:
    if dim % 2:
        raise ValueError(f"dim must be even, half of it for either direction, got {dim}")
    return dim
