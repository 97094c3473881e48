"""The base of every graph: who may speak to whom."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from graphattn.graphs import csr as _csr
from graphattn.graphs import spans, structure
from graphattn.graphs.facts import FACTS, KEPT, constant_when_compiled, fact
from graphattn.graphs.memory import require

if TYPE_CHECKING:
    import networkx
    from torch_geometric.data import Data

    from graphattn.graphs.csr import CSR
    from graphattn.graphs.reorder import Reordered


G = TypeVar("G", bound="Graph")


class Graph(ABC):
    """Connectivity alone: `num_src` nodes that speak, `num_dst` nodes that listen, and the edges.

    An edge goes from a source to a destination and the message travels along it: the destination
    attends to the source. A graph holds no features and no parameters. It never changes; what is
    derived from it is computed once and kept.

    A new kind of graph is a class with these four; a frozen dataclass also compares by value:

        num_dst, num_src: Number of destination and of source nodes.
        edges(): `(dst, src)`, two int64 tensors of shape (E,), on the device `self.device`. Their
            order is the order of every per-edge tensor.
        has_edge(dst, src): Whether the edge exists, for integers or for int64 tensors that
            broadcast; both within range.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from graphattn import Graph
        >>> @dataclass(frozen=True, repr=False)
        ... class Star(Graph):
        ...     num_dst: int
        ...     num_src: int
        ...
        ...     def edges(self):
        ...         src = torch.arange(self.num_src, device=self.device)
        ...         return torch.zeros_like(src), src
        ...
        ...     def has_edge(self, dst, src):
        ...         return dst == 0
        >>> (Star(4, 4) | Star(4, 4).T).in_degree().tolist()
        [4, 1, 1, 1]
    """

    num_dst: int
    num_src: int
    _device: torch.device

    def __new__(cls, *args: Any, **kwargs: Any) -> Graph:
        graph = super().__new__(cls)
        object.__setattr__(graph, "_device", torch.device("cpu"))
        return graph

    @abstractmethod
    def edges(self) -> tuple[Tensor, Tensor]:
        """Destinations and sources of all edges, two int64 tensors of shape (E,)."""

    @abstractmethod
    def has_edge(self, dst: Any, src: Any) -> Any:
        """Whether the edge from `src` to `dst` exists; integers or int64 tensors that broadcast."""

    # Facts

    @property
    def num_edges(self) -> int:
        """Number of edges E; known without listing them where the graph has structure."""
        return structure.count_edges(self)

    @property
    def density(self) -> float:
        """Edges among all possible pairs, 0 to 1 (more with parallel edges)."""
        return self.num_edges / max(self.num_dst * self.num_src, 1)

    @property
    def edge_index(self) -> Tensor:
        """Edges as PyG has them: int64 of shape (2, E), row 0 sources, row 1 destinations."""
        return _csr.edge_index(self)

    def csr(self) -> CSR:
        """Edges compressed by destination; the rows are destinations."""
        return _csr.by_destination(self)

    def csc(self) -> CSR:
        """Edges compressed by source: the CSR of the transpose; the rows are sources."""
        return _csr.by_source(self)

    def mask(self) -> Tensor:
        """Adjacency as bool of shape (num_dst, num_src): True where the destination attends."""
        return _csr.mask(self)

    def in_degree(self) -> Tensor:
        """Number of sources that each destination hears, int64 of shape (num_dst,)."""
        if (found := spans.as_spans(self)) is not None:
            first, second = found
            return first.stop - first.start + second.stop - second.start
        return self.csr().ptr.diff()

    def out_degree(self) -> Tensor:
        """Number of destinations that hear each source, int64 of shape (num_src,)."""
        return self.csc().ptr.diff()

    @constant_when_compiled
    def keep(self, key: str, compute: Callable[..., Any], *args: Any) -> bool:
        """Make `compute(self, *args)` the attribute `key`, unless it is there already; see `fact`.

        torch.compile runs this while it traces, and afterwards reads the attribute as it reads the
        buffers of a module: what is known of a graph is known before the compiled code runs.
        """
        if key not in self.__dict__:
            # Tensors made under inference_mode could not be saved for a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                object.__setattr__(self, key, compute(self, *args))
        return True

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A fact that nobody asked for yet.

            This is how the guards of compiled code ask a graph that they have not seen; without an
            answer, every new graph would be compiled anew.
            """
            if name not in FACTS:
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            return FACTS[name](self)

    # Place

    @property
    def device(self) -> torch.device:
        """Where the edges are, or would be made."""
        return self._device

    @property
    def stores_tensors(self) -> bool:
        """Whether tensors define the graph; a graph that is a rule works on any device."""
        return _stores_tensors(self)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Graph:
        """The same graph on another device; a graph already there is returned as it is.

        Args:
            device: Where to.
            non_blocking: As in `torch.Tensor.to`, whose arguments containers of tensors pass.
        """
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device == self._device:
            return self
        key = f"{KEPT}to_{device.type}_{device.index}"
        self.keep(key, _moved, device, non_blocking)
        return getattr(self, key)

    # Algebra: joined graphs are sets of pairs, without parallel edges; renumbered ones keep them

    def __or__(self, other: Graph) -> Graph:
        return _combine().union(self, other)

    def __and__(self, other: Graph) -> Graph:
        return _combine().intersection(self, other)

    def __sub__(self, other: Graph) -> Graph:
        return _combine().difference(self, other)

    @property
    def T(self) -> Graph:
        """Every edge turned around."""
        return _relabel().transpose(self)

    def with_self_loops(self) -> Graph:
        """Every node also attends to itself."""
        return self | _combine().loops(self)

    def without_self_loops(self) -> Graph:
        """No node attends to itself."""
        return self - _combine().loops(self)

    def permuted(self, order: Any) -> Graph:
        """The graph with its nodes renumbered: node i of the result is node `order[i]` of this.

        Args:
            order: A permutation of 0..n-1, sequence or int64 tensor of shape (n,).

        Raises:
            ValueError: If destinations and sources are not the same nodes, or `order` is not a
                permutation of them.
        """
        return _relabel().permuted(self, order)

    def reordered(self, method: str = "rcm") -> Reordered:
        """The graph with its nodes renumbered so that neighbors lie together.

        Edges then read from fewer places, and rows that follow each other share sources: kernels
        get faster on graphs whose numbers mean nothing. Values of nodes are brought into the order,
        `x[order]`, and results back with `torch.empty_like(out).index_copy(0, order, out)`; those
        of edges, in edge order, with `edge_order()` of what is returned. Biases that are functions
        see the new numbers.

        Args:
            method: "rcm", reverse Cuthill-McKee (Cuthill and McKee 1969; George 1971), by scipy:
                breadth-first, what is joined is near. "metis", parts of 64 nodes with few edges
                between them (Karypis and Kumar 1998), by pymetis, if it is installed. "degree",
                from the most edges to the fewest.

        Returns:
            `graph, order, seconds`: the same edges on the new numbers; int64 (n,), of which node i
            is node `order[i]` of this graph; and how long it took to find.

        Raises:
            ValueError: If there is no such method, or destinations and sources are not the same.
            ImportError: If pymetis is asked for and missing.
            MemoryError: If the edges don't fit.

        Example:
            >>> import torch, graphattn as ga
            >>> shuffled = ga.sliding_window(500, 1).permuted(torch.randperm(500))
            >>> graph, order, seconds = shuffled.reordered("rcm")
            >>> int((graph.edge_index[0] - graph.edge_index[1]).abs().max())
            1
        """
        from graphattn.graphs import reorder

        return reorder.reordered(self, method)

    def rows(self, start: int, stop: int) -> Graph:
        """Destinations `start` to `stop` (exclusive) alone, numbered from 0; all the sources.

        Example:
            >>> import graphattn as ga
            >>> ga.causal(5).rows(3, 5).in_degree().tolist()
            [4, 5]
        """
        return _relabel().rows(self, start, stop)

    # Other libraries

    def to_networkx(self) -> networkx.DiGraph:
        """A `networkx.DiGraph` (MultiDiGraph with parallel edges); see `from_networkx`."""
        from graphattn.graphs.sparse import to_networkx

        return to_networkx(self)

    def to_pyg(self) -> Data:
        """A `torch_geometric.data.Data` with `edge_index` and `num_nodes`; see `from_pyg`."""
        from graphattn.graphs.sparse import to_pyg

        return to_pyg(self)

    # Words

    def __str__(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        nodes = (
            f"{self.num_dst:,} nodes"
            if self.num_dst == self.num_src
            else f"{self.num_src:,} sources -> {self.num_dst:,} destinations"
        )
        try:
            size = f"{self.num_edges:,} edges, {100 * self.density:.3g}% of all pairs"
        except MemoryError:
            size = "too many edges to count"
        return f"{self}: {nodes}, {size}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: part for name, part in self.__dict__.items() if not name.startswith(KEPT)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


def _parts(graph: Graph) -> list[Any]:
    """What a graph is made of: its attributes, those in tuples too."""
    parts = []
    for value in graph.__getstate__().values():
        parts.extend(value if isinstance(value, tuple) else (value,))
    return parts


@fact
def _stores_tensors(graph: Graph) -> bool:
    return any(
        isinstance(part, Tensor) or (isinstance(part, Graph) and part.stores_tensors)
        for part in _parts(graph)
    )


def _moved(graph: Graph, device: torch.device, non_blocking: bool) -> Graph:
    def move(value: Any) -> Any:
        if isinstance(value, Tensor | Graph):
            return value.to(device, non_blocking=non_blocking)
        if type(value) is dict:
            return {name: move(item) for name, item in value.items()}
        return tuple(move(item) for item in value) if type(value) is tuple else value

    moved = copy.copy(graph)
    for name, value in graph.__getstate__().items():
        object.__setattr__(moved, name, move(value))
    return on_device(moved, device)


def on_device(graph: G, device: torch.device) -> G:
    """Note where the tensors of a new graph are; it moves nothing."""
    object.__setattr__(graph, "_device", device)
    return graph


def common_device(graphs: Sequence[Graph]) -> torch.device:
    """The device of graphs that are joined: that of those which store tensors, if any does.

    Raises:
        ValueError: If they store them on different devices.
    """
    devices = {graph.device for graph in graphs if graph.stores_tensors}
    if len(devices) > 1:
        raise ValueError(
            f"graphs on different devices can't be joined, got {sorted(map(str, devices))}; "
            "move them with graph.to(device)"
        )
    return devices.pop() if devices else graphs[0].device


def _combine() -> Any:
    """The algebra, imported at its first use: it is built on this class."""
    from graphattn.graphs import combine

    return combine


def _relabel() -> Any:
    from graphattn.graphs import relabel

    return relabel


def require_edges(graph: Graph, num_edges: int) -> None:
    """Raise MemoryError if listing that many edges can't fit; to be asked before listing."""
    require(
        structure.LISTED_EDGE_BYTES * num_edges,
        graph.device,
        f"listing the {num_edges:,} edges of {graph}",
        "take a sparser graph, or rows() of it",
    )


def destinations(graph: Graph) -> Tensor:
    """The numbers of all destinations, int64 (num_dst,)."""
    # Eight tensors of that size are the most that a rule of a graph makes of them.
    require(
        64 * graph.num_dst,
        graph.device,
        f"numbering the {graph.num_dst:,} destinations of {graph}",
        "take a smaller graph, or a batch of small ones",
    )
    return torch.arange(graph.num_dst, device=graph.device)


def require_graph(value: object) -> Graph:
    """The value, if it is a graph; else a TypeError."""
    if not isinstance(value, Graph):
        raise TypeError(f"expected a graph, got {type(value).__name__} {value!r:.60}")
    return value


def num_nodes(graph: Graph, what: str) -> int:
    """Number of nodes, if sources and destinations are the same; else a ValueError."""
    if graph.num_dst != graph.num_src:
        raise ValueError(
            f"{what} a graph from a set of nodes to itself, got {graph.num_src} sources and "
            f"{graph.num_dst} destinations; number both sets in one, the sources behind the "
            "destinations"
        )
    return graph.num_dst
