"""A vision transformer whose patches attend over a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.graphs import Graph
from graphattn.models import pretrained
from graphattn.models.layers import graph_of_each, init_weights, mean_of_nodes
from graphattn.nn import LearnedPositions, TransformerBlock


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021), with the mean of all patches as the image.

    Args:
        image_size: Height and width of the images, in pixels.
        patch_size: Height and width of a patch; divides the image size.
        num_classes: Number of classes.
        channels: Channels of the images.
        dim: Width of a patch's features.
        depth: Number of blocks.
        heads: Number of attention heads.
        tokens: Learned nodes that stand before the patches, such as a class token.
        pool: Makes the features of an image of those of its nodes, `mean_of_nodes` or `first_node`.
        dropout: Of the embedding, and as in `TransformerBlock`.
        block: Further arguments of `TransformerBlock`, such as mlp_ratio.

    Attributes:
        grid: Rows and columns of patches; the graph is one on tokens + grid[0] * grid[1] nodes.

    Raises:
        ValueError: If patches do not tile the image.

    Example:
        >>> import torch
        >>> from graphattn import models, neighborhood
        >>> model = models.ViT((32, 32), (4, 4), num_classes=10, dim=64, depth=2, heads=4)
        >>> model(torch.randn(2, 3, 32, 32), neighborhood(model.grid, 2)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        num_classes: int,
        *,
        channels: int = 3,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        tokens: int = 0,
        pool: Callable[[Tensor], Tensor] = mean_of_nodes,
        dropout: float = 0.0,
        **block: Any,
    ) -> None:
        super().__init__()
        block = {"norm": nn.LayerNorm, "dropout": dropout, **block}
        self.embedding = PatchEmbedding(image_size, patch_size, channels, dim)
        self.grid = self.embedding.grid
        self.tokens = nn.Parameter(torch.zeros(tokens, dim)) if tokens else None
        self.positions = LearnedPositions(tokens + math.prod(self.grid), dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, **block) for _ in range(depth))
        self.norm = block["norm"](dim)
        self.pool = pool
        self.head = nn.Linear(dim, num_classes)
        init_weights(self)

    @classmethod
    def from_hf(cls, model: Any) -> ViT:
        """With a copy of the weights of a ViT of transformers, and its class scores.

        Its graph is one on 1 + patches nodes, of which the class token is the first. Of a model
        without a classifier, the scores are the features of that token.

        Args:
            model: A `ViTModel` or `ViTForImageClassification`; its mode, dtype and
                device stay.

        Raises:
            TypeError: If it is no such model.
            ValueError: If its config asks for what our blocks don't have.

        Example:
            >>> import torch, transformers
            >>> from graphattn import complete, models
            >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
            >>> config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
            >>> theirs = transformers.ViTForImageClassification(config).eval()
            >>> ours, images = models.ViT.from_hf(theirs).eval(), torch.randn(2, 3, 32, 32)
            >>> torch.allclose(ours(images, complete(17)), theirs(images).logits, atol=1e-5)
            True
        """
        return pretrained.vit(cls, model)

    def forward(self, images: Tensor, graph: Graph | Sequence[Graph]) -> Tensor:
        """Class scores of images.

        Args:
            images: (batch, channels, height, width).
            graph: Who attends to whom among the patches, numbered row by row behind the learned
                tokens if there are any; or one for each block.

        Returns:
            (batch, num_classes).
        """
        x = self.embed(images)
        for block, block_graph in zip(self.blocks, graph_of_each(graph, len(self.blocks))):
            x = block(x, block_graph)
        return self.head(self.pool(self.norm(x)))

    def embed(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> what the first block takes, (batch, nodes, dim)."""
        x = self.embedding(images)
        if self.tokens is not None:
            x = torch.cat([self.tokens.expand(len(x), -1, -1), x], dim=-2)
        return self.dropout(self.positions(x))


class PatchEmbedding(nn.Module):
    """Cuts images into patches and maps each to a vector: (B, C, H, W) -> (B, patches, dim).

    Raises:
        ValueError: If patches do not tile the image, or an image is of another size.
    """

    def __init__(
        self, image_size: tuple[int, int], patch_size: tuple[int, int], channels: int, dim: int
    ) -> None:
        super().__init__()
        (height, width), (rows, columns) = image_size, patch_size
        if height % rows or width % columns:
            raise ValueError(f"patches of {patch_size} do not tile images of {image_size}")
        self.image_shape = (channels, height, width)
        self.grid = (height // rows, width // columns)
        self.project = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, patches, dim), row by row."""
        if tuple(images.shape[-3:]) != self.image_shape:
            raise ValueError(
                f"images must be (batch, channels, height, width) with {self.image_shape} behind "
                f"the batch, got {tuple(images.shape)}"
            )
        return self.project(images).flatten(2).transpose(1, 2)
