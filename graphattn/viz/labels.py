"""The words at nodes: inside of them where they fit, else beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphattn.graphs import Graph
from graphattn.viz.axes import CHARACTER, FONT, RADIUS, label_ticks
from graphattn.viz.cells import Groups
from graphattn.viz.layouts import Arranged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from graphattn.viz.curves import Array

Words = list[str] | None
SMALLEST = 5.0  # points, of a word inside a node
FEW = 60  # nodes whose names are drawn beside them without being asked for


def words_of(
    graph: Graph, arranged: Arranged, labels: tuple[Words, Words]
) -> tuple[list[str], bool]:
    """A word for every drawn node, destinations first, and whether it must be shown.

    A group has the word of its first node.

    Raises:
        ValueError: If destinations and sources are drawn as one and have different labels.
    """
    if labels[0] != labels[1] and arranged.name != "bipartite":
        raise ValueError(
            "destinations and sources are the same nodes in this layout, got labels that differ; "
            'give one list, or layout="bipartite"'
        )
    names = getattr(graph, "node_labels", None)
    shown = labels[0] is not None or (names is not None and graph.num_dst <= FEW)
    words = _of_groups(labels[0] or names, arranged.dst)
    if arranged.name == "bipartite":
        words += _of_groups(labels[1] or names, arranged.src)
    return words, shown


def _of_groups(words: Any, groups: Groups) -> list[str]:
    first = groups.first.tolist()
    return [str(node if words is None else words[node]) for node in first]


def add_labels(
    ax: Axes,
    arranged: Arranged,
    places: Array,
    words: list[str],
    radius: float,
    shown: bool,
) -> None:
    """Write words at places (n, 2); `radius` of a node is in points."""
    if arranged.name == "bipartite":
        _head_columns(ax, places)
    font = min(FONT, 1.2 * radius, 1.5 * radius / (CHARACTER * max(map(len, words), default=1)))
    if font >= SMALLEST:
        inside = {"ha": "center", "va": "center_baseline", "color": "white", "zorder": 4}
        inside |= {"fontsize": font, "parse_math": False}
        for place, word in zip(places, words):
            ax.text(place[0], place[1], word, **inside)
    elif shown and arranged.name == "line":
        label_ticks(ax.xaxis, places[:, 0].tolist(), words, room=radius / RADIUS)
    elif shown:
        _beside(ax, arranged, places, words, radius)


def _head_columns(ax: Axes, places: Array) -> None:
    """Say which column holds what."""
    for x, word in zip(sorted(set(places[:, 0].tolist())), ("sources", "destinations")):
        ax.text(x, places[:, 1].max() + 0.6, word, fontsize=FONT, ha="center", va="bottom")


def _beside(ax: Axes, arranged: Arranged, places: Array, words: list[str], radius: float) -> None:
    """Outside of columns and circles, below all other nodes."""
    from matplotlib.patheffects import withStroke

    middle = places.mean(0) if len(places) else 0
    for place, word in zip(places, words):
        x, y = place - middle
        if arranged.name == "bipartite":
            x, y = (1 if x > 0 else -1), 0
        elif arranged.name != "circle":
            x, y = 0, -1
        length = (x * x + y * y) ** 0.5 or 1.0
        offset = (1.3 * radius + 2) * x / length, (1.3 * radius + 2) * y / length
        ax.annotate(
            word,
            place,
            offset,
            textcoords="offset points",
            fontsize=7,
            parse_math=False,
            ha="center" if abs(x) < 0.4 * length else ("left" if x > 0 else "right"),
            va="center" if abs(y) < 0.4 * length else ("bottom" if y > 0 else "top"),
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=4,
        )
