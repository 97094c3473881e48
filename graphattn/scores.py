"""How much an edge weighs before it is normalized: the arithmetic of one pair.

A score is a function of gathered pairs. The two forms that fused kernels know are classes, so that
a kernel can tell them apart; any other function runs on the reference kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`score(q_i, k_j, edge) -> (…, E, heads)`: queries and keys of each pair, (…, E, heads, head_dim),
and the place of each pair in edge order, (E,), to look up what belongs to an edge."""


@dataclass(frozen=True)
class Dot:
    """`<q_i, k_j>` (Vaswani et al. 2017, eq. 1; the scale is attention's own argument).

    Example:
        >>> Dot()(torch.ones(1, 1, 4), torch.ones(1, 1, 4), torch.zeros(1))
        tensor([[4.]])
    """

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        return (q_i * k_j).sum(-1)


@dataclass(frozen=True, eq=False)
class Additive:
    """`<a, act(q_i + k_j)>` (Bahdanau et al. 2015, A.1.2 with tanh; GATv2 with leaky ReLU).

    Args:
        weight: The vector `a` of each head, (heads, head_dim).
        activation: "tanh" or "leaky_relu".
        negative_slope: Of the leaky ReLU.

    Raises:
        ValueError: If the activation is another.

    Example:
        >>> Additive(torch.ones(1, 4))(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.zeros(1))
        tensor([[0.]])
    """

    weight: Tensor
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        if self.activation not in ("tanh", "leaky_relu"):
            raise ValueError(f'activation must be "tanh" or "leaky_relu", got {self.activation!r}')

    def check(self, query: Tensor) -> None:
        """Raise ValueError unless the weight fits queries (…, heads, head_dim)."""
        if self.weight.shape != query.shape[-2:]:
            raise ValueError(
                f"the weight of an additive score must be (heads, head_dim), here "
                f"{tuple(query.shape[-2:])}, got {tuple(self.weight.shape)}"
            )

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        self.check(q_i)
        pair = q_i + k_j
        if self.activation == "tanh":
            pair = pair.tanh()
        else:
            pair = torch.nn.functional.leaky_relu(pair, self.negative_slope)
        return (pair * self.weight).sum(-1)


SCORES: dict[str, Score] = {"dot": Dot()}


def as_score(score: str | Score) -> Score:
    """The score of a name, or the function itself.

    Raises:
        ValueError: If no score has that name.
        TypeError: If it is neither a name nor a function.
    """
    if isinstance(score, str):
        if score not in SCORES:
            raise ValueError(f"score must be one of {sorted(SCORES)} or a function, got {score!r}")
        return SCORES[score]
    if not callable(score):
        raise TypeError(f"score must be a name or a function (q_i, k_j, edge), got {score!r}")
    return score
