"""Pictures of graphs: over an image, and how far a fact travels in them."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import networkx
from heatmaps import save
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

import graphattn as ga

BLUE, ORANGE = "#0072B2", "#D55E00"
"""Two colors that the color-blind can tell apart (Okabe and Ito 2008)."""


def graph_over_image(
    path: Path, image: Tensor, graphs: Sequence[ga.Graph], grid: tuple[int, int]
) -> str:
    """Every different graph over one image (height, width), with what one patch hears marked."""
    different = list(dict.fromkeys(graphs))
    figure = Figure(figsize=(4.6 * len(different), 5.2), layout="constrained")
    height, width = image.shape[0] / grid[0], image.shape[1] / grid[1]  # of a patch, in pixels
    cells = list(itertools.product(range(grid[0]), range(grid[1])))
    places = [((x + 0.5) * width - 0.5, (y + 0.5) * height - 0.5) for y, x in cells]
    marked = len(cells) // 3
    for axes, graph in zip(figure.subplots(1, len(different), squeeze=False)[0], different):
        show_image(axes, image, grid)
        for src, dst in graph.without_self_loops().edge_index.T.tolist():
            if dst == marked or not (src < dst and graph.has_edge(src, dst)):  # else drawn once
                show_edge(axes, places[src], places[dst], heard=dst == marked)
        colors = [ORANGE if node == marked else BLUE for node in range(len(places))]
        axes.scatter(*zip(*places), s=150, c=colors, zorder=4)
        heard = graph.in_degree()[marked]
        title = f"{graph}\n{graph.num_edges} edges; the marked patch hears {heard}"
        axes.set_title(title, size=9)
    return save(figure, path)


def show_edge(axes: Axes, start: tuple, end: tuple, *, heard: bool) -> None:
    """An arrow if the node at its end is the one whose edges are marked, else a faint line."""
    edge = FancyArrowPatch(start, end, connectionstyle="arc3,rad=0.12", shrinkA=5, shrinkB=7)
    if heard:
        edge.set(arrowstyle="-|>", mutation_scale=13, color=ORANGE, linewidth=1.8, zorder=3)
    else:
        edge.set(arrowstyle="-", color=BLUE, linewidth=0.7, alpha=0.22)
    axes.add_patch(edge)


def show_image(axes: Axes, image: Tensor, grid: tuple[int, int]) -> None:
    """Pixels as squares of ink, (height, width), on a grid of patches."""
    height, width = image.shape
    inked = image.nonzero().tolist()
    sides = [0.8 * image[y, x].item() ** 0.5 for y, x in inked]
    ink = [Rectangle((x - s / 2, y - s / 2), s, s) for (y, x), s in zip(inked, sides)]
    axes.add_collection(PatchCollection(ink, color="dimgray", linewidth=0))
    for cut in range(1, grid[1]):
        axes.axvline(cut * width / grid[1] - 0.5, color="white", linewidth=1)
    for cut in range(1, grid[0]):
        axes.axhline(cut * height / grid[0] - 0.5, color="white", linewidth=1)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    axes.set(xticks=[], yticks=[], facecolor="seashell")
    axes.spines[:].set_visible(False)


def accuracy_by_depth(
    folder: Path,
    graphs: dict[str, ga.Graph],
    accuracy: dict[str, dict[int, float]],
    hops: dict[str, int],
    chance: float,
) -> str:
    """Each graph with a way from the first node to the last, and what the last one knows."""
    figure = Figure(figsize=(3 * len(graphs), 6.4), layout="constrained")
    above, below = figure.subplots(2, len(graphs), sharey="row")
    for drawn, plotted, (name, graph) in zip(above, below, graphs.items()):
        show_way(drawn, graph)
        drawn.set_title(f"{name}: {hops[name]} hop{'s' * (hops[name] > 1)}")
        depths, values = list(accuracy[name]), list(accuracy[name].values())
        reached = min(hops[name], len(depths) + 1) - 0.5
        plotted.axvspan(0.5, reached, color="gainsboro", zorder=0)
        plotted.axhline(chance, color="black", linestyle=":", linewidth=1)
        plotted.plot(depths, values, "o-", color=BLUE, clip_on=False)
        plotted.set(xlabel="blocks", xticks=depths, xlim=(0.5, len(depths) + 0.5), ylim=(0, 1.04))
        plotted.yaxis.set_major_formatter(PercentFormatter(1))
        if reached > 1:
            plotted.text((0.5 + reached) / 2, 0.88, "too far", ha="center", color="dimgray")
    below[0].set_ylabel("how often the last node is right")
    below[0].text(len(depths) + 0.4, chance + 0.02, "chance", ha="right", color="dimgray")
    return save(figure, folder / "accuracy.png")


def show_way(axes: Axes, graph: ga.Graph) -> None:
    """Nodes on a circle; the first, the last, and a shortest way between them are marked."""
    drawn = graph.without_self_loops().to_networkx().to_undirected()
    last = graph.num_dst - 1
    turn = [math.radians(105 + 330 * node / last) for node in range(last + 1)]
    place = {node: (math.cos(angle), math.sin(angle)) for node, angle in enumerate(turn)}
    way = networkx.shortest_path(drawn, 0, last)
    colors = [ORANGE if node in way else BLUE for node in place]
    on_way = {"edgelist": list(itertools.pairwise(way)), "edge_color": ORANGE, "width": 2.5}
    networkx.draw_networkx_edges(drawn, place, ax=axes, edge_color=BLUE, alpha=0.3)
    networkx.draw_networkx_edges(drawn, place, ax=axes, **on_way)
    networkx.draw_networkx_nodes(drawn, place, list(place), 60, colors, ax=axes)
    for node, word, side in ((0, "first", "right"), (last, "last", "left")):
        axes.text(*place[node], f"  {word}  ", ha=side, va="bottom")
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.1, 1.25), aspect="equal")
    axes.axis("off")
