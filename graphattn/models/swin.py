"""Swin: a pyramid of grids, where windows are graphs and the shift is another graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.graphs import Graph, shifted_windows
from graphattn.models.layers import graph_of_each, init_weights
from graphattn.models.vit import PatchEmbedding
from graphattn.nn import RelativePositionBias, TransformerBlock


class Swin(nn.Module):
    """Swin transformer (Liu et al. 2021, figure 3).

    Args:
        image_size: Height and width of the images, in pixels.
        patch_size: Height and width of a patch.
        num_classes: Number of classes.
        channels: Channels of the images.
        dim: Width of a patch's features in the first stage; each later one doubles it.
        depths: Number of blocks of each stage.
        heads: Number of attention heads of each stage.
        window: Height and width of a window, in patches.
        block: Further arguments of `TransformerBlock`, such as mlp_ratio and dropout.

    Attributes:
        grids: Rows and columns of nodes, for each block.

    Raises:
        ValueError: If patches do not tile the image, or a grid can't be halved.

    Example:
        >>> import torch
        >>> from graphattn import models
        >>> model = models.Swin((32, 32), (2, 2), 10, dim=32, depths=(2, 2), heads=(2, 4), window=4)
        >>> model(torch.randn(2, 3, 32, 32), model.graphs()).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        num_classes: int,
        *,
        channels: int = 3,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        **block: Any,
    ) -> None:
        super().__init__()
        self.window, self.depths = window, tuple(depths)
        self.embedding = PatchEmbedding(image_size, patch_size, channels, dim)
        self.embedding_norm = nn.LayerNorm(dim)
        self.grids: list[tuple[int, int]] = []
        self.merges = nn.ModuleList()
        self.blocks = nn.ModuleList()
        grid = self.embedding.grid
        for stage, (depth, stage_heads) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                self.merges.append(PatchMerging(grid, dim))
                grid, dim = (grid[0] // 2, grid[1] // 2), 2 * dim
            for _ in range(depth):
                bias = RelativePositionBias(grid, stage_heads, reach=window)
                self.blocks.append(TransformerBlock(dim, stage_heads, bias=bias, **block))
                self.grids.append(grid)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        init_weights(self)

    def graphs(self) -> list[Graph]:
        """Swin's own graph for each block: windows, shifted by half their size in every other.

        A grid no larger than a window is a single window, and is not shifted.
        """
        graphs = []
        starts = [block for depth in self.depths for block in range(depth)]
        for block, grid in zip(starts, self.grids, strict=True):
            size = tuple(min(self.window, length) for length in grid)
            shift = 0 if min(grid) <= self.window or block % 2 == 0 else self.window // 2
            graphs.append(shifted_windows(grid, size, shift))
        return graphs

    def forward(self, images: Tensor, graph: Graph | Sequence[Graph]) -> Tensor:
        """Class scores of images.

        Args:
            images: (batch, channels, height, width).
            graph: One for each block, on the nodes of its grid; Swin's own are `self.graphs()`.

        Returns:
            (batch, num_classes).
        """
        x = self.embedding_norm(self.embedding(images))
        merges = iter(self.merges)
        blocks = zip(self.blocks, graph_of_each(graph, len(self.blocks)), self.grids)
        for block, block_graph, grid in blocks:
            if x.shape[-2] != grid[0] * grid[1]:  # a new stage begins
                x = next(merges)(x)
            x = block(x, block_graph)
        return self.head(self.norm(x).mean(dim=-2))


class PatchMerging(nn.Module):
    """Joins every 2 x 2 cells into one of twice the width (Liu et al. 2021, section 3.1).

    Raises:
        ValueError: If a side of the grid is odd.
    """

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        if grid[0] % 2 or grid[1] % 2:
            raise ValueError(f"a grid of {grid} can't be halved; take another image or patch size")
        self.grid = grid
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows * columns, dim) -> (batch, rows * columns / 4, 2 * dim)."""
        x = x.unflatten(-2, self.grid)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1).flatten(1, 2)))
