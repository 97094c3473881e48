"""Axes to draw on: those of the caller, or those of a figure of fitting size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphattn.graphs import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, DARK = "#0072B2", "#D55E00", "#a8a8a8", "#404040"
"""Colors that the color-blind can tell apart (Okabe and Ito 2008), and greys."""

FONT = 9.0  # points
CHARACTER = 0.58  # mean width of a character, as a part of its font size
RADIUS = 0.2  # of a node, where neighbors are 1 apart


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes that were passed, or new ones in a figure of that many inches."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        figure = Figure(figsize=(width, height), layout="constrained")
        near = figure.add_gridspec(left=0.04, right=0.96, bottom=0.04, top=0.86)  # to the outcome
        return figure.add_subplot(near[0])
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be a matplotlib Axes, got {type(ax).__name__}; pass one of them")
    return ax


def points(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes in points, before any layout moves them."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    return box.width * 72 / dpi, box.height * 72 / dpi


def set_title(ax: Axes, *lines: str) -> None:
    """Lines that are not empty, broken where they are wider than the axes."""
    most = max(24, int(points(ax)[0] / (FONT * CHARACTER)))
    broken = [part for line in lines for part in textwrap.wrap(line, most)]
    ax.set_title("\n".join(broken), fontsize=FONT, parse_math=False)


def graph_title(graph: Graph) -> tuple[str, str]:
    """The graph, and how large it is."""
    return str(graph), repr(graph).removeprefix(f"{graph}: ")


def bare(ax: Axes) -> None:
    """No frame and no ticks."""
    ax.set(xticks=[], yticks=[])
    ax.set_frame_on(False)


def label_ticks(axis: Any, places: Sequence[float], words: Sequence[str], room: float) -> None:
    """Words along an axis whose places are `room` points apart, as many as are readable."""
    font = min(FONT, max(5.0, 0.9 * room))
    step = max(1, math.ceil(font / max(room, 0.01) - 0.1))
    longest = max(map(len, words), default=0)
    upright = axis.axis_name == "x" and longest * CHARACTER * font > 0.65 * room * step
    options = {"fontsize": font, "rotation": 90 if upright else 0, "parse_math": False}
    axis.set_ticks(places[::step], words[::step], **options)
    axis.set_tick_params(length=0)
