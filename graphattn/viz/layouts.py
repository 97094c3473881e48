"""Where the nodes of a picture go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.checks import grid
from graphattn.graphs.combine import SetOperation
from graphattn.graphs.grid import GridGraph
from graphattn.graphs.relabel import Transpose
from graphattn.graphs.structure import as_dense, as_intervals, transposed_intervals
from graphattn.viz.cells import Groups, group, group_grid
from graphattn.viz.curves import Array
from graphattn.viz.inputs import real

if TYPE_CHECKING:
    import networkx

FROM_NETWORKX = ("kamada_kawai", "planar", "random", "shell", "spectral", "spiral", "spring")
LAYOUTS = ("auto", "line", "grid", "circle", "bipartite", *FROM_NETWORKX)
INTO = 40  # groups that can be drawn with the arrows between them

Shape = tuple[int, ...]


class Arranged(NamedTuple):
    """The groups of destinations and of sources, and the name of the layout.

    `shape` is that of the grid, `given` the positions that the user passed, (n, 2).
    """

    name: str
    dst: Groups
    src: Groups
    shape: Shape = ()
    given: Tensor | None = None


def arrange(graph: Graph, layout: Any) -> Arranged:
    """Choose the layout of a graph, and what of it is drawn together."""
    name, shape, given = _choice(graph, layout)
    if name == "bipartite":
        return Arranged(name, group(graph.num_dst, INTO), group(graph.num_src, INTO))
    if graph.num_dst != graph.num_src:
        raise ValueError(
            f"layout {layout!r:.40} is for one set of nodes, and {graph} has {graph.num_src} "
            f'sources and {graph.num_dst} destinations; take "bipartite"'
        )
    nodes = group_grid(shape, INTO) if shape else group(graph.num_dst, INTO)
    return Arranged(name, nodes, nodes, shape, given)


def _choice(graph: Graph, layout: Any) -> tuple[str, Shape, Tensor | None]:
    """Name, shape of the grid and positions, of which the last two are mostly none."""
    if isinstance(layout, str) and layout in LAYOUTS:
        return _named(graph, layout)
    if not isinstance(layout, Sequence | Tensor | Array) or isinstance(layout, str):
        raise ValueError(
            f"layout must be one of {', '.join(LAYOUTS)}, or the shape of a grid, as (rows, "
            f"columns), or positions (n, 2); got {layout!r:.40}"
        )
    if isinstance(layout, tuple | list) and all(isinstance(length, int) for length in layout):
        shape = grid(layout)
        cells = torch.Size(shape).numel()
        if cells != graph.num_dst:
            raise ValueError(f"layout {shape} has {cells} cells for {graph.num_dst} nodes")
        return _on(shape)
    given = real("layout", layout)
    if tuple(given.shape) != (graph.num_dst, 2):
        raise ValueError(
            f"layout must hold x and y of every node, ({graph.num_dst}, 2), got "
            f"{tuple(given.shape)}"
        )
    return "given", (), given


def _named(graph: Graph, name: str) -> tuple[str, Shape, None]:
    shape = grid_shape(graph) or ()
    if name == "grid" and not shape:
        raise ValueError(f"no grid is known of {graph}; pass its shape, as layout=(rows, columns)")
    if shape and name in ("auto", "grid"):
        return _on(shape)
    if name != "auto":
        return name, (), None
    if graph.num_dst != graph.num_src:
        return "bipartite", (), None
    return "line" if is_sequence(graph) else "general", (), None


def _on(shape: Shape) -> tuple[str, Shape, None]:
    return ("grid", shape, None) if len(shape) > 1 else ("line", (), None)


@singledispatch
def grid_shape(graph: Graph) -> Shape | None:
    """The shape of the grid whose cells are the nodes; None if it is not known."""
    return None


@grid_shape.register
def _(graph: GridGraph) -> Shape:
    return graph.shape


@grid_shape.register
def _(graph: Transpose) -> Shape | None:
    return grid_shape(graph.graph)


@grid_shape.register
def _(graph: SetOperation) -> Shape | None:
    shapes = {grid_shape(part) for part in (graph.left, graph.right)} - {None}
    return shapes.pop() if len(shapes) == 1 else None


@singledispatch
def is_sequence(graph: Graph) -> bool:
    """Whether nodes attend to intervals that move on with them, so that their order means much.

    Neither all pairs nor self loops alone make an order.
    """
    intervals = as_intervals(graph)
    if intervals is None or transposed_intervals(graph) is None:
        return False
    if (dense := as_dense(graph)) is not None:
        return dense.causal
    nodes = torch.arange(graph.num_dst, device=intervals.start.device)
    to_others = (intervals.start < nodes) | (intervals.stop > nodes + 1)
    return bool((to_others & (intervals.start < intervals.stop)).any())


@is_sequence.register
def _(graph: Transpose) -> bool:
    return is_sequence(graph.graph)


@is_sequence.register
def _(graph: SetOperation) -> bool:
    return is_sequence(graph.left) or is_sequence(graph.right)


def positions(arranged: Arranged, weights: Tensor) -> tuple[Array, Array]:
    """Where the groups of destinations and of sources go: x and y, (count, 2) each.

    Neighbors are about 1 apart, but for positions that the user gave.

    Args:
        arranged: What is drawn.
        weights: Of the pairs of groups, (dst.count, src.count); 0 where there is no edge.
    """
    name, n = arranged.name, arranged.dst.count
    if name == "bipartite":
        apart = max(3.0, 0.5 * max(n, arranged.src.count))
        return _column(n, apart), _column(arranged.src.count, 0.0)
    if arranged.given is not None:
        placed = _means(arranged.given, arranged.dst)
    elif name == "grid":
        placed = _on_grid([-(-length // arranged.dst.side[0]) for length in arranged.shape])
    elif name == "line":
        placed = numpy.stack([numpy.arange(n), numpy.zeros(n)], 1)
    elif name == "circle" or (name == "general" and _is_dense(weights)):
        placed = _on_circle(n)
    else:
        placed = _by_networkx(name, weights)
    return placed, placed


def _column(n: int, x: float) -> Array:
    return numpy.stack([numpy.full(n, x), (n - 1) / 2 - numpy.arange(n)], 1)


def _means(given: Tensor, groups: Groups) -> Array:
    """The middle of each group."""
    total = torch.zeros(groups.count, 2, dtype=torch.float64).index_add_(0, groups.label, given)
    return (total / groups.sizes[:, None]).numpy()


def _is_dense(weights: Tensor) -> bool:
    return bool((weights != 0).double().mean() > 0.5)


def _on_grid(shape: list[int]) -> Array:
    """Rows go down; slices of a volume lie side by side."""
    depth, rows, columns = [1] * (3 - len(shape)) + shape
    cells = itertools.product(range(depth), range(rows), range(columns))
    placed = [(slice * (columns + 1) + x, -y) for slice, y, x in cells]
    return numpy.array(placed, dtype=float).reshape(-1, 2)


def _on_circle(n: int) -> Array:
    """Clockwise, from the top."""
    angle = 2 * numpy.pi * numpy.arange(n) / max(n, 1)
    return n / (2 * numpy.pi) * numpy.stack([numpy.sin(angle), numpy.cos(angle)], 1)


def _parts(graph: networkx.Graph) -> list[list[int]]:
    """The connected components, in the order of their first nodes."""
    import networkx

    return sorted(sorted(part) for part in networkx.connected_components(graph))


def _kamada_kawai(part: networkx.Graph) -> dict[int, Array]:
    """Positions of connected nodes; in the quadrant right of and above 0."""
    import networkx

    nodes = sorted(part)
    placed = networkx.kamada_kawai_layout(part, pos=dict(zip(nodes, _on_circle(len(nodes)))))
    places = 0.9 * len(nodes) ** 0.5 * numpy.array([placed[node] for node in nodes])
    return dict(zip(nodes, places - places.min(0)))


def _in_rows(parts: list[dict[int, Array]], n: int) -> Array:
    """Positions (n, 2) of the nodes of several drawings, side by side in rows that go down."""
    extents = [numpy.array(list(part.values())).max(0) + 1 for part in parts]
    widest = max([extent[0] for extent in extents] + [sum(e.prod() for e in extents) ** 0.5 * 1.4])
    places, x, y, tallest = numpy.zeros((n, 2)), 0.0, 0.0, 0.0
    for part, (width, height) in zip(parts, extents):
        if x + width > widest + 1e-6:
            x, y, tallest = 0.0, y - tallest, 0.0
        for node, place in part.items():
            places[node] = place + numpy.array([x, y - height])
        x, tallest = x + width, max(tallest, height)
    return places


def _by_networkx(name: str, weights: Tensor) -> Array:
    import networkx

    n = len(weights)
    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((weights != 0).nonzero().tolist())
    if name == "general":
        return _in_rows([_kamada_kawai(graph.subgraph(part)) for part in _parts(graph)], n)
    options = {"seed": 0} if name in ("random", "spring") else {}
    try:
        placed = getattr(networkx, f"{name}_layout")(graph, **options)
    except networkx.NetworkXException as error:
        raise ValueError(f'layout "{name}" does not exist here: {error}') from None
    places = numpy.array([placed[node] for node in range(n)], dtype=float).reshape(-1, 2)
    return 0.9 * n**0.5 * places
