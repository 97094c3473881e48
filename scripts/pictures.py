"""Draws the picture of the README: six graphs on sixteen nodes, and who attends to whom.

python scripts/pictures.py          writes docs/images/graphs.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import networkx
import numpy as np
from matplotlib.axes import Axes

import graphattn as ga

ROOT = Path(__file__).resolve().parents[1]
BLUE, GREY = "#0072b2", "#c8c8c8"


def panels() -> list[tuple[str, ga.Graph, dict[int, tuple[float, float]]]]:
    """Title, graph and layout of each column."""
    grid = {node: (float(node % 4), -float(node // 4)) for node in range(16)}
    angle = 2 * np.pi * np.arange(16) / 16
    circle = {node: (np.sin(a), np.cos(a)) for node, a in enumerate(angle)}
    window = ga.sliding_window(16, 2)
    return [
        ("complete(16)", ga.complete(16), circle),
        ("causal(16)", ga.causal(16), circle),
        ("sliding_window(16, 2)\n& causal(16)", window & ga.causal(16), circle),
        ("sliding_window(16, 2)\n| hubs(16, [0])", window | ga.hubs(16, [0]), circle),
        ("shifted_windows(\n(4, 4), 2, shift=1)", ga.shifted_windows((4, 4), 2, shift=1), grid),
        ("expander(16, 3)", ga.expander(16, 3, seed=0), circle),
    ]


def draw_nodes(axes: Axes, graph: ga.Graph, place: dict[int, tuple[float, float]]) -> None:
    """The edges from source to destination; those that node 5 hears stand out."""
    drawn = graph.without_self_loops().to_networkx()
    for colour, width, edges in (
        (GREY, 0.6, [(u, v) for u, v in drawn.edges if v != 5]),
        (BLUE, 1.4, [(u, v) for u, v in drawn.edges if v == 5]),
    ):
        networkx.draw_networkx_edges(
            drawn,
            place,
            edges,
            ax=axes,
            edge_color=colour,
            width=width,
            arrowsize=5,
            node_size=40,
            connectionstyle="arc3,rad=0.12",
        )
    colours = [BLUE if node == 5 else "#404040" for node in drawn.nodes]
    networkx.draw_networkx_nodes(drawn, place, ax=axes, node_size=40, node_color=colours)
    axes.margins(0.12)
    axes.axis("off")


def draw_mask(axes: Axes, graph: ga.Graph) -> None:
    """Rows are destinations, columns sources; the row of node 5 stands out."""
    shade = graph.mask().double().numpy() * 0.35
    shade[5] *= 2.2
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(np.arange(-0.5, 16), labels=[])
    axes.set_yticks(np.arange(-0.5, 16), labels=[])
    axes.grid(color="white", linewidth=0.8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    axes.set_xlabel(f"{graph.num_edges} edges, {100 * graph.density:.0f}%", fontsize=9)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "graphs.png")
    options = parser.parse_args(argv)
    columns = panels()
    figure, axes = plt.subplots(2, len(columns), figsize=(13, 5.2), layout="constrained")
    for (title, graph, place), (above, below) in zip(columns, axes.T, strict=True):
        above.set_title(title, fontsize=9, family="monospace")
        draw_nodes(above, graph, place)
        draw_mask(below, graph)
    axes[1, 0].set_ylabel("destination (who attends)", fontsize=9)
    figure.supxlabel("source (who is attended to); node 5 and what it hears in full colour", size=9)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
