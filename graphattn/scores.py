"""How much an edge weighs before it is normalized: the arithmetic of one pair.

A score is a function of gathered pairs. Two forms reach the kernels as they are, `Dot` and
`Additive`. The other scores of the literature are one of the two on queries and keys that were
transformed first, node by node: their `lower` says so. Any other function is computed on gathered
pairs, and softmax and sum are fused behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize

Score: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`score(q_i, k_j, edge) -> (…, E, heads)`: queries and keys of each pair, (…, E, heads, head_dim),
and the place of each pair in edge order, (E,), to look up what belongs to an edge."""

Lowered: TypeAlias = tuple[Tensor, Tensor, Score]
"""Queries, keys, and the form that is taken of them."""


class Lowerable(Protocol):
    """A score that is a form which kernels know, of queries and keys transformed node by node."""

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        """(*batch, num_dst, heads, head_dim) and (*batch, num_src, kv_heads, head_dim)."""
        ...


class ScoreModule(Protocol):
    """A module that owns the parameters of a score, and makes the score of them."""

    def score(self) -> Score:
        """The score with the parameters as they are now."""
        ...


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
        _check_weight("an additive score", self.weight, query.shape[-2:], "(heads, head_dim)")

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        self.check(q_i)
        pair = q_i + k_j
        pair = pair.tanh() if self.activation == "tanh" else leaky_relu(pair, self.negative_slope)
        return (pair * self.weight).sum(-1)


@dataclass(frozen=True)
class Uniform:
    """1 for every pair: attention without attention, the plain message passing of a graph network.

    Under softmax every destination takes the mean of its sources; under "none" their sum.

    Example:
        >>> Uniform()(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), torch.zeros(1))
        tensor([[1., 1.]])
    """

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        return q_i.new_ones(q_i.shape[:-1])

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        ones = [x.new_ones((*x.shape[:-1], 1)) for x in (query, key)]
        return ones[0], ones[1], Dot()


@dataclass(frozen=True, eq=False)
class Cosine:
    """`cos(q_i, k_j) / temperature`: addressing by content (Graves et al. 2014, eq. 5 and 6).

    Their key strength is the reciprocal of the temperature. A vector of zeros is at 0 to all.

    Args:
        temperature: A number, or a tensor (heads,); without features of edges also one for every
            query, (*batch, num_dst, heads).

    Example:
        >>> Cosine(0.5)(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[6.0, 8.0]]]), torch.zeros(1))
        tensor([[2.]])
    """

    temperature: float | Tensor = 1.0

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        return (normalize(q_i, dim=-1) * normalize(k_j, dim=-1)).sum(-1) / self.temperature

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        warmth = self.temperature
        warmth = warmth[..., None].to(query.dtype) if isinstance(warmth, Tensor) else warmth
        return normalize(query, dim=-1) / warmth, normalize(key, dim=-1), Dot()


@dataclass(frozen=True, eq=False)
class Bilinear:
    """`q_i W k_j` (Luong et al. 2015, section 3.1, "general").

    Args:
        weight: `W` of each head, (heads, query_dim, key_dim).

    Example:
        >>> Bilinear(torch.ones(1, 2, 3))(torch.ones(1, 1, 2), torch.ones(1, 1, 3), torch.zeros(1))
        tensor([[6.]])
    """

    weight: Tensor

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        return (self._transformed(q_i) * k_j).sum(-1)

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        return self._transformed(query), key, Dot()

    def _transformed(self, query: Tensor) -> Tensor:
        shape = (*query.shape[-2:], self.weight.shape[-1])
        _check_weight("a bilinear score", self.weight, shape, "(heads, query_dim, key_dim)")
        return _per_head(query, self.weight)


@dataclass(frozen=True, eq=False)
class Concat:
    """`<a, tanh(W [q_i; k_j])>`, additive with a matrix of its own.

    "concat" in Luong et al. 2015, section 3.1; Bahdanau et al. 2015, A.1.2. The matrix comes in its
    two halves, `W [q; k] = U q + V k`: each is applied once a node, not once a pair.

    Args:
        query_weight: `U` of each head, (heads, query_dim, hidden).
        key_weight: `V`, (kv_heads, key_dim, hidden).
        weight: The vector `a`, (heads, hidden).

    Example:
        >>> ones = torch.ones
        >>> score = Concat(ones(1, 2, 5), ones(1, 3, 5), ones(1, 5))
        >>> score(ones(1, 1, 2), -ones(1, 1, 3), torch.zeros(1)).round(decimals=3)
        tensor([[-3.8080]])
    """

    query_weight: Tensor
    key_weight: Tensor
    weight: Tensor

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        every_head = self.key_weight.repeat_interleave(q_i.shape[-2] // len(self.key_weight), dim=0)
        q, k, score = Concat(self.query_weight, every_head, self.weight).lower(q_i, k_j)
        return score(q, k, edge)

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        hidden = self.weight.shape[-1]
        named = (("query", self.query_weight, query), ("key", self.key_weight, key))
        for name, weight, x in named:
            shape = (*x.shape[-2:], hidden)
            _check_weight(f"the {name} of a concat score", weight, shape, "(heads, dim, hidden)")
        q, k = (_per_head(x, weight) for _, weight, x in named)
        return q, k, Additive(self.weight)


@dataclass(frozen=True, eq=False)
class GAT:
    """`leaky_relu(<a, q_i> + <b, k_j>)` (Velickovic et al. 2018, eq. 3).

    The order of a destination's sources is the same for all destinations; GATv2 (Brody et al.
    2022), which is `Additive(weight, "leaky_relu")`, is without this limit.

    Args:
        query_weight: `a` of each head, (heads, head_dim).
        key_weight: `b`, (kv_heads, head_dim).
        negative_slope: Of the leaky ReLU.

    Example:
        >>> score = GAT(torch.ones(1, 2), torch.ones(1, 2))
        >>> score(torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.zeros(1))
        tensor([[4.]])
    """

    query_weight: Tensor
    key_weight: Tensor
    negative_slope: float = 0.2

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        every_head = self.key_weight.repeat_interleave(q_i.shape[-2] // len(self.key_weight), dim=0)
        pair = self._halves(q_i, self.query_weight) + self._halves(k_j, every_head)
        return leaky_relu(pair.squeeze(-1), self.negative_slope)

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        one = query.new_ones((query.shape[-2], 1))
        q, k = self._halves(query, self.query_weight), self._halves(key, self.key_weight)
        return q, k, Additive(one, "leaky_relu", self.negative_slope)

    @staticmethod
    def _halves(x: Tensor, weight: Tensor) -> Tensor:
        _check_weight("a GAT score", weight, x.shape[-2:], "(heads, head_dim)")
        return (x * weight.to(x.dtype)).sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Location:
    """`<q_i, w_j>`: what is asked of a place, whatever stands there.

    "location" in Luong et al. 2015, section 3.1.

    Args:
        weight: A vector `w_j` for each source, (nodes, kv_heads, head_dim). If there are fewer
            sources than vectors, they take the first ones.

    Example:
        >>> query, key = torch.ones(1, 1, 2), torch.zeros(3, 1, 2)
        >>> query, key, score = Location(torch.ones(4, 1, 2)).lower(query, key)
        >>> key.shape, score
        (torch.Size([3, 1, 2]), Dot())
    """

    weight: Tensor

    def __call__(self, q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
        raise ValueError(
            "a location score does not look at keys, and so takes no features of edges; "
            "leave out edge_key, or add them as a bias"
        )

    def lower(self, query: Tensor, key: Tensor) -> Lowered:
        if len(self.weight) < key.shape[-3]:
            raise ValueError(
                f"a location score of {len(self.weight)} places can't tell {key.shape[-3]} sources "
                f"apart; build it with num_nodes={key.shape[-3]}"
            )
        places = self.weight[: key.shape[-3]]
        shape = (key.shape[-3], key.shape[-2], query.shape[-1])
        _check_weight("a location score", places, shape, "(nodes, kv_heads, head_dim)")
        return query, places.to(query.dtype).expand(*key.shape[:-3], *shape), Dot()


SCORES: dict[str, Score] = {"dot": Dot(), "cosine": Cosine(), "uniform": Uniform()}


def as_score(score: str | Score | ScoreModule) -> Score:
    """The score of a name or of a module, or the function itself.

    Raises:
        ValueError: If no score has that name.
        TypeError: If it is none of these.
    """
    if isinstance(score, str):
        if score not in SCORES:
            raise ValueError(f"score must be one of {sorted(SCORES)} or a function, got {score!r}")
        return SCORES[score]
    if hasattr(score, "score"):
        return cast(ScoreModule, score).score()
    if not callable(score):
        raise TypeError(f"score must be a name or a function (q_i, k_j, edge), got {score!r}")
    return cast(Score, score)


def lowered(score: Score, query: Tensor, key: Tensor, edge_key: object | None) -> Lowered:
    """Queries, keys and score in a form that kernels know, if there is one.

    Features of edges come between the keys and the score, and only `Dot` and `Additive` are taken
    of sums: with them, a score stays the function of pairs that it is.
    """
    if edge_key is not None or not hasattr(score, "lower"):
        return query, key, score
    return cast(Lowerable, score).lower(query, key)


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """(…, heads, dim) by (heads, dim, out) -> (…, heads, out)."""
    return torch.einsum("...hd,hde->...he", x, weight.to(x.dtype))


def _check_weight(what: str, weight: Tensor, shape: tuple[int, ...], names: str) -> None:
    if weight.shape != shape:
        raise ValueError(
            f"the weight of {what} must be {names}, here {tuple(shape)}, got {tuple(weight.shape)}"
        )
