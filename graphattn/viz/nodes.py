"""Nodes and arrows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.graph import require_graph
from graphattn.viz.axes import (
    BLUE,
    DARK,
    GREY,
    ORANGE,
    axes_or_new,
    bare,
    graph_title,
    points,
    set_title,
    weights_title,
)
from graphattn.viz.cells import grouping, shares, summed
from graphattn.viz.curves import Array, curves, heads, middles
from graphattn.viz.inputs import both_labels, destination_list, edge_weights
from graphattn.viz.labels import add_labels, words_of
from graphattn.viz.layouts import Arranged, arrange, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADIUS = 0.2  # of a node, where neighbors are 1 apart
CURVES = {"line": "arc", "bipartite": "straight"}


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
        labels: One for each node, or a pair, of the destinations and of the sources; by default
            numbers, or the names that networkx's nodes had, where they fit.
        layout: "auto" puts sequences on a "line", cells of a grid on a "grid", different sources
            and destinations into two columns ("bipartite"), most others where networkx's
            kamada_kawai has them, and graphs of most pairs on a "circle". Or one of these; or the
            name of another of networkx's layouts, such as "spring"; or the shape of a grid, a tuple
            of 1 to 3 integers; or positions, (n, 2) in x and y.
        highlight: Destinations, one or several, whose incoming edges are marked.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes. The collections on it have the gids "edges" and "heads" (an arrow for each pair,
        ordered by destination, then source), "loops" and "nodes".

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
        strength, note = (
            shares(graph, *sides),
            f"{note}, arrows by the share of pairs that are edges",
        )
    else:
        strength = summed(graph, torch.ones(graph.num_edges), *sides)
    picture = _picture(graph, arranged, strength, strength > 0, highlight)
    ax = _draw(
        picture,
        words_of(graph, arranged, both_labels(labels, graph)),
        faintest=0.25 if note else 1.0,
        ax=ax,
    )
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
    """A graph as nodes and arrows, the wider and the darker the more weight an edge has.

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
        'weights over causal(8), mean of 4 heads'
    """
    values, mean = edge_weights(weights, require_graph(graph))
    arranged = arrange(graph, layout)
    sides = arranged.dst, arranged.src
    total, number = (summed(graph, x, *sides) for x in (values, torch.ones_like(values)))
    picture = _picture(graph, arranged, total, number > 0, highlight)
    ax = _draw(picture, words_of(graph, arranged, both_labels(labels, graph)), faintest=0.1, ax=ax)
    note = grouping(graph, *sides)
    set_title(ax, weights_title(graph, mean), note and f"{note}, weights summed")
    return ax


class Picture(NamedTuple):
    """All that is drawn, in units of the picture: E arrows and n nodes.

    Attributes:
        arranged: The layout.
        places: Where the nodes are, (n, 2): all destinations, then the sources if they are others.
        unit: How far neighbors are apart.
        radius: Of a node.
        marked: Whether a node is highlighted, bool (n,).
        curve: Control points of the arrows, (E, 4, 2).
        loops: The nodes that attend to themselves, (L,).
        strength: -1 to 1, of the arrows and then of the loops, (E + L,).
        loud: Whether each of these is marked, bool (E + L,).
    """

    arranged: Arranged
    places: Array
    unit: float
    radius: float
    marked: Array
    curve: Array
    loops: Array
    strength: Array
    loud: Array


def _picture(
    graph: Graph,
    arranged: Arranged,
    strength: Tensor,
    present: Tensor,
    highlight: int | Iterable[int] | None,
) -> Picture:
    """Lay out the pairs that are `present`, (dst.count, src.count), with the strength of each."""
    at_dst, at_src = positions(arranged, present)
    two = arranged.name == "bipartite"
    places = numpy.concatenate([at_dst, at_src]) if two else at_dst
    apart = _spacing(places)
    unit = apart if arranged.name == "given" else 1.0
    radius = RADIUS * min(unit, apart)
    dst, src = present.numpy().nonzero()
    loop = (dst == src) & (not two)
    gap = radius * (1.4 if loop.any() else 1.15)
    marked = numpy.zeros(len(places), dtype=bool)
    marked[arranged.dst.label.numpy()[destination_list(highlight, graph)]] = True
    order = numpy.lexsort([marked[dst], loop])  # arrows before loops, the marked ones last
    dst, src = dst[order], src[order]
    num = int((~loop).sum())
    curve = curves(at_src[src[:num]], at_dst[dst[:num]], gap, CURVES.get(arranged.name, "bent"))
    values = strength.numpy()[dst, src]
    values = values / max(numpy.abs(values).max(initial=0), 1e-300)
    return Picture(arranged, places, unit, radius, marked, curve, dst[num:], values, marked[dst])


def _spacing(places: Array) -> float:
    """How far neighbors are apart; some may be closer, or all at one place."""
    if len(places) < 2:
        return 1.0
    apart = numpy.linalg.norm(places[:, None] - places, axis=-1)
    extent = apart.max() or 1.0
    nearest = (apart + extent * numpy.eye(len(places))).min(1)
    return max(float(numpy.quantile(nearest, 0.4)), extent / (4 * len(places)))


def _draw(
    picture: Picture,
    labels: tuple[list[str], bool],
    *,
    faintest: float,
    ax: Axes | None,
) -> Axes:
    """Draw arrows, loops and nodes, then their labels; weak arrows are pale, down to `faintest`."""
    reach = _reach(picture)
    width, height = numpy.ptp(reach, axis=0) / picture.unit if len(reach) else (1.0, 1.0)
    inch = min(0.5, 14 / width, 8 / height)
    ax = axes_or_new(ax, max(inch * width, 3.8), max(inch * height, 1.0) + 0.8)
    bare(ax)
    ax.set_aspect("equal")
    if len(reach):
        ax.update_datalim(reach)
        ax.autoscale_view()
    scale = _points_per_unit(ax)
    _add_arrows(ax, picture, scale, faintest)
    _add_nodes(ax, picture)
    words, shown = labels
    radius = scale * picture.radius
    add_labels(ax, picture.arranged, picture.places, words, radius, shown=shown)
    return ax


def _reach(picture: Picture) -> Array:
    """Points that the picture must contain."""
    around = [picture.places - 2 * picture.radius, picture.places + 2 * picture.radius]
    if picture.arranged.name == "bipartite":
        around.append(picture.places + numpy.array([0.0, 1.4]))  # the heads of the columns
    return numpy.concatenate([*around, middles(picture.curve)])


def _points_per_unit(ax: Axes) -> float:
    """Points to a unit of both axes, whose aspect is equal."""
    extents = [abs(high - low) for low, high in (ax.get_xlim(), ax.get_ylim())]
    return min(size / extent for size, extent in zip(points(ax), extents))


def _add_arrows(ax: Axes, picture: Picture, scale: float, faintest: float) -> None:
    """Arrows and loops, on axes of `scale` points to a unit."""
    from matplotlib.collections import EllipseCollection, PathCollection, PolyCollection
    from matplotlib.path import Path

    strength, num = numpy.abs(picture.strength), len(picture.curve)
    widest = min(2.2, max(0.4, 0.2 * scale * picture.radius))
    width = widest * (0.2 + 0.8 * strength)
    color = _colors(picture, width / scale, faintest)
    size = picture.radius * (0.5 + 0.35 * strength[:num])
    head = heads(picture.curve, size)
    lines = picture.curve.copy()
    lines[:, 3] = head.mean(1)
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    dashes = ["--" if value < 0 else "-" for value in picture.strength]
    lines = PathCollection([Path(points, codes) for points in lines], facecolors="none")
    lines.set(edgecolor=color[:num], linewidth=width[:num], linestyle=dashes[:num] or "-")
    tips = PolyCollection(list(head), facecolors=color[:num], edgecolors="none")
    ring = numpy.full(len(picture.loops), 2.6 * picture.radius)
    at = {"offsets": picture.places[picture.loops], "offset_transform": ax.transData}
    rings = EllipseCollection(ring, ring, 0 * ring, units="xy", facecolors="none", **at)
    rings.set(edgecolor=color[num:], linewidth=width[num:], linestyle=dashes[num:] or "-")
    for collection, name in ((lines, "edges"), (tips, "heads"), (rings, "loops")):
        collection.set(gid=name, zorder=2 if name != "heads" else 2.1)
        ax.add_collection(collection, autolim=False)


def _colors(picture: Picture, width: Array, faintest: float) -> Array:
    """RGBA of every arrow and loop, (E + L, 4); the more of the picture is ink, the paler."""
    from matplotlib.colors import to_rgb

    quiet = to_rgb(GREY if picture.marked.any() else BLUE)
    rgb = numpy.where(picture.loud[:, None], to_rgb(ORANGE), quiet)
    length = numpy.linalg.norm(picture.curve[:, 3] - picture.curve[:, 0], axis=1)
    area = numpy.ptp(_reach(picture), axis=0).prod() if len(picture.places) else 1.0
    ink = float((length * width[: len(length)]).sum() / area)
    alpha = faintest + (0.95 - faintest) * numpy.abs(picture.strength)
    pale = min(0.6 if picture.marked.any() else 1.0, max(0.04, 0.6 / max(ink, 1e-9)))
    alpha = numpy.where(picture.loud, alpha, pale * alpha)
    return numpy.concatenate([rgb, alpha[:, None].clip(0, 1)], 1)


def _add_nodes(ax: Axes, picture: Picture) -> None:
    from matplotlib.collections import EllipseCollection

    across = numpy.full(len(picture.places), 2 * picture.radius)
    at = {"offsets": picture.places, "offset_transform": ax.transData}
    color = [ORANGE if marked else DARK for marked in picture.marked]
    nodes = EllipseCollection(across, across, 0 * across, units="xy", facecolors=color, **at)
    nodes.set(gid="nodes", zorder=3, edgecolor="none")
    ax.add_collection(nodes, autolim=False)
