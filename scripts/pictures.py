"""Draws the pictures of the README and of docs/pictures.md.

python scripts/pictures.py          writes docs/images/graphs.png, viz.png and cache.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from string import ascii_lowercase

import networkx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

import graphattn as ga
from graphattn import viz
from graphattn.graphs.order import last_listener

ROOT = Path(__file__).resolve().parents[1]
GREY = "#c8c8c8"
SENTENCE = ("she", "sells", "sea", "shells", "by", "the", "sea", "shore")
ENGLISH = ("we", "drink", "warm", "milk", "and", "water")
GERMAN = ("wir", "trinken", "warme", "Milch")


def graphs() -> Figure:
    """Six graphs on sixteen nodes, and who attends to whom."""
    window = ga.sliding_window(16, 2)
    columns = [  # title, graph and layout
        ("complete(16)", ga.complete(16), "circle"),
        ("causal(16)", ga.causal(16), "circle"),
        ("sliding_window(16, 2)\n& causal(16)", window & ga.causal(16), "circle"),
        ("sliding_window(16, 2)\n| hubs(16, [0])", window | ga.hubs(16, [0]), "circle"),
        ("shifted_windows(\n(4, 4), 2, shift=1)", ga.shifted_windows((4, 4), 2, shift=1), "grid"),
        ("expander(16, 3)", ga.expander(16, 3, seed=0), "circle"),
    ]
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    axes = figure.subplots(2, len(columns))
    for (title, graph, layout), (above, below) in zip(columns, axes.T, strict=True):
        viz.draw_graph(graph.without_self_loops(), layout=layout, highlight=5, ax=above)
        above.set_title(title, fontsize=9, family="monospace")
        draw_mask(below, graph)
    axes[1, 0].set_ylabel("destination (who attends)", fontsize=9)
    figure.supxlabel("source (who is attended to); node 5 and what it hears in full color", size=9)
    return figure


def draw_mask(ax: Axes, graph: ga.Graph) -> None:
    """Rows are destinations, columns sources; the row of node 5 stands out."""
    shade = graph.mask().double().numpy() * 0.35
    shade[5] *= 2.2
    ax.imshow(shade, cmap="Oranges", vmin=0, vmax=1)
    ax.set_xticks(np.arange(-0.5, 16), labels=[])
    ax.set_yticks(np.arange(-0.5, 16), labels=[])
    ax.grid(color="white", linewidth=0.8)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_color(GREY)
    ax.set_xlabel(f"{graph.num_edges} edges, {100 * graph.density:.0f}%", fontsize=9)


def caches() -> Figure:
    """Which keys are kept while a sequence is written, for four graphs."""
    n = 32
    window, causal, hubs = ga.sliding_window(n, 5), ga.causal(n), ga.hubs(n, [0, 1])
    columns = [  # title and graph
        ("causal(32)", causal),
        ("sliding_window(32, 5)\n& causal(32)", window & causal),
        (
            "(sliding_window(32, 5) | hubs(32, [0, 1]))\n& causal(32)",
            (window | hubs) & causal,
        ),
        ("expander(32, 4) & causal(32)", ga.expander(n, 4, seed=0) & causal),
    ]
    figure = Figure(figsize=(13, 4.1), layout="constrained")
    for (title, graph), ax in zip(columns, figure.subplots(1, len(columns)), strict=True):
        last, node = last_listener(graph), torch.arange(n)
        state = torch.where(last >= node[:, None], 2, 1)
        state[node > node[:, None]] = 0
        state[graph.mask()] = 3
        colors = ListedColormap(["#e4e4e4", "#ffffff", "#f9cf9c", "#d9660f"])
        ax.imshow(state, cmap=colors, vmin=0, vmax=3)
        ax.set_title(title, fontsize=9, family="monospace")
        ax.set_xlabel(f"room for {ga.nn.KVCache(graph).capacity} keys", fontsize=9)
        ax.set_xticks(np.arange(0, n, 8))
        ax.set_yticks(np.arange(0, n, 8))
    figure.axes[0].set_ylabel("the node that comes", fontsize=9)
    figure.suptitle("what a KVCache holds when each of 32 nodes comes", fontsize=11)
    figure.supxlabel(
        "the keys of all nodes: dark, heard now; light, kept for a later node; white, dropped; "
        "grey, yet to come",
        size=9,
    )
    return figure


def contact_sheet() -> Figure:
    """What each function of viz draws: words attend by their letters, patches by their colors."""
    window = ga.causal(len(SENTENCE)) & ga.sliding_window(len(SENTENCE), 3)
    cross, club = ga.bipartite(4, 6), ga.from_networkx(networkx.karate_club_graph())
    across, within = by_letters(GERMAN, ENGLISH, cross), by_letters(SENTENCE, SENTENCE, window)
    text = viz.graph_text(ga.causal(24) & (ga.sliding_window(24, 3) | ga.hubs(24, [0])))

    figure = Figure(figsize=(13, 11.5), layout="constrained")
    (a, b, c), (d, e, f), (g, h, i) = figure.subplots(3, 3)
    viz.draw_graph(window, labels=SENTENCE, highlight=5, ax=a)
    viz.draw_graph(ga.neighborhood((5, 6), 1), highlight=8, ax=b)
    viz.draw_graph(club, highlight=0, ax=c)
    viz.draw_attention(window, within, labels=SENTENCE, ax=d)
    viz.draw_attention(cross, across, labels=(GERMAN, ENGLISH), ax=e)
    viz.alignment(across, ENGLISH, GERMAN, f, graph=cross)
    viz.attention_matrix(within, window, SENTENCE, g)
    draw_pagoda(h)
    i.text(0.5, 0.5, text, family="monospace", size=7, ha="center", va="center")
    i.axis("off")
    names = ["draw_graph"] * 3 + ["draw_attention"] * 2 + ["alignment", "attention_matrix"]
    for ax, name in zip(figure.axes, [*names, "attention_over_image", "graph_text"]):
        ax.set_title(f"viz.{name}\n{ax.get_title()}", fontsize=9)
    return figure


def draw_pagoda(ax: Axes) -> None:
    """Patches of a photograph attend to those of a similar mean color."""
    pixels = torch.tensor(load_sample_image("china.jpg")[3:423]).float()  # (420, 640, 3)
    color = pixels.view(12, 35, 16, 40, 3).mean(dim=(1, 3)).view(-1, 1, 3)
    alike = -(color[:, None] - color).square().sum(-1) / 2000  # (patches, patches, 1)
    graph = ga.complete(len(color))
    weights = ga.attention_weights(color, color, graph, bias=alike.flatten(0, 1), scale=0)
    viz.attention_over_image(pixels.mean(dim=2), weights, graph, 88, (12, 16), ax)


def by_letters(dst: tuple[str, ...], src: tuple[str, ...], graph: ga.Graph) -> torch.Tensor:
    """How much words attend to words, (E, 1): by the letters that they share, dot products."""
    letters = [[[float(word.lower().count(c)) for c in ascii_lowercase]] for word in dst + src]
    query, key = torch.tensor(letters).split([len(dst), len(src)])
    return ga.attention_weights(query, key, graph, scale=1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="a folder")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in (("graphs", graphs), ("viz", contact_sheet), ("cache", caches)):
        path = options.out / f"{name}.png"
        draw().savefig(path, dpi=110)
        Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)  # a third in size
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
