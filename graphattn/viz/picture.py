"""Nodes and arrows, laid out and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from torch import Tensor

from graphattn.viz.axes import BLUE, DARK, GREY, ORANGE, RADIUS, axes_or_new, bare, points
from graphattn.viz.curves import Array, curves, heads, middles
from graphattn.viz.labels import add_labels
from graphattn.viz.layouts import Arranged, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection

CURVES = {"line": "arc", "bipartite": "straight"}


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


def lay_out(arranged: Arranged, strength: Tensor, present: Tensor, highlight: list[int]) -> Picture:
    """Arrows for the pairs that are `present`, (dst.count, src.count), each with its strength."""
    at_dst, at_src = positions(arranged, present)
    two = arranged.name == "bipartite"
    places = numpy.concatenate([at_dst, at_src]) if two else at_dst
    apart = _spacing(places)
    unit = apart if arranged.name == "given" else 1.0
    radius = RADIUS * min(unit, apart)
    marked = numpy.zeros(len(places), dtype=bool)
    marked[arranged.dst.label[highlight].numpy()] = True

    dst, src = present.numpy().nonzero()
    loop = (dst == src) & (not two)
    order = numpy.lexsort([marked[dst], loop])  # arrows before loops, the marked ones last
    dst, src, num = dst[order], src[order], int((~loop).sum())
    gap = radius * (1.4 if loop.any() else 1.15)
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


def draw(
    picture: Picture, labels: tuple[list[str], bool], ax: Axes | None, *, faintest: float
) -> Axes:
    """Draw arrows, loops, nodes and labels; arrows are the paler the weaker, down to `faintest`."""
    reach = _reach(picture)
    width, height = numpy.ptp(reach, axis=0) / picture.unit if len(reach) else (1.0, 1.0)
    inch = min(0.1 * picture.unit / picture.radius, 14 / width, 8 / height)
    ax = axes_or_new(ax, max(inch * width, 3.8), max(inch * height, 1.0) + 0.8)
    bare(ax)
    ax.set_aspect("equal")
    if len(reach):
        ax.update_datalim(reach)
        ax.autoscale_view()
    scale = _points_per_unit(ax)
    _add_arrows(ax, picture, scale, faintest)
    color = [ORANGE if marked else DARK for marked in picture.marked]
    nodes = _circles(ax, picture.places, picture.radius, facecolors=color)
    nodes.set(gid="nodes", zorder=3, edgecolor="none")
    words, shown = labels
    add_labels(ax, picture.arranged, picture.places, words, scale * picture.radius, shown=shown)
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
    from matplotlib.collections import PathCollection, PolyCollection
    from matplotlib.path import Path

    strength, num = numpy.abs(picture.strength), len(picture.curve)
    width = min(2.2, max(0.4, 0.2 * scale * picture.radius)) * (0.2 + 0.8 * strength)
    width *= numpy.where(picture.loud, 1.5, 1.0)
    color = _colors(picture, width / scale, faintest)
    head = heads(picture.curve, picture.radius * (0.5 + 0.35 * strength[:num]))
    curve = picture.curve.copy()
    curve[:, 3] = head.mean(1)  # lines end inside of the heads
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    lines = PathCollection([Path(four, codes) for four in curve], facecolors="none")
    tips = PolyCollection(list(head), facecolors=color[:num], edgecolors="none")
    for collection, name in ((lines, "edges"), (tips, "heads")):
        collection.set(gid=name, zorder=2)
        ax.add_collection(collection, autolim=False)
    rings = _circles(ax, picture.places[picture.loops], 1.3 * picture.radius, facecolors="none")
    rings.set(gid="loops", zorder=2)
    for collection, part in ((lines, slice(num)), (rings, slice(num, None))):
        dashes = ["--" if value < 0 else "-" for value in picture.strength[part]]
        collection.set(edgecolor=color[part], linewidth=width[part], linestyle=dashes or "-")


def _circles(ax: Axes, places: Array, radius: float, **options: Any) -> EllipseCollection:
    from matplotlib.collections import EllipseCollection

    across = numpy.full(len(places), 2 * radius)
    at = {"offsets": places, "offset_transform": ax.transData}
    circles = EllipseCollection(across, across, 0 * across, units="xy", **at, **options)
    ax.add_collection(circles, autolim=False)
    return circles


def _colors(picture: Picture, width: Array, faintest: float) -> Array:
    """RGBA of every arrow and loop, (E + L, 4)."""
    from matplotlib.colors import to_rgb

    quiet = to_rgb(GREY if picture.marked.any() else BLUE)
    rgb = numpy.where(picture.loud[:, None], to_rgb(ORANGE), quiet)
    length = numpy.linalg.norm(picture.curve[:, 3] - picture.curve[:, 0], axis=1)
    area = numpy.ptp(_reach(picture), axis=0).prod() if len(picture.places) else 1.0
    base = faintest + (1 - faintest) * numpy.abs(picture.strength)
    alpha = 0.95 * _thinned(base, length * width[: len(length)] / area)
    if picture.marked.any():
        alpha = numpy.where(picture.loud, 0.95 * base, 0.6 * alpha)
    return numpy.concatenate([rgb, alpha[:, None]], 1)


def _thinned(alpha: Array, ink: Array) -> Array:
    """Less of the opacity of all, and least of the strongest, where arrows would cover the picture.

    Args:
        alpha: Opacity of arrows and loops, (E + L,), 0 to 1.
        ink: The part of the picture that each arrow covers, (E,).
    """
    power = 1.0
    while (ink * alpha[: len(ink)] ** power).sum() > 0.6 and power < 6:
        power *= 1.5
    alpha = alpha**power
    return alpha * min(1.0, max(0.04, 0.6 / max((ink * alpha[: len(ink)]).sum(), 0.6)))
