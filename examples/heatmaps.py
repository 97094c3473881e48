"""Pictures of attention: over images, and over text."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import graphattn as ga
from graphattn import viz


@torch.no_grad()
def attention_of(blocks: Iterable[Any], x: Tensor, graphs: Sequence[ga.Graph]) -> list[Tensor]:
    """What every edge weighs in every block.

    Args:
        blocks: The `TransformerBlock`s of a model.
        x: What the first of them takes, (batch, nodes, dim).
        graphs: One for each block.

    Returns:
        For each block, (batch, E, heads).
    """
    found = []
    for block, graph in zip(blocks, graphs):
        weights, x = weights_in(block, x, graph)
        found.append(weights.cpu())
    return found


def weights_in(block: Any, x: Tensor, graph: ga.Graph) -> tuple[Tensor, Tensor]:
    """The weights of a block's attention, and what the block makes of x.

    What its attention takes depends on where the block normalizes: a hook looks at it.
    """
    taken = []
    hook = block.attention.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    after = block(x, graph)
    hook.remove()
    return block.attention.weights(taken[0], graph), after


def attention_over_images(
    path: Path, model: ga.models.ViT, graphs: Sequence[ga.Graph], images: Tensor, titles: list[str]
) -> str:
    """A row for the images, and one for each block: what the patch with most ink attends to."""
    framed = F.adaptive_avg_pool2d(images, model.grid).flatten(1).argmax(dim=1).tolist()
    attention = attention_of(model.blocks, model.embed(images), graphs)
    rows, columns = 1 + len(graphs), len(images)
    figure = Figure(figsize=(1.5 * columns + 1, 1.5 * rows + 1), layout="constrained")
    figure.suptitle("What the framed patch attends to, block by block")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, column in itertools.product(range(rows), range(columns)):
        ax, ink = axes[row, column], (1 - images[column, 0]).cpu().numpy()
        if row == 0:
            ax.imshow(ink, cmap="gray")
            ax.set_title(titles[column], size=10)
            ax.set(xticks=[], yticks=[], frame_on=False)
        else:
            weights, graph = attention[row - 1][column], graphs[row - 1]
            viz.attention_over_image(ink, weights, graph, framed[column], model.grid, ax)
            ax.set_title("")
            ax.images[-1].set_clim(0, 1)
        axes[row, 0].set_ylabel(f"block {row}" if row else "image")
    figure.colorbar(axes[1, 0].images[-1], ax=axes[1:], label="weight, mean of the heads")
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
    attention = torch.cat(attention_of(model.blocks, x, [graph] * len(model.blocks)))
    shown = (graph.edge_index < n).all(dim=0).cpu()  # edges within the line
    among, weights = ga.from_edges(graph.edge_index.cpu()[:, shown], n), attention[:, shown]
    sharpness = weights.square().sum(dim=1)  # (blocks, heads)
    figure = Figure(figsize=(11, 11.4), layout="constrained")
    figure.suptitle(f"What each character (row) attends to (column), over {graph}")
    labels = [char if char.isprintable() and char != " " else "␣" for char in line]
    best = sharpness.flatten().topk(min(4, sharpness.numel())).indices
    for place, index in enumerate(best.tolist()):
        block, head = divmod(index, weights.shape[-1])
        ax = figure.add_subplot(2, 2, place + 1)
        viz.attention_matrix(weights[block, :, head], among, labels, ax)
        ax.images[0].set_clim(0, 1)
        ax.set(xlabel="", ylabel="", title=f"block {block + 1}, head {head + 1}")
    return save(figure, path)


def alignments(
    path: Path, title: str, parts: dict[str, tuple[Tensor, list[str], list[str]]]
) -> str:
    """What rows attend to in columns, by title: weights (rows, columns), and labels of both."""
    figure = Figure(figsize=(12.5, 4.2 * math.ceil(len(parts) / 2)), layout="constrained")
    figure.suptitle(title)
    for place, (name, (weights, rows, columns)) in enumerate(parts.items()):
        axes = figure.add_subplot(math.ceil(len(parts) / 2), 2, place + 1)
        viz.alignment(weights, columns, rows, axes)
        axes.set(aspect="auto", title=name)
        axes.tick_params("x", rotation=0)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, label="weight", shrink=0.5)
    return save(figure, path)


def save(figure: Figure, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)
