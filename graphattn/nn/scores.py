"""Scores with learned parameters: each owns them, and makes the score of `graphattn.scores`.

All have one vector or matrix for each head. `GraphAttention(dim, heads, score=...)` trains the one
that it is given; `attention(..., score=...)` takes it too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphattn import scores


class Cosine(nn.Module):
    """`cos(q_i, k_j) / temperature`, learned for each head (Liu et al. 2022, eq. 2, Swin v2).

    Args:
        heads: Number of heads.
        temperature: At first; above 0, and learned as its logarithm.
        lowest: The temperature does not fall below this.

    Raises:
        ValueError: If a temperature is not above 0.

    Example:
        >>> Cosine(4).score().temperature.shape
        torch.Size([4])
    """

    def __init__(self, heads: int, *, temperature: float = 0.1, lowest: float = 0.01) -> None:
        super().__init__()
        if not 0 < lowest <= temperature:
            raise ValueError(
                f"temperatures must be above 0, and the first not below the lowest, got "
                f"{temperature} and {lowest}"
            )
        self.lowest = lowest
        self.log_temperature = nn.Parameter(torch.full((heads,), math.log(temperature)))

    def score(self) -> scores.Cosine:
        """The score with the parameters as they are now."""
        return scores.Cosine(self.log_temperature.exp().clamp(min=self.lowest))


class Bilinear(nn.Module):
    """`q_i W k_j` (Luong et al. 2015, section 3.1, "general").

    Args:
        heads: Number of query heads.
        query_dim: Width of a head's queries.
        key_dim: Of its keys; query_dim by default.

    Example:
        >>> from graphattn.nn import GraphAttention
        >>> GraphAttention(32, heads=4, score=Bilinear(4, 8)).score.weight.shape
        torch.Size([4, 8, 8])
    """

    def __init__(self, heads: int, query_dim: int, key_dim: int | None = None) -> None:
        super().__init__()
        self.weight = _parameter(heads, query_dim, key_dim or query_dim, fan_in=query_dim)

    def score(self) -> scores.Bilinear:
        """The score with the parameters as they are now."""
        return scores.Bilinear(self.weight)


class Additive(nn.Module):
    """`<a, tanh(q_i + k_j)>` (Bahdanau et al. 2015, A.1.2) of projected queries and keys.

    Args:
        heads: Number of heads.
        head_dim: Width of a head.

    Example:
        >>> Additive(4, 8).score().activation
        'tanh'
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = _parameter(heads, head_dim, fan_in=head_dim)

    def score(self) -> scores.Additive:
        """The score with the parameters as they are now."""
        return scores.Additive(self.weight)


class GATv2(nn.Module):
    """`<a, leaky_relu(q_i + k_j)>` (Brody et al. 2022, eq. 7) of projected queries and keys.

    Args:
        heads: Number of heads.
        head_dim: Width of a head.
        negative_slope: Of the leaky ReLU.

    Example:
        >>> GATv2(4, 8).score().activation
        'leaky_relu'
    """

    def __init__(self, heads: int, head_dim: int, *, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.weight = _parameter(heads, head_dim, fan_in=head_dim)
        self.negative_slope = negative_slope

    def score(self) -> scores.Additive:
        """The score with the parameters as they are now."""
        return scores.Additive(self.weight, "leaky_relu", self.negative_slope)


class GAT(nn.Module):
    """`leaky_relu(<a, q_i> + <b, k_j>)` (Velickovic et al. 2018, eq. 3).

    Args:
        heads: Number of query heads.
        head_dim: Width of a head.
        kv_heads: Number of key heads; as many as query heads by default.
        negative_slope: Of the leaky ReLU.

    Example:
        >>> GAT(4, 8).score().key_weight.shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        kv_heads: int | None = None,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.query_weight = _parameter(heads, head_dim, fan_in=head_dim)
        self.key_weight = _parameter(kv_heads or heads, head_dim, fan_in=head_dim)
        self.negative_slope = negative_slope

    def score(self) -> scores.GAT:
        """The score with the parameters as they are now."""
        return scores.GAT(self.query_weight, self.key_weight, self.negative_slope)


class Concat(nn.Module):
    """`<a, tanh(W [q_i; k_j])>` (Luong et al. 2015, section 3.1, "concat") of any queries and keys.

    Args:
        heads: Number of query heads.
        query_dim: Width of a head's queries.
        key_dim: Of its keys; query_dim by default.
        hidden: Rows of W; query_dim by default.
        kv_heads: Number of key heads; as many as query heads by default.

    Example:
        >>> concat = Concat(1, query_dim=8, key_dim=16, hidden=5)
        >>> concat.query_weight.shape, concat.key_weight.shape
        (torch.Size([1, 8, 5]), torch.Size([1, 16, 5]))
    """

    def __init__(
        self,
        heads: int,
        query_dim: int,
        key_dim: int | None = None,
        *,
        hidden: int | None = None,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        key_dim, hidden = key_dim or query_dim, hidden or query_dim
        fan_in = query_dim + key_dim
        self.query_weight = _parameter(heads, query_dim, hidden, fan_in=fan_in)
        self.key_weight = _parameter(kv_heads or heads, key_dim, hidden, fan_in=fan_in)
        self.weight = _parameter(heads, hidden, fan_in=hidden)

    def score(self) -> scores.Concat:
        """The score with the parameters as they are now."""
        return scores.Concat(self.query_weight, self.key_weight, self.weight)


class Location(nn.Module):
    """`<q_i, w_j>`: what is asked of a place, whatever stands there.

    "location" in Luong et al. 2015, section 3.1.

    Args:
        num_nodes: The largest number of sources.
        heads: Number of key heads.
        head_dim: Width of a head.

    Example:
        >>> Location(50, 4, 8).score().weight.shape
        torch.Size([50, 4, 8])
    """

    def __init__(self, num_nodes: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = _parameter(num_nodes, heads, head_dim, fan_in=head_dim)

    def score(self) -> scores.Location:
        """The score with the parameters as they are now."""
        return scores.Location(self.weight)


def _parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """Uniform within 1 / sqrt(fan_in), as `nn.Linear`."""
    bound = fan_in**-0.5
    values: Tensor = torch.empty(shape).uniform_(-bound, bound)
    return nn.Parameter(values)
