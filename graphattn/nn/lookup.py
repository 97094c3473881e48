"""A lookup table made soft, and kernel regression, which is the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.attention import attention
from graphattn.graphs import Graph, bipartite
from graphattn.nn.stored import CHUNK, check_items, flat, floating, one_dtype, store

SHARPEST = 1e30
"""Bound of the logits: differences that rounding leaves are far above its inverse."""


class LookupAttention(nn.Module):
    """A lookup table made soft: a query takes the values of the keys near it.

    Key j weighs `softmax_j(-|q - k_j|^2 / (2 temperature))`. Since `|q|^2` is the same for all of
    them and softmax does not see it, that is `softmax_j((<q, k_j> - |k_j|^2 / 2) / temperature)`:
    with one more coordinate, 1 for queries and `-|k_j|^2 / 2` for keys, a plain dot product over
    `bipartite(num_queries, n)`, which fused kernels compute without a bias. Towards temperature 0
    it is an exact lookup, the value of the nearest key; towards infinity the mean of all values.

    Args:
        keys: (n, dim), floating. A `torch.nn.Parameter` is trained along; any other tensor becomes
            a buffer.
        values: (n, value_dim), of the dtype of keys, likewise.
        temperature: In squared units of the keys. 0 is the exact lookup, in which equal distances
            go to the lowest index and only the values have gradients; `math.inf` is the mean.

    Attributes:
        temperature: As above; may be changed at any time.

    Raises:
        TypeError: If keys or values are not floating tensors of one dtype.
        ValueError: If their shapes don't fit, there are none, or the temperature is negative.

    Example:
        >>> import math
        >>> keys = torch.tensor([[0.0], [1.0], [5.0]])
        >>> lookup = LookupAttention(keys, values=torch.tensor([[10.0], [20.0], [60.0]]))
        >>> query = torch.tensor([[4.0]])
        >>> for lookup.temperature in (0, 1.0, math.inf):
        ...     print(round(lookup(query).item(), 2))
        60.0
        59.25
        30.0
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, *, temperature: float = 1.0) -> None:
        super().__init__()
        check_items(keys, values)
        one_dtype("values", values, "keys", keys)
        if len(keys) == 0:
            raise ValueError(f"a lookup table needs at least one key, got {tuple(keys.shape)}")
        store(self, keys=keys, values=values)
        self.temperature = temperature
        self._check_temperature()

    def forward(self, query: Tensor) -> Tensor:
        """(*batch, dim), of the dtype of the keys, to (*batch, value_dim).

        Raises:
            TypeError, ValueError: If the query or a changed temperature does not fit.
        """
        self._check_temperature()
        if self.temperature == 0:
            return self.values[self.nearest(query)]
        rows = self._rows(query)
        graph = bipartite(len(rows), len(self.keys))
        out = _attend_near(rows, self.keys, self.values, graph, self.temperature)
        return out.reshape(*query.shape[:-1], self.values.shape[-1])

    @torch.no_grad()
    def nearest(self, query: Tensor) -> Tensor:
        """Index of the nearest key, the lowest of those equally near: (*batch, dim) -> (*batch).

        Distances are summed from differences here, so that a key that equals the query is found.
        """
        batch = query.shape[:-1]
        query, keys = (x.to(_wide(x)) for x in (self._rows(query), self.keys))
        exact = "donot_use_mm_for_euclid_dist"
        index = [
            torch.cdist(some, keys, compute_mode=exact).argmin(dim=1)
            for some in query.split(max(1, CHUNK // len(keys)))
        ]
        return torch.cat(index).reshape(batch)

    def _rows(self, query: Tensor) -> Tensor:
        """(*batch, dim) to (num_queries, dim)."""
        one_dtype("query", floating("query", query), "keys", self.keys)
        return flat(query, self.keys)

    def _check_temperature(self) -> None:
        given = self.temperature
        if not isinstance(given, int | float) or not given >= 0:
            raise ValueError(f"temperature must be a number from 0 to math.inf, got {given!r}")

    def extra_repr(self) -> str:
        """What printing the table shows besides its parts."""
        return f"num_keys={len(self.keys)}, temperature={self.temperature}"


def nadaraya_watson(
    query_x: Tensor,
    x: Tensor,
    y: Tensor,
    bandwidth: float | Tensor,
    *,
    graph: Graph | None = None,
) -> Tensor:
    """Kernel regression: the mean of the samples, each weighed by a Gaussian of its distance.

    `sum_j K(q - x_j) y_j / sum_j K(q - x_j)` with `K(u) = exp(-|u / bandwidth|^2 / 2)` (Nadaraya
    1964; Watson 1964) is attention of queries `q` to keys `x_j` with values `y_j` over
    `bipartite(num_queries, n)`, see `LookupAttention`. Softmax keeps it defined where all samples
    are so far away that every K is rounded to 0: there it is the nearest of them.

    Args:
        query_x: Where to estimate, (num_queries, dim), or (num_queries,) if x has one dimension.
        x: Where the samples are, (n, dim) or (n,), floating.
        y: What was seen there, (n, value_dim) or (n,), of the same dtype.
        bandwidth: Standard deviation of the Gaussian, in units of x; a positive float, or a tensor
            (dim,) with one for each coordinate, which then has gradients.
        graph: Which samples each query takes into account, with num_dst = num_queries and
            num_src = n; all by default.

    Returns:
        (num_queries, value_dim), or (num_queries,) if y has one dimension; 0 where the graph leaves
        a query without samples.

    Raises:
        TypeError: If something is not a floating tensor of one dtype.
        ValueError: If shapes don't fit, there are no samples, or a bandwidth is not positive.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 2.0])
        >>> nadaraya_watson(torch.tensor([0.0, 1.0]), x, x.square(), bandwidth=0.5)
        tensor([0.1203, 1.2130])
    """
    query, points, seen = (_columns(part) for part in (query_x, x, y))
    check_items(points, seen, "x", "y")
    one_dtype("y", seen, "x", points)
    one_dtype("query_x", flat(query, points, "query_x", "x"), "x", points)
    if query.ndim != 2:
        raise ValueError(f"query_x must be (num_queries, dim), got {tuple(query.shape)}")
    if len(points) == 0:
        raise ValueError("there must be at least one sample, got none")
    width = torch.as_tensor(bandwidth, dtype=points.dtype, device=points.device)
    if width.ndim and width.shape != points.shape[1:]:
        raise ValueError(
            f"bandwidth must be a number or have shape ({points.shape[1]},), one for each "
            f"coordinate of x, got {tuple(width.shape)}"
        )
    if not bool((width > 0).all()):
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    graph = bipartite(len(query), len(points)) if graph is None else graph
    out = _attend_near(query / width, points / width, seen, graph, temperature=1.0)
    return out[:, 0] if y.ndim == 1 else out


def _attend_near(
    query: Tensor, keys: Tensor, values: Tensor, graph: Graph, temperature: float
) -> Tensor:
    """`softmax_j(-|q - k_j|^2 / (2 temperature))` over the edges of a graph, times the values.

    Args:
        query: (num_dst, dim).
        keys: (num_src, dim).
        values: (num_src, value_dim).

    Returns:
        (num_dst, value_dim).
    """
    wide = _wide(query)
    query, keys, center = query.to(wide), keys.to(wide), keys.detach().to(wide).mean(dim=0)
    query, keys = query - center, keys - center  # distances stay, what they are computed of shrinks
    unit = keys.detach().square().sum(dim=1).max().sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    query, keys = query / unit, keys / unit
    query = torch.cat([query, torch.ones_like(query[:, :1])], dim=1)
    keys = torch.cat([keys, -keys.square().sum(dim=1, keepdim=True) / 2], dim=1)
    bound = SHARPEST / query.detach().abs().amax(dim=1, keepdim=True)
    query = query * torch.minimum((unit / temperature**0.5).square(), bound)
    with torch.autocast(query.device.type, enabled=False):
        value = values.to(wide)[:, None]
        out = attention(query[:, None], keys[:, None], value, graph, scale=1.0)
        return out[:, 0].to(values.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """At least float32: distances are small differences of large numbers."""
    return torch.promote_types(x.dtype, torch.float32)


def _columns(x: Tensor) -> Tensor:
    """(n,) to (n, 1); anything else as it is."""
    return x[:, None] if isinstance(x, Tensor) and x.ndim == 1 else x
