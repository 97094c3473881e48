"""Heat maps of weights: a row for each destination, a column for each source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.graph import require_graph
from graphattn.graphs.sequence import bipartite
from graphattn.viz.axes import axes_or_new, bare, label_ticks, points, set_title
from graphattn.viz.cells import Groups, group, grouping, summed
from graphattn.viz.inputs import both_labels, edge_weights, node_words, real

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_EDGE = "gainsboro"


def attention_matrix(
    weights: Any, graph: Graph, labels: Sequence[Any] | None = None, ax: Axes | None = None
) -> Axes:
    """Weights as a heat map; pairs that are no edge are grey, edges of weight 0 nearly white.

    Weights of parallel edges add up, and so do those of a cell, where more than 200 destinations or
    sources are drawn in groups. If a weight is negative, red is below 0 and blue above.

    Args:
        weights: (E,), or (E, heads), of which the mean over the heads is drawn; in edge order.
        graph: Who attends to whom.
        labels: One for each node, or a pair, of the destinations and of the sources; by default
            numbers.
        ax: Where to draw; by default a new figure, with a color bar.

    Returns:
        The axes; the array of its image is masked where there is no edge.

    Raises:
        ValueError: If weights or labels don't fit the graph, or a weight is not finite.

    Example:
        >>> import torch
        >>> from graphattn import causal, viz
        >>> ax = viz.attention_matrix(torch.tensor([1.0, 0.25, 0.75]), causal(2))
        >>> ax.images[0].get_array().tolist()
        [[1.0, None], [0.25, 0.75]]
    """
    values, mean = edge_weights(weights, require_graph(graph))
    words = both_labels(labels, graph)
    table = _table(graph, values)
    top = float(numpy.abs(table.total.filled(0)).max(initial=0)) or 1.0
    if bool((values < 0).any()):
        ax = _heat_map(table, words, ax, cmap="RdBu", limits=(-top, top))
    else:
        ax = _heat_map(table, words, ax, cmap="Oranges", limits=(0, top))
    ax.set(xlabel="source", ylabel="destination")
    set_title(ax, f"weights over {graph}", mean, table.note)
    return ax


def alignment(
    weights: Any,
    src_tokens: Sequence[Any],
    dst_tokens: Sequence[Any],
    ax: Axes | None = None,
    *,
    graph: Graph | None = None,
) -> Axes:
    """Which source token each output token attends to, as Bahdanau et al. 2015, figure 3, draw it.

    Black is 0 and white is 1. More than 200 tokens are drawn in groups, whose weights add up.

    Args:
        weights: (num_dst, num_src), or, with `graph`, (E,) or (E, heads) in its edge order, of
            which the mean over the heads is drawn.
        src_tokens: What is attended to, on the horizontal axis: a string or num_src words.
        dst_tokens: What attends, on the vertical axis: a string or num_dst words.
        ax: Where to draw; by default a new figure, with a color bar.
        graph: Whose edges the weights belong to; num_src sources, num_dst destinations.

    Returns:
        The axes.

    Raises:
        ValueError: If weights and tokens don't fit each other, or a weight is not finite.

    Example:
        >>> import torch
        >>> from graphattn import viz
        >>> ax = viz.alignment(torch.eye(2), ["la", "maison"], ["the", "house"])
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['la', 'maison']
    """
    if graph is None:
        matrix = real("weights", weights)
        if matrix.ndim != 2:
            raise ValueError(
                "weights must be (num_dst, num_src), or those of the edges of a graph that is "
                f"passed, as graph=...; got {tuple(matrix.shape)}"
            )
        graph, values, mean = bipartite(*matrix.shape), matrix.flatten(), ""
    else:
        values, mean = edge_weights(weights, require_graph(graph))
    dst_words = node_words("dst_tokens", dst_tokens, graph.num_dst)
    src_words = node_words("src_tokens", src_tokens, graph.num_src)
    table = _table(graph, values)
    table = table._replace(total=numpy.ma.filled(table.total, 0.0))
    limits = (0.0, float(table.total.max(initial=1.0)))
    ax = _heat_map(table, (dst_words, src_words), ax, cmap="gray", limits=limits)
    ax.xaxis.tick_top()
    set_title(ax, "what each row attends to", mean, table.note)
    return ax


class Table(NamedTuple):
    """Sums of weights, (rows, columns), masked where there is no edge; the groups they are of."""

    total: Any
    dst: Groups
    src: Groups
    note: str


def _table(graph: Graph, values: Tensor) -> Table:
    dst, src = group(graph.num_dst), group(graph.num_src)
    total, number = (summed(graph, x, dst, src) for x in (values, torch.ones_like(values)))
    note = grouping(graph, dst, src)
    masked = numpy.ma.masked_array(total.numpy(), mask=(number == 0).numpy())
    return Table(masked, dst, src, note and f"{note}, weights summed")


def _heat_map(
    table: Table,
    words: tuple[list[str] | None, list[str] | None],
    ax: Axes | None,
    *,
    cmap: str,
    limits: tuple[float, float],
) -> Axes:
    """Draw the table in square cells, on axes that count nodes."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    rows, columns = table.total.shape
    inch = min(0.3, 8 / max(rows, columns, 1))
    made = ax is None
    ax = axes_or_new(ax, max(inch * columns, 2.4) + 1.6, max(inch * rows, 2.0) + 1.0)
    if rows == 0 or columns == 0:
        bare(ax)
        return ax
    (down,), (across,) = table.dst.side, table.src.side
    image = ax.imshow(
        table.total,
        cmap=colormaps[cmap].with_extremes(bad=NO_EDGE),
        vmin=limits[0],
        vmax=limits[1],
        extent=(-0.5, across * columns - 0.5, down * rows - 0.5, -0.5),
        aspect=across / down,
        interpolation="nearest",
    )
    room = min(points(ax)[0] / columns, points(ax)[1] / rows)  # points to a cell
    for axis, side, names in ((ax.yaxis, table.dst, words[0]), (ax.xaxis, table.src, words[1])):
        if names is None:
            axis.set_major_locator(MaxNLocator(integer=True))
        else:
            label_ticks(axis, range(len(names)), names, room / side.side[0])
    if made:
        ax.figure.colorbar(image, ax=ax, label="weight", shrink=0.8)
    return ax
