"""Where a node stands: added to its features, or turned into its queries and keys.

Nodes are numbered 0, 1, 2, ... unless `places` says where each stands: int64 (nodes,), or (*batch,
nodes) where they differ within a batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from graphattn.graphs.checks import grid
from graphattn.graphs.grid import coordinates


class LearnedPositions(nn.Module):
    """Adds a learned vector for each node (Vaswani et al. 2017, section 3.5, table 3 row E).

    Args:
        num_nodes: The largest number of nodes.
        dim: Width of a node.

    Example:
        >>> LearnedPositions(16, 8)(torch.zeros(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """

    def __init__(self, num_nodes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_nodes, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """(*batch, nodes, dim) to the same; `places` as int64 (nodes,) or (*batch, nodes).

        Raises:
            ValueError: If there are more nodes than positions, or a place has none.
        """
        if places is not None:
            _check_places(places, len(self.table), "learned positions", "num_nodes")
            return x + self.table[places]
        num_nodes = x.shape[-2]
        if num_nodes > len(self.table):
            raise ValueError(
                f"there are {len(self.table)} learned positions, but x holds {num_nodes} nodes; "
                f"build the layer with num_nodes={num_nodes}"
            )
        return x + self.table[:num_nodes]


class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of the position (Vaswani et al. 2017, section 3.5).

    Args:
        dim: Width of a node; even.
        base: Ratio of the longest wavelength to the shortest.

    Raises:
        ValueError: If dim is odd.

    Example:
        >>> SinusoidalPositions(4)(torch.zeros(1, 4)).tolist()
        [[0.0, 1.0, 0.0, 1.0]]
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}")
        self.dim, self.base = dim, base

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """(*batch, nodes, dim) to the same; `places` as int64 (nodes,) or (*batch, nodes)."""
        if places is None:
            places = torch.arange(x.shape[-2], device=x.device)
        angle = _angles(places, self.dim // 2, self.base)  # (…, nodes, dim / 2)
        return x + torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).to(x.dtype)


class Rotary(nn.Module):
    """Turns queries and keys by angles that grow with the position (Su et al. 2021, section 3.2).

    The score of a pair then depends on the distance of the two nodes. On a grid, the features are
    shared out among the axes, and each share is turned by the coordinate along its axis.

    Args:
        head_dim: Width of a head; a multiple of 2 for each axis.
        shape: Shape of the grid that the nodes fill row by row; None for a sequence of any length.
        base: Ratio of the longest wavelength to the shortest.

    Raises:
        ValueError: If head_dim can't be shared out.

    Example:
        >>> rotary = Rotary(8, shape=(4, 4))
        >>> rotary(torch.randn(2, 16, 3, 8)).shape
        torch.Size([2, 16, 3, 8])
    """

    def __init__(
        self, head_dim: int, shape: tuple[int, ...] | None = None, base: float = 10000.0
    ) -> None:
        super().__init__()
        self.shape = None if shape is None else grid(shape)
        num_axes = 1 if self.shape is None else len(self.shape)
        if head_dim % (2 * num_axes):
            raise ValueError(
                f"head_dim must be a multiple of {2 * num_axes} (2 for each of {num_axes} axes), "
                f"got {head_dim}"
            )
        self.head_dim, self.base = head_dim, base

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """(*batch, nodes, heads, head_dim) to the same.

        Args:
            x: Queries or keys.
            places: Where each node stands, int64 (nodes,) or (*batch, nodes); 0, 1, 2, ... by
                default.

        Raises:
            ValueError: If the nodes are not those of the grid.
        """
        axes = self._axes(x.shape[-3], x.device) if places is None else self._axes_of(places)
        width = self.head_dim // (2 * len(axes))
        angle = torch.cat([_angles(place, width, self.base) for place in axes], dim=-1)
        cos, sin = (part[..., None, :].to(x.dtype) for part in (angle.cos(), angle.sin()))
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _axes(self, num_nodes: int, device: torch.device) -> list[Tensor]:
        """The coordinates of nodes 0, 1, 2, ... along each axis."""
        if self.shape is not None and math.prod(self.shape) != num_nodes:
            raise ValueError(
                f"the grid {self.shape} has {math.prod(self.shape)} nodes, but x holds {num_nodes}"
            )
        node = torch.arange(num_nodes, device=device)
        return [node] if self.shape is None else list(coordinates(node, self.shape))

    def _axes_of(self, places: Tensor) -> list[Tensor]:
        if self.shape is None:
            return [places]
        _check_places(places, math.prod(self.shape), f"cells of the grid {self.shape}", "shape")
        return list(coordinates(places, self.shape))


Positions = Callable[[Tensor], Tensor]
"""A function of queries or keys, (*batch, nodes, heads, head_dim) to the same shape."""


def at_places(positions: Positions, x: Tensor, places: Tensor) -> Tensor:
    """Positions of nodes that are not all the nodes: those from `places` on, for instance.

    A function that takes no `places` is given a tensor with all nodes up to the last of them, zero
    but for those of x, and so takes time that grows with their place.

    Args:
        positions: `positions(x)` or `positions(x, places)`.
        x: Queries or keys, (*batch, nodes, heads, head_dim).
        places: Where each node stands, int64 (nodes,) or (batch, nodes).

    Returns:
        Of the shape of x.

    Example:
        >>> import torch
        >>> from graphattn import nn
        >>> rotary, x = nn.Rotary(8), torch.randn(5, 2, 8)
        >>> last = at_places(lambda x: rotary(x), x[3:], torch.tensor([3, 4]))
        >>> torch.equal(last, rotary(x)[3:])
        True
    """
    if _takes_places(positions):
        return positions(x, places=places)  # pyright: ignore[reportCallIssue]
    if places.ndim > 1:
        return torch.stack([at_places(positions, *pair) for pair in zip(x, places)])
    if len(places) > 1 and bool((places.diff() <= 0).any()):  # siblings in a tree share a place
        one_by_one = zip(x.split(1, dim=-3), places.split(1))
        return torch.cat([at_places(positions, *pair) for pair in one_by_one], dim=-3)
    every = x.new_zeros(*x.shape[:-3], int(places[-1]) + 1, *x.shape[-2:])
    every = every.index_copy(-3, places, x)
    return positions(every).index_select(-3, places)


def _takes_places(positions: Positions) -> bool:
    if isinstance(positions, nn.Module):
        return _has_places(type(positions).forward)
    return _has_places(positions if inspect.isroutine(positions) else type(positions).__call__)


@lru_cache(128)
def _has_places(function: Callable[..., Tensor]) -> bool:
    return "places" in inspect.signature(function).parameters


def _check_places(places: Tensor, count: int, what: str, argument: str) -> None:
    if places.numel() and not 0 <= int(places.min()) <= (last := int(places.max())) < count:
        raise ValueError(
            f"there are {count} {what}, but a node stands at place {last}; build the layer with a "
            f"larger {argument}, or ask for fewer nodes"
        )


def _angles(place: Tensor, width: int, base: float) -> Tensor:
    """`place / base^(i / width)` for i < width: (…, nodes) -> (…, nodes, width), float32."""
    step = torch.arange(width, device=place.device, dtype=torch.float32) / width
    return place[..., None] * base**-step
