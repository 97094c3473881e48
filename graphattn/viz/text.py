"""A graph as a few lines of text, for terminals."""

from __future__ import annotations

import torch

from graphattn.graphs import Graph
from graphattn.graphs.checks import integer
from graphattn.graphs.graph import require_graph
from graphattn.viz.cells import group, grouping, shares, summed


def graph_text(graph: Graph, *, width: int = 80) -> str:
    """The mask of a graph in ASCII: a row for each destination, a column for each source.

    `#` is an edge and `.` is none; parallel edges show how many they are, 9 for all above. More
    nodes than `width` are shown in groups of consecutive ones, and a last line says so.

    Args:
        graph: Any graph.
        width: Characters to a line, as many as the terminal has. Columns are a blank apart where
            there is room.

    Returns:
        The lines, without a line break at the end.

    Raises:
        TypeError: If it is not a graph.
        ValueError: If width is not positive.

    Example:
        >>> from graphattn import causal, sliding_window, viz
        >>> print(viz.graph_text(causal(4) & sliding_window(4, 1)))
        # . . .
        # # . .
        . # # .
        . . # #
        >>> print(viz.graph_text(causal(1000), width=8))
        + . . .
        # + . .
        # # + .
        # # # +
        1,000 nodes in groups of 250; edges: . none, : <= 1/3, + <= 2/3, * < 1, # all
    """
    require_graph(graph)
    width = integer("width", width, low=1)
    into = (width + 1) // 2
    dst, src = (group(n, into, most=width) for n in (graph.num_dst, graph.num_src))
    if words := grouping(graph, dst, src):
        signs = [[_shade(share) for share in row] for row in shares(graph, dst, src).tolist()]
        note = [f"{words}; edges: . none, : <= 1/3, + <= 2/3, * < 1, # all"]
    else:
        edges = summed(graph, torch.ones(graph.num_edges), dst, src)
        signs, note = [[_sign(int(count)) for count in row] for row in edges.tolist()], []
    gap = " " if src.count <= into else ""
    return "\n".join([gap.join(row) for row in signs] + note)


def _sign(count: int) -> str:
    return ".#"[count] if count < 2 else str(min(count, 9))


def _shade(share: float) -> str:
    if share in (0, 1):
        return ".#"[int(share)]
    return ":+*"[int(share > 1 / 3) + int(share > 2 / 3)]
