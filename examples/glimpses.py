"""What glimpses learned: a table, pictures, and result.json."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy
import torch
from canvas import GRID, MARGIN, SIDE, TILE
from checkpoints import write_json
from drawings import BLUE, ORANGE
from heatmaps import save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

import graphattn as ga
from graphattn import viz

COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#606060")
"""Colors that the color-blind can tell apart (Okabe and Ito 2008), and a grey."""


def report(
    folder: Path,
    learned: dict[str, list[dict]],
    canvas: Tensor,
    true: Tensor,
    graphs: list[dict[str, Any]],
) -> None:
    """Print and draw what each normalizer reaches, and at what cost.

    Args:
        folder: Of the run.
        learned: By the name of the normalizer, what `hard_attention.learn` says of each seed.
        canvas: The held-out ones, of which the first are drawn, (M, side, side).
        true: The digits on them, (M,).
        graphs: For result.json.
    """
    numbers = ("accuracy", "patches_read", "ms")
    table = {
        kind: {name: mean(one[name] for one in seeds) for name in numbers}
        for kind, seeds in learned.items()
    }
    print("           digits read right   patches per image   a training step")
    for kind, row in table.items():
        right, patches, ms = (row[name] for name in numbers)
        print(f"{kind:9} {right:18.1%} {patches:19.1f} {ms:14.1f} ms")
    shown = {kind: seeds[0]["shown"] for kind, seeds in learned.items() if kind != "anywhere"}
    curves = {kind: [one["curve"] for one in seeds] for kind, seeds in learned.items()}
    each = [f"{kind} {row['accuracy']:.1%}" for kind, row in table.items()]
    result = {
        "example": folder.name,
        "graphs": graphs,
        "result": f"of {len(true)} held-out canvases are read right: {', '.join(each)}",
        "normalizers": table,
        "accuracy_of_seeds": {k: [one["accuracy"] for one in learned[k]] for k in learned},
        "pictures": [
            looks(folder / "looks.png", canvas.cpu(), true.tolist(), shown),
            learning(folder / "learning.png", curves),
        ],
    }
    write_json(folder / "result.json", result)
    print(f"{result['result']}; see {folder}")


def looks(path: Path, canvas: Tensor, true: list[int], shown: dict[str, dict]) -> str:
    """For each normalizer (rows) what every glimpse (columns) at some canvases reads.

    Args:
        path: Of the picture.
        canvas: (M, side, side), of which as many are drawn as `shown` has.
        true: The digits on them.
        shown: By the name of the normalizer: "weights" (n, glimpses, patches) and "read_as" (n,).
    """
    n, glimpses = torch.tensor(next(iter(shown.values()))["weights"]).shape[:2]
    figure = Figure(figsize=(1.25 * glimpses * n + 0.8, 1.4 * len(shown) + 0.6))
    figure.set_layout_engine("constrained")
    figure.suptitle("What each glimpse reads: orange the weights, framed the pixels of one patch")
    widths = ([1] * glimpses + [0.1]) * n  # with a gap after each image
    axes = figure.subplots(len(shown), len(widths), width_ratios=widths, squeeze=False)
    for row, (kind, seen) in zip(axes, shown.items()):
        row[0].set_ylabel(kind)
        for image, read_as in enumerate(seen["read_as"]):
            first = image * (glimpses + 1)
            weights = torch.tensor(seen["weights"][image])
            show_glimpses(row[first : first + glimpses], 1 - canvas[image], weights)
            row[first + glimpses // 2].set_xlabel(f"a {true[image]}, read as {read_as}")
            row[first + glimpses].axis("off")
    return save(figure, path)


def show_glimpses(row: Sequence[Axes], image: Tensor, weights: Tensor) -> None:
    """An image (side, side) in each of the axes, under the weights of a glimpse, (., patches)."""
    graph = ga.bipartite(*weights.shape)
    for glimpse, ax in enumerate(row):
        viz.attention_over_image(image, weights.flatten(), graph, glimpse, GRID, ax)
        ax.images[-1].set_clim(0, 1)
        ax.set_title("")
        ax.set_frame_on(True)
        ax.spines[:].set_color("silver")
        if (weights[glimpse] > 0).sum() == 1:
            y, x = divmod(int(weights[glimpse].argmax()), GRID[1])
            (top, bottom), (left, right) = span(y), span(x)
            corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
            ax.add_patch(Rectangle(corner, *size, fill=False, color=BLUE, linewidth=2))


def span(place: int) -> tuple[int, int]:
    """The first pixel of a patch along an axis, and the one behind its last."""
    return max(TILE * place - MARGIN, 0), min(TILE * (place + 1) + MARGIN, SIDE)


def learning(path: Path, curves: dict[str, list]) -> str:
    """Accuracy on held-out canvases over training: mean and range of the seeds.

    Args:
        path: Of the picture.
        curves: By the name of a normalizer, one list of (step, accuracy) for each seed.
    """
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    ax = figure.subplots()
    for color, (name, seeds) in zip(COLORS, curves.items()):
        points = [numpy.array(curve).T for curve in seeds]  # of each seed, (2, points)
        steps, _ = min(points, key=lambda curve: curve[0, -1])  # with --seconds they may differ
        accuracy = numpy.array([numpy.interp(steps, *curve) for curve in points])
        low, high = accuracy.min(axis=0), accuracy.max(axis=0)
        ax.plot(steps, accuracy.mean(axis=0), color=color, label=name)
        ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(
        xlabel="training steps", ylabel="held-out digits read right", ylim=(0, 1), xlim=(0, None)
    )
    ax.set_title("Glimpses learn to read: mean and range of the seeds")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    return save(figure, path)
