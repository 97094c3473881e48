"""Pictures of attention: over images, and over text."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import graphattn as ga

BLUE, ORANGE = "#0072B2", "#D55E00"
"""Two colors that the color-blind can tell apart (Okabe and Ito 2008)."""


@torch.no_grad()
def attention_of(blocks: Iterable[Any], x: Tensor, graphs: Sequence[ga.Graph]) -> Tensor:
    """What every node attends to in every block; 0 where there is no edge.

    Args:
        blocks: The `TransformerBlock`s of a model.
        x: What the first of them takes, (batch, nodes, dim).
        graphs: One for each block.

    Returns:
        (blocks, batch, heads, num_dst, num_src).
    """
    matrices = []
    for block, graph in zip(blocks, graphs):
        weights = block.attention.weights(block.attention_norm(x), graph)  # (batch, E, heads)
        matrix = x.new_zeros(len(x), weights.shape[-1], graph.num_dst, graph.num_src)
        src, dst = graph.edge_index.to(x.device)
        matrix[:, :, dst, src] = weights.transpose(1, 2)
        matrices.append(matrix)
        x = block(x, graph)
    return torch.stack(matrices).cpu()


def attention_over_images(
    path: Path, model: ga.models.ViT, graphs: Sequence[ga.Graph], images: Tensor, titles: list[str]
) -> str:
    """A row for the images, and one for each block: what the patch with most ink attends to."""
    framed = F.adaptive_avg_pool2d(images, model.grid).flatten(1).argmax(dim=1).cpu()
    attention = attention_of(model.blocks, model.embed(images), graphs).mean(dim=2)
    heat = attention[:, torch.arange(len(images)), framed].unflatten(-1, model.grid)
    rows, columns = 1 + len(heat), len(images)
    figure = Figure(figsize=(1.5 * columns + 1, 1.5 * rows + 1), layout="constrained")
    figure.suptitle("What the framed patch attends to, block by block")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, column in itertools.product(range(rows), range(columns)):
        image, colors = images[column, 0].cpu(), heat[row - 1, column] if row else None
        show_image(axes[row, column], image, model.grid, colors, top=heat.max().item())
        height, width = (side / cells for side, cells in zip(image.shape, model.grid))
        y, x = divmod(int(framed[column]), model.grid[1])
        corner = (x * width - 0.5, y * height - 0.5)
        frame = Rectangle(corner, width, height, fill=False, edgecolor=BLUE, linewidth=2)
        axes[row, column].add_patch(frame)
        axes[row, 0].set_ylabel(f"block {row}" if row else "image")
        axes[0, column].set_title(titles[column], size=10)
    figure.colorbar(axes[1, 0].images[0], ax=axes[1:], label="weight, mean of the heads")
    return save(figure, path)


def attention_over_text(path: Path, model: ga.models.GPT, graph: ga.Graph, held_out: Tensor) -> str:
    """What each character of a line attends to, in the four sharpest heads of the model."""
    lines = bytes(held_out[:20_000].tolist()).decode("latin-1").splitlines()
    fitting = [line for line in lines if 24 <= len(line.strip()) <= len(line) <= 36]
    line = max(fitting or lines, key=lambda line: ("(" in line, len(line)))[: graph.num_dst][:36]
    n = len(line)
    tokens = torch.zeros(1, graph.num_dst, dtype=torch.int64)
    tokens[0, :n] = torch.tensor(list(line.encode("latin-1")))
    x = model.embedding(tokens.to(model.embedding.weight.device))
    attention = attention_of(model.blocks, x, [graph] * len(model.blocks))[:, 0, :, :n, :n]
    attention = attention.masked_fill(~graph.mask()[:n, :n].cpu(), torch.nan)
    sharpness = attention.nan_to_num().amax(dim=-1).mean(dim=-1)  # (blocks, heads)
    figure = Figure(figsize=(11, 11.4), layout="constrained")
    cmap = colormaps["Oranges"].with_extremes(bad="gainsboro")
    figure.suptitle(f"What each character (row) attends to (column), over {graph}")
    labels = [char if char.isprintable() and char != " " else "␣" for char in line]
    best = sharpness.flatten().topk(min(4, sharpness.numel())).indices
    for place, index in enumerate(best.tolist()):
        block, head = divmod(index, attention.shape[1])
        axes = figure.add_subplot(2, 2, place + 1, title=f"block {block + 1}, head {head + 1}")
        axes.imshow(attention[block, head].numpy(), cmap=cmap, vmin=0, vmax=1)
        axes.set_xticks(range(n), labels, family="monospace")
        axes.set_yticks(range(n), labels, family="monospace")
    return save(figure, path)


def alignments(
    path: Path, title: str, parts: dict[str, tuple[Tensor, list[str], list[str]]]
) -> str:
    """What rows attend to in columns, by title: weights (rows, columns), and labels of both."""
    figure = Figure(figsize=(12.5, 4.2 * math.ceil(len(parts) / 2)), layout="constrained")
    figure.suptitle(title)
    for place, (name, (weights, rows, columns)) in enumerate(parts.items()):
        axes = figure.add_subplot(math.ceil(len(parts) / 2), 2, place + 1, title=name)
        axes.imshow(weights.numpy(), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), [" " if c.isspace() else c for c in columns])
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, label="weight", shrink=0.5)
    return save(figure, path)


def show_image(
    axes: Axes, image: Tensor, grid: tuple[int, int], heat: Tensor | None = None, top: float = 1
) -> None:
    """Pixels as squares of ink, (height, width), on patches that are orange by their `heat`."""
    height, width = image.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    heat = torch.zeros(grid) if heat is None else heat
    axes.imshow(heat.numpy(), cmap="Oranges", vmin=0, vmax=top, extent=extent)
    inked = image.nonzero().tolist()
    sides = [0.8 * image[y, x].item() ** 0.5 for y, x in inked]
    ink = [Rectangle((x - s / 2, y - s / 2), s, s) for (y, x), s in zip(inked, sides)]
    axes.add_collection(PatchCollection(ink, color="dimgray", linewidth=0))
    for cut in range(1, grid[1]):
        axes.axvline(cut * width / grid[1] - 0.5, color="white", linewidth=1)
    for cut in range(1, grid[0]):
        axes.axhline(cut * height / grid[0] - 0.5, color="white", linewidth=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def save(figure: Figure, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)
