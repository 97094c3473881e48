"""The attention of recurrent decoders: a state attends to the tokens of its source."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from graphattn.attention import attention, attention_weights
from graphattn.graphs import Graph, from_edges
from graphattn.graphs.checks import integer
from graphattn.nn.scores import Additive
from graphattn.scores import Score

ScoreName = Literal["dot", "general", "concat"]


class Alignment(nn.Module):
    """How well a state matches a token: the scores of Luong et al. 2015, section 3.1.

    "dot" is `<h_t, h_s>`, "general" is `<h_t, W h_s>`, and "concat" is `<v, tanh(W [h_t; h_s])>`:
    the additive score of Bahdanau et al. 2015, A.1.2, too, where W has a part for either. In place
    of `graphattn.nn.Concat` and `Bilinear`, since tokens are mapped once here, and not at each step
    of a decoder.

    Args:
        dim: Width of states and of tokens.
        score: "dot", "general" or "concat".

    Raises:
        ValueError: If the score is another.

    Example:
        >>> match = Alignment(8, "concat")
        >>> match.query(torch.randn(2, 8)).shape, match.key(torch.randn(5, 8)).shape
        (torch.Size([2, 1, 8]), torch.Size([5, 1, 8]))
    """

    def __init__(self, dim: int, score: ScoreName) -> None:
        super().__init__()
        if score not in ("dot", "general", "concat"):
            raise ValueError(f'score must be "dot", "general" or "concat", got {score!r}')
        maps = {"dot": (False, False), "general": (False, True), "concat": (True, True)}[score]
        self.of_state, self.of_token = (
            nn.Linear(dim, dim, bias=False) if mapped else nn.Identity() for mapped in maps
        )
        self.additive = Additive(1, dim) if score == "concat" else None

    @property
    def score(self) -> Score | Literal["dot"]:
        """What `graphattn.attention` takes; its scale is 1."""
        return "dot" if self.additive is None else self.additive.score()

    def query(self, states: Tensor) -> Tensor:
        """(states, dim) -> (states, 1, dim)."""
        return self.of_state(states)[:, None]

    def key(self, tokens: Tensor) -> Tensor:
        """(tokens, dim) -> (tokens, 1, dim); the same for all states that attend to them."""
        return self.of_token(tokens)[:, None]


class GlobalAttention(nn.Module):
    """A state attends to all tokens of its source (Luong et al. 2015, section 3.1).

    With score="concat", the attention of Bahdanau et al. 2015, section 3.1.

    Args:
        dim: Width of states and of tokens.
        score: "dot", "general" or "concat"; see `Alignment`.

    Raises:
        ValueError: If the score is another.

    Example:
        >>> from graphattn import batch, bipartite
        >>> layer = GlobalAttention(8, score="dot")
        >>> states, tokens = torch.randn(2, 8), torch.randn(7, 8)
        >>> graph = batch([bipartite(1, 4), bipartite(1, 3)])  # sources of four and three tokens
        >>> layer(states, layer.key(tokens), tokens, graph).shape
        torch.Size([2, 8])
    """

    def __init__(self, dim: int, score: ScoreName = "general") -> None:
        super().__init__()
        self.alignment = Alignment(dim, score)

    def key(self, tokens: Tensor) -> Tensor:
        """What is matched of the tokens, (tokens, dim) -> (tokens, 1, dim), once for all states."""
        return self.alignment.key(tokens)

    def forward(self, states: Tensor, key: Tensor, tokens: Tensor, graph: Graph) -> Tensor:
        """What every state makes of its source.

        Args:
            states: (states, dim).
            key: `self.key(tokens)`, (tokens, 1, dim).
            tokens: (tokens, dim).
            graph: Which tokens each state attends to.

        Returns:
            The context vectors, (states, dim).
        """
        query, score = self.alignment.query(states), self.alignment.score
        return attention(query, key, tokens[:, None], graph, score=score, scale=1.0).squeeze(1)

    def weights(self, states: Tensor, key: Tensor, graph: Graph) -> Tensor:
        """The weight of every edge, (E, 1) in the edge order of the graph."""
        query, score = self.alignment.query(states), self.alignment.score
        return attention_weights(query, key, graph, score=score, scale=1.0)


class LocalAttention(nn.Module):
    """A state attends around the place that it predicts (local-p, Luong et al. 2015, section 3.2).

    Of the S tokens that a state hears in the graph, in order, it predicts the place
    `p = S * sigmoid(<v, tanh(W h)>)` (eq. 9). Those at most `radius` away are its sources in a
    graph that is made for this call. Their softmax weights are multiplied by
    `exp(-(s - p)^2 / (2 sigma^2))` with `sigma = radius / 2` (eq. 10): they sum to less than 1.

    Args:
        dim: Width of states and of tokens.
        score: "dot", "general" or "concat"; see `Alignment`.
        radius: D of the paper, in tokens.

    Raises:
        TypeError, ValueError: If the score is another, or the radius no positive integer.

    Example:
        >>> from graphattn import batch, bipartite
        >>> layer = LocalAttention(8, radius=2)
        >>> states, tokens = torch.randn(2, 8), torch.randn(7, 8)
        >>> graph = batch([bipartite(1, 4), bipartite(1, 3)])  # sources of four and three tokens
        >>> layer(states, layer.key(tokens), tokens, graph).shape
        torch.Size([2, 8])
    """

    def __init__(self, dim: int, score: ScoreName = "general", *, radius: int = 10) -> None:
        super().__init__()
        self.radius = integer("radius", radius, low=1)
        self.alignment = Alignment(dim, score)
        self.place = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.Tanh(), nn.Linear(dim, 1, bias=False)
        )

    def key(self, tokens: Tensor) -> Tensor:
        """What is matched of the tokens, (tokens, dim) -> (tokens, 1, dim), once for all states."""
        return self.alignment.key(tokens)

    def forward(self, states: Tensor, key: Tensor, tokens: Tensor, graph: Graph) -> Tensor:
        """What every state makes of its source; arguments and result as in `GlobalAttention`.

        Weights that do not sum to 1 are made of two that do: with g the Gaussian and Z its mean
        under the softmax weights w, `sum_s w_s g_s v_s = Z * sum_s softmax(score + log g)_s v_s`.
        """
        query, score = self.alignment.query(states), self.alignment.score
        window, log_gauss, _ = self._window(states, graph)
        value = tokens[:, None]
        context = attention(query, key, value, window, score=score, scale=1.0, bias=log_gauss)
        gauss, nothing = log_gauss.exp()[..., None], torch.zeros_like(value[..., :1])
        mean = attention(query, key, nothing, window, score=score, scale=1.0, edge_value=gauss)
        return (context * mean).squeeze(1)

    def weights(self, states: Tensor, key: Tensor, graph: Graph) -> Tensor:
        """The weight of every edge, (E, 1) in the edge order of the graph; 0 outside the window."""
        query, score = self.alignment.query(states), self.alignment.score
        window, log_gauss, edge = self._window(states, graph)
        weights = attention_weights(query, key, window, score=score, scale=1.0) * log_gauss.exp()
        return weights.new_zeros(graph.num_edges, 1).index_put((edge,), weights)

    def _window(self, states: Tensor, graph: Graph) -> tuple[Graph, Tensor, Tensor]:
        """Edges within the radius, their log Gaussians (E', 1), and their places in edge order."""
        csr = graph.csr()
        length = csr.ptr.diff()
        place = length * self.place(states).squeeze(-1).sigmoid()  # (states,)
        distance = torch.arange(len(csr.row), device=place.device) - csr.ptr[csr.row]
        distance = distance - place[csr.row]
        near = (distance.abs() <= self.radius).nonzero().squeeze(-1)
        ends = torch.stack([csr.index[near], csr.row[near]])
        window = from_edges(ends, num_dst=graph.num_dst, num_src=graph.num_src)
        log_gauss = -2 * (distance[near, None] / self.radius).square()  # sigma is radius / 2
        return window, log_gauss, near if csr.edge is None else csr.edge[near]
