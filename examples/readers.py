"""Whom the nodes of a citation graph attend to, drawn."""

import math
from pathlib import Path
from typing import Any

import torch
from drawings import BLUE, ORANGE
from heatmaps import save
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor

MOST = 10  # neighbors drawn


def attention_to_neighbors(path: Path, batch: Any, nodes: Tensor, model: Any) -> str:
    """Some nodes of a batch in the midst of those that they hear; a line is as wide as its weight.

    Args:
        path: Where to.
        batch: With `layers`; x of digits is what is shown of them, then where.
        nodes: Destinations of the last layer.
        model: With `weights(x, layers)`, (E,).
    """
    weights, (src, dst) = model.weights(batch.x, batch.layers), batch.layers[-1].edge_index
    figure = Figure(figsize=(4.6 * len(nodes), 5.1), layout="constrained")
    figure.suptitle(
        f"Whom {len(nodes)} held-out nodes attend to in the last layer: a wide line is much, "
        "orange is the same class"
        + ("; of a digit, dark pixels are read" if "image" in batch else "")
    )
    for axes, node in zip(figure.subplots(1, len(nodes), squeeze=False)[0], nodes.tolist()):
        edges = (dst == node).nonzero().flatten()
        edges = edges[weights[edges].argsort(descending=True)][:MOST]
        around(axes, batch, node, src[edges].tolist(), weights[edges].tolist())
    return save(figure, path)


def around(axes: Axes, batch: Any, node: int, heard: list[int], weights: list[float]) -> None:
    """A node, and what it hears around it, clockwise from the top by weight."""
    same = [bool(batch.y[other] == batch.y[node]) for other in heard]
    for number, (other, weight) in enumerate(zip(heard, weights)):
        angle = math.pi / 2 - 2 * math.pi * number / max(len(heard), 1)
        x, y = math.cos(angle), math.sin(angle)
        color = ORANGE if same[number] else BLUE
        axes.plot([0, 0.76 * x], [0, 0.76 * y], color=color, linewidth=40 * weight + 0.3, zorder=1)
        show(axes, batch, other, (x, y), color)
        axes.text(1.36 * x, 1.36 * y, f"{weight:.0%}", ha="center", va="center", size=9)
    show(axes, batch, node, (0, 0), "black")
    own = sum(weight for weight, alike in zip(weights, same) if alike)
    title = f"of these {len(heard)}, {sum(same)} are of its class, with {own:.0%} of the weight"
    axes.set_title(title, size=10)
    axes.set(xlim=(-1.55, 1.55), ylim=(-1.5, 1.5), aspect="equal")
    axes.axis("off")


def show(axes: Axes, batch: Any, node: int, place: tuple[float, float], color: str) -> None:
    """A node as the digit that it is, what can't be read of it pale; or as its class."""
    if "image" not in batch:
        box = {"boxstyle": "circle", "facecolor": "white", "edgecolor": color}
        axes.text(*place, str(int(batch.y[node])), ha="center", va="center", bbox=box, zorder=3)
        return
    ink = batch.image[node].view(8, 8)
    seen = batch.x[node, 64:128].view(8, 8)
    shade = 1 - ink * torch.where(seen > 0, 1.0, 0.18)
    picture = OffsetImage(shade.numpy(), zoom=4.6, cmap="gray", norm=Normalize(0, 1))
    frame = {"edgecolor": color, "linewidth": 2, "boxstyle": "square,pad=0.1"}
    axes.add_artist(AnnotationBbox(picture, place, bboxprops=frame, zorder=3))
