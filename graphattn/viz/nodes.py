"""Nodes and arrows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graphattn.graphs import Graph
from graphattn.graphs.graph import require_graph
from graphattn.viz.axes import graph_title, set_title
from graphattn.viz.cells import grouping, shares, summed
from graphattn.viz.inputs import both_labels, destination_list, edge_weights
from graphattn.viz.labels import words_of
from graphattn.viz.layouts import arrange
from graphattn.viz.picture import draw, lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_graph(
    graph: Graph,
    *,
    labels: Sequence[Any] | None = None,
    layout: Any = "auto",
    highlight: int | Iterable[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""A graph as nodes and arrows; an arrow points from a source to who attends to it.

    A ring around a node is an edge to itself. On a line, edges to later nodes are arcs above it and
    edges to earlier ones are below. Parallel edges are one arrow, the wider the more they are. More
    than 200 nodes are drawn in groups, and arrows between groups are as strong as the share of
    their pairs that are edges.

    Args:
        graph: Any graph.
        labels: One for each node, or for two columns a pair, of the destinations and of the
            sources; by default numbers, or the names that networkx's nodes had, where they fit.
        layout: "auto" puts sequences on a "line", cells of a grid on a "grid", different sources
            and destinations into two columns ("bipartite"), most others where networkx's
            kamada_kawai has them, and graphs of most pairs on a "circle". Or one of these; or the
            name of another of networkx's layouts, such as "spring"; or the shape of a grid, a tuple
            of 1 to 3 integers; or positions, (n, 2) in x and y.
        highlight: Destinations, one or several, whose incoming edges are marked.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes. The collections on it have the gids "edges" and "heads" (an arrow for each pair,
        ordered by destination, then source, those that are marked last), "loops" and "nodes".

    Raises:
        ValueError: If labels or layout don't fit the graph.
        IndexError: If a highlighted node is not a destination.

    Example:
        >>> from graphattn import causal, sliding_window, viz
        >>> viz.draw_graph(causal(8) & sliding_window(8, 2), highlight=5).get_title()
        '(causal(8) & sliding_window(8, 2))\n8 nodes, 21 edges, 32.8% of all pairs'
    """
    arranged = arrange(require_graph(graph), layout)
    sides = arranged.dst, arranged.src
    if note := grouping(graph, *sides):
        strength, faintest = shares(graph, *sides), 0.35
        note += ", arrows by the share of pairs that are edges"
    else:
        strength, faintest = summed(graph, torch.ones(graph.num_edges), *sides), 1.0
    picture = lay_out(arranged, strength, strength > 0, destination_list(highlight, graph))
    words = words_of(graph, arranged, both_labels(labels, graph))
    ax = draw(picture, words, ax, faintest=faintest)
    set_title(ax, *graph_title(graph), note)
    return ax


def draw_attention(
    graph: Graph,
    weights: Any,
    *,
    labels: Sequence[Any] | None = None,
    layout: Any = "auto",
    highlight: int | Iterable[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""A graph as nodes and arrows, the wider and the darker the more weight an edge has.

    Weights of parallel edges, and of all edges between two groups where nodes are drawn in groups,
    add up. The strongest arrow is as wide as arrows get; a negative weight is drawn dashed.

    Args:
        graph: Any graph.
        weights: (E,), or (E, heads), of which the mean over the heads is drawn; in edge order, as
            `attention_weights` returns them for one of a batch.
        labels, layout, highlight, ax: As in `draw_graph`.

    Returns:
        The axes, as from `draw_graph`.

    Raises:
        ValueError: If weights, labels or layout don't fit the graph, or a weight is not finite.
        IndexError: If a highlighted node is not a destination.

    Example:
        >>> import torch
        >>> from graphattn import attention_weights, causal, viz
        >>> graph, (q, k) = causal(8), torch.randn(2, 8, 4, 16)
        >>> viz.draw_attention(graph, attention_weights(q, k, graph)).get_title()
        'weights over causal(8)\nmean of 4 heads'
    """
    values, mean = edge_weights(weights, require_graph(graph))
    arranged = arrange(graph, layout)
    sides = arranged.dst, arranged.src
    total, number = (summed(graph, x, *sides) for x in (values, torch.ones_like(values)))
    picture = lay_out(arranged, total, number > 0, destination_list(highlight, graph))
    words = words_of(graph, arranged, both_labels(labels, graph))
    ax = draw(picture, words, ax, faintest=0.1)
    note = grouping(graph, *sides)
    set_title(ax, f"weights over {graph}", mean, note and f"{note}, weights summed")
    return ax
