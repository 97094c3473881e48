"""Attention within a sentence as it was before the transformer: intra-attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.attention import attention, attention_weights
from graphattn.graphs import Graph, bipartite
from graphattn.graphs.checks import integer
from graphattn.nn.scores import Additive


class IntraAttention(nn.Module):
    """Sets what a token attends to beside the token (Parikh et al. 2016, section 3.4).

    `a'_i = sum_j softmax_j(<F(a_i), F(a_j)> + d_(i-j)) a_j`, with a perceptron F and a learned bias
    d of the distance, which all distances above `max_distance` share.

    Args:
        dim: Width of a token.
        hidden: Width of the layers of F; dim by default.
        max_distance: 10 in the paper.

    Example:
        >>> from graphattn import batch, complete
        >>> layer = IntraAttention(8)
        >>> layer(torch.randn(7, 8), batch([complete(4), complete(3)])).shape
        torch.Size([7, 16])
    """

    def __init__(self, dim: int, hidden: int | None = None, *, max_distance: int = 10) -> None:
        super().__init__()
        self.max_distance = integer("max_distance", max_distance)
        self.project = perceptron(dim, dim if hidden is None else hidden)
        # Of distances up to max_distance to either side, and of all that are longer.
        self.distance = nn.Parameter(torch.zeros(2 * self.max_distance + 2))

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """(*batch, nodes, dim) -> (*batch, nodes, 2 * dim); the graph says who attends to whom."""
        score, value = self.project(x)[..., None, :], x[..., None, :]
        heard = attention(score, score, value, graph, scale=1.0, bias=self.bias)
        return torch.cat([x, heard.squeeze(-2)], dim=-1)

    def weights(self, x: Tensor, graph: Graph) -> Tensor:
        """The weight of every edge, (*batch, E, 1) in the edge order of the graph."""
        score = self.project(x)[..., None, :]
        return attention_weights(score, score, graph, scale=1.0, bias=self.bias)

    def bias(self, dst: Tensor, src: Tensor) -> Tensor:
        """The bias of each pair, (pairs, 1)."""
        offset = dst - src + self.max_distance
        far = (offset < 0) | (offset > 2 * self.max_distance)
        return self.distance[offset.masked_fill(far, len(self.distance) - 1)][:, None]


class LSTMN(nn.Module):
    """An LSTM that attends to all its states so far (Cheng et al. 2016, section 3.1).

    In place of the state and the cell before, it takes the sums of those that it attends to, from
    the token x and its last such sum:

        h~, c~ = sum_j softmax_j(<v, tanh(W_h h_j + W_x x + W_s h~_before)>) [h_j; c_j]
        i, f, o, u = W [h~; x]
        c = sigmoid(f) c~ + sigmoid(i) tanh(u)
        h = sigmoid(o) tanh(c)

    Args:
        dim: Width of a token.
        hidden: Width of a state.

    Example:
        >>> from graphattn import causal, sliding_window
        >>> layer = LSTMN(8, 16)
        >>> before = causal(10).without_self_loops()
        >>> layer(torch.randn(2, 10, 8), before).shape
        torch.Size([2, 10, 16])
        >>> layer(torch.randn(2, 10, 8), before & sliding_window(10, 3)).shape  # a bounded memory
        torch.Size([2, 10, 16])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_state = nn.Linear(hidden, hidden, bias=False)
        self.of_token = nn.Linear(dim, hidden, bias=False)
        self.of_summary = nn.Linear(hidden, hidden, bias=False)
        self.additive = Additive(1, hidden)
        self.gates = nn.Linear(hidden + dim, 4 * hidden)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Read the tokens one after another.

        Args:
            x: (*batch, n, dim).
            graph: Which states each token attends to: a subgraph of `causal(n)` without the edges
                from a node to itself.

        Returns:
            (*batch, n, hidden).

        Raises:
            ValueError: If a token attends to itself or to a later one, or the graph has another
                number of nodes.
        """
        return torch.stack([state for state, _, _ in self._read(x, graph)], dim=-2)

    def weights(self, x: Tensor, graph: Graph) -> Tensor:
        """The weight of every edge, (*batch, E, 1) in the edge order of the graph."""
        weights = [
            attention_weights(query, key, bipartite(1, key.shape[-3]), **self._score)
            for _, query, key in self._read(x, graph)
        ]
        return graph.csr().to_edge_order(torch.cat(weights, dim=-2), dim=-2)

    @property
    def _score(self) -> dict[str, Any]:
        return {"score": self.additive.score(), "scale": 1.0}

    def _read(self, x: Tensor, graph: Graph) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each token its state (*batch, hidden), and the query and the keys that made it."""
        words, tapes, keys = self.of_token(x), [], []
        summary = x.new_zeros(*x.shape[:-2], self.hidden)
        for token, heard in enumerate(_sources(graph, x.shape[-2])):
            query = (words[..., token, :] + self.of_summary(summary))[..., None, None, :]
            key, tape = _gather(keys, heard, query), _gather(tapes, heard, query, 2)
            sums = attention(query, key, tape, bipartite(1, len(heard)), **self._score)
            summary, cell = sums[..., 0, 0, :].chunk(2, dim=-1)
            state, cell = self._cell(x[..., token, :], summary, cell)
            tapes.append(torch.cat([state, cell], dim=-1))
            keys.append(self.of_state(state))
            yield state, query, key

    def _cell(self, word: Tensor, summary: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.gates(torch.cat([summary, word], dim=-1))
        enter, forget, leave, update = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * update.tanh()
        return leave.sigmoid() * cell.tanh(), cell


def perceptron(dim: int, hidden: int) -> nn.Sequential:
    """Two layers, each with a ReLU behind it: (…, dim) -> (…, hidden)."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())


def _gather(kept: list[Tensor], which: list[int], query: Tensor, factor: int = 1) -> Tensor:
    """Some of the tensors (*batch, width) as (*batch, len(which), 1, width)."""
    if not which:
        return query.new_zeros(*query.shape[:-3], 0, 1, factor * query.shape[-1])
    return torch.stack([kept[place] for place in which], dim=-2)[..., None, :]


def _sources(graph: Graph, num_nodes: int) -> list[list[int]]:
    """The sources of each destination, in CSR order; all before it."""
    if (graph.num_dst, graph.num_src) != (num_nodes, num_nodes):
        raise ValueError(
            f"the graph must have as many nodes as x has tokens, {num_nodes}, got {graph.num_dst} "
            f"destinations and {graph.num_src} sources"
        )
    src, dst = graph.edge_index
    if len(late := (src >= dst).nonzero()):
        edge = (int(src[late[0]]), int(dst[late[0]]))
        raise ValueError(
            f"every token must attend to earlier ones alone, got the edge {edge[0]} -> {edge[1]}; "
            f"take graph & causal({num_nodes}).without_self_loops()"
        )
    csr = graph.csr()
    return [part.tolist() for part in csr.index.split(csr.ptr.diff().tolist())]
