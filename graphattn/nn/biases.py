"""Learned biases of pairs: modules that are called as `bias(dst, src) -> (pairs, heads)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from graphattn.biases import grid_offset, hop_distance, t5_bucket
from graphattn.graphs import Graph
from graphattn.graphs.checks import axes, grid


class T5Bias(nn.Module):
    """A learned bias for each bucket of distance (Raffel et al. 2020, section 2.1).

    Args:
        heads: Number of heads.
        num_buckets: Number of buckets.
        max_distance: All distances from here on share a bucket.
        bidirectional: Whether nodes ahead have buckets of their own, as in an encoder; else they
            share that of distance 0.

    Example:
        >>> T5Bias(4)(torch.tensor([0, 1]), torch.tensor([1, 0])).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        heads: int,
        *,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.table = _table(num_buckets, heads)

    def forward(self, dst: Tensor, src: Tensor) -> Tensor:
        """The bias of each pair, (pairs, heads)."""
        bucket = t5_bucket(
            src - dst,
            num_buckets=len(self.table),
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return self.table[bucket]


class RelativePositionBias(nn.Module):
    """A learned bias for each offset on a grid (Swin, Liu et al. 2021, eq. 4).

    Args:
        shape: Shape of the grid, 1 to 3 axes.
        heads: Number of heads.
        reach: Offsets along an axis are told apart below this, as within a window of that size;
            farther ones share the bias of the farthest, so that the layer runs over any graph on
            the grid. An integer or one per axis; the grid itself by default.

    Example:
        >>> RelativePositionBias((8, 8), 4, reach=3)(torch.tensor([0]), torch.tensor([9])).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        heads: int,
        *,
        reach: int | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.shape = grid(shape)
        reach = self.shape if reach is None else reach
        self.reach = axes("reach", reach, len(self.shape), low=1)
        self.table = _table(math.prod(2 * size - 1 for size in self.reach), heads)

    def forward(self, dst: Tensor, src: Tensor) -> Tensor:
        """The bias of each pair, (pairs, heads)."""
        return self.table[grid_offset(dst, src, self.shape, self.reach)]


class ShortestPathBias(nn.Module):
    """A learned bias for each number of hops between two nodes (Graphormer, Ying et al. 2021).

    Args:
        topology: The graph whose paths are measured; not necessarily the one attended over, which
            is often complete.
        heads: Number of heads.
        max_distance: All distances from here on share a bias. Nodes without a path have one too.

    Raises:
        ValueError: If sources and destinations of the topology are not the same nodes.

    Example:
        >>> from graphattn import sliding_window
        >>> bias = ShortestPathBias(sliding_window(10, 1), heads=4, max_distance=5)
        >>> bias.hops[0, 3].item()
        3
    """

    hops: Tensor

    def __init__(self, topology: Graph, heads: int, *, max_distance: int = 20) -> None:
        super().__init__()
        hops = hop_distance(topology, max_distance)
        self.register_buffer("hops", hops, persistent=False)
        self.table = _table(max_distance + 2, heads)

    def forward(self, dst: Tensor, src: Tensor) -> Tensor:
        """The bias of each pair, (pairs, heads)."""
        return self.table[self.hops[dst, src].long()]


def _table(rows: int, heads: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, heads), std=0.02))
