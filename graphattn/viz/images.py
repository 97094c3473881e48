"""Attention over the patches of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.checks import axes as on_axes
from graphattn.graphs.graph import require_graph
from graphattn.viz.axes import BLUE, ORANGE, axes_or_new, bare, set_title
from graphattn.viz.inputs import destination, edge_weights, real

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def attention_over_image(
    image: Any,
    weights: Any,
    graph: Graph,
    query: int,
    grid: tuple[int, int],
    ax: Axes | None = None,
) -> Axes:
    """An image in grey, and over it, in orange, how much a patch attends to each patch.

    The patch that attends is framed; the strongest weight is the fullest orange. Where there is no
    edge the image is pale. Parallel edges add up.

    Args:
        image: (height, width), or (channels, height, width) of which the mean is drawn; dark grey
            is its smallest value and white its largest.
        weights: (E,), or (E, heads), of which the mean over the heads is drawn; in edge order.
        graph: Who attends to whom among the patches, which are numbered row by row.
        query: The patch that attends.
        grid: Rows and columns of patches.
        ax: Where to draw; by default a new figure, with a color bar.

    Returns:
        The axes.

    Raises:
        ValueError: If image, weights or grid don't fit, or a weight is negative or not finite.
        IndexError: If the query is not a destination.

    Example:
        >>> import torch
        >>> from graphattn import neighborhood, viz
        >>> graph = neighborhood((4, 4), 1)
        >>> weights = torch.full((graph.num_edges,), 1 / 9)
        >>> viz.attention_over_image(torch.rand(32, 32), weights, graph, 5, (4, 4)).get_title()
        'what patch 5 attends to'
    """
    values, mean = edge_weights(weights, require_graph(graph))
    node, shape, pixels = destination("query", query, graph), _patches(grid, graph), _pixels(image)
    src, dst = graph.edge_index.cpu()
    heard, values = src[dst == node], values[dst == node]
    if bool((values < 0).any()):
        raise ValueError(f"weights over an image must not be negative, got {values.min():.3g}")
    heat = heard.bincount(values, minlength=graph.num_src).double()
    deaf = heard.bincount(minlength=graph.num_src) == 0
    masked = numpy.ma.masked_array(heat.view(shape).numpy(), mask=deaf.view(shape).numpy())
    ax = _show(pixels, masked, ax)
    if graph.num_dst == graph.num_src:
        _frame(ax, divmod(node, shape[1]), pixels.shape[0] / shape[0], pixels.shape[1] / shape[1])
    set_title(ax, f"what patch {node} attends to", mean)
    return ax


def _patches(grid: Any, graph: Graph) -> tuple[int, int]:
    if not isinstance(grid, tuple | list):
        raise TypeError(f"grid must be (rows, columns) of patches, got {grid!r:.40}")
    rows, columns = on_axes("grid", grid, 2, low=1)
    if rows * columns != graph.num_src:
        raise ValueError(
            f"grid {(rows, columns)} has {rows * columns} patches, and {graph} has "
            f"{graph.num_src} sources"
        )
    return rows, columns


def _pixels(image: Any) -> Tensor:
    """The image as (height, width)."""
    pixels = real("image", image)
    if pixels.ndim not in (2, 3) or pixels.numel() == 0:
        raise ValueError(
            f"image must be (height, width) or (channels, height, width), got {tuple(pixels.shape)}"
        )
    if pixels.ndim == 3 and len(pixels) > 4 and pixels.shape[2] <= 4:
        raise ValueError(
            f"image must have its channels first, got {tuple(pixels.shape)}; permute(2, 0, 1) it"
        )
    return pixels if pixels.ndim == 2 else pixels.mean(dim=0)


def _show(pixels: Tensor, heat: Any, ax: Axes | None) -> Axes:
    """The image, and the heat of its patches over it."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    height, width = pixels.shape
    made = ax is None
    inch = 4 / max(height, width)
    ax = axes_or_new(ax, max(inch * width, 2.0) + 1.2, max(inch * height, 1.0) + 0.6)
    bare(ax)
    low, high = (bound.item() for bound in pixels.aminmax())
    low -= 0.6 * (high - low)  # colors show on dark grey, and not on black
    ax.imshow(pixels.numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    colors = LinearSegmentedColormap.from_list("heat", [to_rgba(ORANGE, 0), to_rgba(ORANGE, 0.85)])
    over = ax.imshow(
        heat,
        cmap=colors.with_extremes(bad=(1, 1, 1, 0.6)),
        vmin=0,
        vmax=float(heat.max()) if heat.any() else 1.0,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
    if made:
        ax.figure.colorbar(over, ax=ax, label="weight", shrink=0.8)
    return ax


def _frame(ax: Axes, cell: tuple[int, int], height: float, width: float) -> None:
    """Around a patch (row, column) of that many pixels."""
    from matplotlib.patches import Rectangle

    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=BLUE, linewidth=2))
