"""Modern Hopfield networks: continuous states that attend to the patterns they retrieve."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphattn.attention import attention
from graphattn.graphs import Graph, bipartite
from graphattn.graphs.checks import integer
from graphattn.graphs.csr import pair_keys
from graphattn.nn.stored import floating, store


class ModernHopfield(nn.Module):
    """A continuous Hopfield network, whose update is attention (Ramsauer et al. 2021).

    A state moves to `X^T softmax(beta X s)`, eq. 3, X being the stored patterns as rows: attention
    of states to patterns, which are keys and values at once, with the scale beta. Among patterns
    that are far enough apart, one update retrieves the nearest with an error that is exponentially
    small in their separation, and how many can be stored grows exponentially with the dimension
    (theorems 3 to 5). With maps of its inputs, one update is `GraphAttention`.

    Args:
        patterns: (num_patterns, dim), floating. A `torch.nn.Parameter` is trained along; any other
            tensor becomes a buffer.
        beta: Inverse temperature, positive: high ones tell patterns apart, low ones blend them.

    Raises:
        TypeError: If the patterns are not a floating tensor.
        ValueError: If there are none, or beta is not positive and finite.

    Example:
        >>> memory = ModernHopfield(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), beta=8.0)
        >>> memory(torch.tensor([[0.5, 0.0]])).round(decimals=4)
        tensor([[1., 1.]])
    """

    patterns: Tensor

    def __init__(self, patterns: Tensor, *, beta: float = 1.0) -> None:
        super().__init__()
        if floating("patterns", patterns).ndim != 2 or patterns.numel() == 0:
            raise ValueError(
                f"patterns must have shape (num_patterns, dim), both positive, got "
                f"{tuple(patterns.shape)}"
            )
        if not 0 < beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {beta!r}")
        store(self, patterns=patterns)
        self.beta = beta

    def forward(
        self,
        state: Tensor,
        graph: Graph | None = None,
        *,
        tolerance: float = 1e-4,
        max_steps: int = 100,
    ) -> Tensor:
        """The fixed point that updates lead to; a state that has arrived waits for the others.

        Args:
            state: (*batch, num_states, dim), of the dtype of the patterns.
            graph: Which patterns each state sees, with num_dst = num_states and num_src =
                num_patterns, each at least one; all by default.
            tolerance: A state has arrived when an update moves it by no more, in Euclidean norm.
            max_steps: Updates at most.

        Returns:
            Of the shape of `state`.

        Raises:
            TypeError, ValueError: If the state or the graph does not fit.
        """
        graph = self._graph(state, graph)
        moves = torch.ones_like(state[..., :1], dtype=torch.bool)
        for _ in range(integer("max_steps", max_steps)):
            after = torch.where(moves, self.update(state, graph), state)
            moves = (after - state).norm(dim=-1, keepdim=True) > tolerance
            state = after
            if not bool(moves.any()):
                break
        return state

    def update(self, state: Tensor, graph: Graph | None = None) -> Tensor:
        """`X^T softmax(beta X s)` (eq. 3): one step, shapes as in `forward`."""
        graph = self._graph(state, graph)
        patterns = self.patterns[:, None].expand(*state.shape[:-2], -1, -1, -1)
        return attention(state.unsqueeze(-2), patterns, patterns, graph, scale=self.beta).squeeze(
            -2
        )

    def energy(self, state: Tensor, graph: Graph | None = None) -> Tensor:
        """What no update raises (eq. 2): `-lse(beta, X s) + |s|^2 / 2 + ln(N) / beta + M^2 / 2`.

        lse is `ln(sum_j exp(beta x_j . s)) / beta`, N how many patterns the state sees, and M the
        largest norm of all patterns.

        Args:
            state, graph: As in `forward`.

        Returns:
            (*batch, num_states).
        """
        graph = self._graph(state, graph)
        logits = self.beta * (state @ self.patterns.T) + _log_edges(graph).to(state)
        count = graph.in_degree().to(state)
        largest = self.patterns.square().sum(dim=-1).max()
        log_mean = (logits.logsumexp(dim=-1) - count.log()) / self.beta
        return (state.square().sum(dim=-1) + largest) / 2 - log_mean

    def _graph(self, state: Tensor, graph: Graph | None) -> Graph:
        """The graph on the device of the state; all patterns for every state by default."""
        width = self.patterns.shape[1]
        if floating("state", state).ndim < 2 or state.shape[-1] != width:
            raise ValueError(
                f"state must be (*batch, num_states, {width}), as wide as the patterns, got "
                f"{tuple(state.shape)}; state[None] is a single one"
            )
        if graph is None:
            return bipartite(state.shape[-2], len(self.patterns)).to(state.device)
        if (graph.num_dst, graph.num_src) != (state.shape[-2], len(self.patterns)):
            raise ValueError(
                f"graph must have num_dst={state.shape[-2]} states and "
                f"num_src={len(self.patterns)} patterns, got {graph.num_dst} and {graph.num_src}"
            )
        if not bool(graph.in_degree().all()):
            alone = int((graph.in_degree() == 0).nonzero()[0])
            raise ValueError(f"every state must see a pattern, and state {alone} sees none")
        return graph

    def extra_repr(self) -> str:
        """What printing the network shows besides its parts."""
        return f"num_patterns={len(self.patterns)}, dim={self.patterns.shape[1]}, beta={self.beta}"


def _log_edges(graph: Graph) -> Tensor:
    """Logarithm of how many edges join each pair, (num_dst, num_src): -inf where none does."""
    src, dst = graph.edge_index
    keys = pair_keys(dst, src, graph.num_src)
    count = torch.bincount(keys, minlength=graph.num_dst * graph.num_src)
    return count.view(graph.num_dst, graph.num_src).log()
