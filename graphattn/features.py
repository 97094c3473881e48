"""Features of edges that are made of smaller ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Projected:
    """Features of edges as a linear map of smaller ones, `W_h e_ij` for every head h.

    Given to `attention` as `edge_key` or `edge_value`, it means the tensor `dense()`; fused kernels
    for dot products never make that, since `<q, W e> = <W^T q, e>` and `sum w W e = W sum w e`.

    Args:
        features: Of every edge, (…, E, edge_dim) in edge order; leading dimensions as those of the
            tensor that it stands for.
        weight: (kv_heads, dim, edge_dim), where dim is head_dim for keys and value_dim for values.

    Example:
        >>> import torch
        >>> from graphattn import Projected, attention, causal
        >>> q = k = v = torch.randn(4, 2, 8)  # (nodes, heads, head_dim)
        >>> edge = Projected(torch.randn(10, 3), torch.randn(2, 8, 3))
        >>> edge.dense().shape
        torch.Size([10, 2, 8])
        >>> attention(q, k, v, causal(4), edge_key=edge, edge_value=edge).shape
        torch.Size([4, 2, 8])
    """

    features: Tensor
    weight: Tensor

    def dense(self) -> Tensor:
        """The features themselves, (…, E, kv_heads, dim)."""
        heads, dim, _ = self.weight.shape
        return (self.features @ self.weight.flatten(0, 1).T).unflatten(-1, (heads, dim))

    def map(self, function: Callable[[Tensor], Tensor]) -> Projected:
        """With a function applied to both parts."""
        return Projected(function(self.features), function(self.weight))


Features = Tensor | Projected
"""Features of edges, as `attention` takes them."""


def dense(features: Features) -> Tensor:
    """Features as a tensor, (…, E, kv_heads, dim)."""
    return features.dense() if isinstance(features, Projected) else features
