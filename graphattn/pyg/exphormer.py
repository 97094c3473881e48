"""Exphormer: attention over the edges of a graph, of an expander on it, and of virtual nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.attention import attention, attention_weights
from graphattn.graphs import Graph, from_edges
from graphattn.graphs.checks import integer

KINDS = ("local", "expander", "to virtual", "from virtual")


@dataclass(frozen=True, eq=False)
class ExphormerEdges:
    """Who attends to whom, in a batch of graphs with virtual nodes behind all others.

    graph: On nodes and virtual nodes; its edges are in the order of `KINDS`.
    counts: Number of edges of each of the `KINDS`.
    edge_attr: Features of the local edges, (local edges, edge_dim), or None.
    batch: Which graph each node is in, virtual ones too, int64 (nodes + virtual nodes,).
    num_graphs, virtual_nodes: Number of graphs, and of virtual nodes in each.
    """

    graph: Graph
    counts: tuple[int, ...]
    edge_attr: Tensor | None
    batch: Tensor
    num_graphs: int
    virtual_nodes: int

    @property
    def num_nodes(self) -> int:
        """Number of nodes without virtual ones."""
        return len(self.batch) - self.num_graphs * self.virtual_nodes


def exphormer_edges(data: Any, *, virtual_nodes: int = 1) -> ExphormerEdges:
    """Local, expander and virtual edges of data, joined (Shirzad et al. 2023, section 3.2).

    A virtual node attends to all nodes of its graph, and these to it. An edge that is both local
    and of the expander counts twice, with features of either kind.

    Args:
        data: A `Data` or `Batch` with `edge_index`; `edge_attr` and `expander_edge_index`, as
            `AddExpander` makes it, are taken if they are there.
        virtual_nodes: Number of virtual nodes of every graph.

    Returns:
        What every layer of the model is given in place of the batch vector.

    Raises:
        TypeError, ValueError, IndexError: If the edges don't fit the nodes.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
        >>> exphormer_edges(data).graph
        edge list: 4 nodes, 8 edges, 50% of all pairs
    """
    count, num = integer("virtual_nodes", virtual_nodes), int(data.num_nodes or 0)
    local, batch = data.edge_index, data.get("batch")
    device = local.device
    if batch is None:
        batch = torch.zeros(num, dtype=torch.int64, device=device)
    graphs = data.num_graphs if "ptr" in data else 1 + int(batch.max()) if len(batch) else 1
    attr = data.get("edge_attr")
    if attr is not None and len(attr) != local.shape[1]:
        raise ValueError(
            f"edge_attr must have a row for each of the {local.shape[1]} edges, got {len(attr)}"
        )
    expander = data.get("expander_edge_index", local[:, :0])
    for edges in (local, expander):
        from_edges(edges, num)  # which checks them: virtual nodes are none of theirs
    virtual = torch.arange(num, num + graphs * count, device=device).view(graphs, count)
    node = torch.arange(num, device=device).repeat_interleave(count)
    up = torch.stack([node, virtual[batch].flatten()])
    parts = (local, expander, up, up.flip(0))
    of_virtual = torch.arange(graphs, device=device).repeat_interleave(count)
    return ExphormerEdges(
        from_edges(torch.cat(parts, dim=1), num + graphs * count),
        tuple(part.shape[1] for part in parts),
        attr[:, None] if attr is not None and attr.ndim == 1 else attr,
        torch.cat([batch, of_virtual]),
        graphs,
        count,
    )


class VirtualNodes(nn.Module):
    """The features with which virtual nodes begin, learned (Shirzad et al. 2023, section 3.2).

    Args:
        virtual_nodes: Number of virtual nodes of every graph.
        channels: Width of the nodes.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
        >>> VirtualNodes(2, 8)(torch.randn(3, 8), exphormer_edges(data, virtual_nodes=2)).shape
        torch.Size([5, 8])
    """

    def __init__(self, virtual_nodes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(virtual_nodes, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the features anew."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, edges: ExphormerEdges) -> Tensor:
        """(nodes, channels) -> (nodes + virtual nodes, channels), the virtual ones behind.

        Raises:
            ValueError: If there are other numbers of nodes or virtual nodes.
        """
        if edges.virtual_nodes != len(self.weight):
            raise ValueError(
                f"there are features of {len(self.weight)} virtual nodes, and the edges have "
                f"{edges.virtual_nodes}; make them with virtual_nodes={len(self.weight)}"
            )
        if len(x) != edges.num_nodes:
            raise ValueError(f"x has {len(x)} nodes, and the edges have {edges.num_nodes}")
        return torch.cat([x, self.weight.to(x.dtype).repeat(edges.num_graphs, 1)])


class Exphormer(nn.Module):
    """Sparse attention over local, expander and virtual edges (Shirzad et al. 2023, section 3.1).

    `sum_j w_ij W_V x_j`, with `w_ij = softmax_j(<W_Q x_i, W_E e_ij * W_K x_j> / sqrt(head_dim))`:
    each edge gates the keys that travel along it. Edges of one kind share a learned gate, which
    begins as 1; local edges add that of their own features.

    Args:
        channels: Width of the nodes.
        heads: Number of heads; divides channels.
        edge_dim: Width of the features of local edges; None if there are none.
        dropout: Probability with which a weight is dropped in training.
        bias: Whether the linear maps of the nodes have one.

    Raises:
        ValueError: If heads does not divide channels.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from graphattn.pyg import AddExpander
        >>> data = AddExpander()(Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=8))
        >>> edges = exphormer_edges(data, virtual_nodes=1)
        >>> x = VirtualNodes(1, 16)(torch.randn(8, 16), edges)
        >>> Exphormer(16, heads=4)(x, edges).shape
        torch.Size([9, 16])
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        edge_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(
                f"channels must be a multiple of heads, got {channels} channels and {heads} heads"
            )
        self.channels, self.heads, self.edge_dim, self.dropout = channels, heads, edge_dim, dropout
        self.query = nn.Linear(channels, channels, bias=bias)
        self.key = nn.Linear(channels, channels, bias=bias)
        self.value = nn.Linear(channels, channels, bias=bias)
        self.out = nn.Linear(channels, channels)
        self.kinds = nn.Parameter(torch.ones(len(KINDS), channels))
        self.edge = None if edge_dim is None else nn.Linear(edge_dim, channels, bias=False)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for part in self.children():
            part.reset_parameters()  # pyright: ignore[reportCallIssue]
        nn.init.ones_(self.kinds)

    def forward(self, x: Tensor, edges: ExphormerEdges) -> Tensor:
        """Let nodes and virtual nodes attend.

        Args:
            x: (nodes + virtual nodes, channels), as `VirtualNodes` makes it of nodes.
            edges: Who attends to whom, of `exphormer_edges`.

        Returns:
            (nodes + virtual nodes, channels).

        Raises:
            TypeError, ValueError: If nodes, edges and features don't fit.
        """
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        drop = self.dropout if self.training else 0.0
        options: dict[str, Any] = self._meaning(edges)
        return self.out(
            attention(query, key, value, edges.graph, dropout=drop, **options).flatten(1)
        )

    def weights(self, x: Tensor, edges: ExphormerEdges) -> Tensor:
        """The weight of every edge, (E, heads), local ones first; see `ExphormerEdges`."""
        query, key = self._split(self.query(x)), self._split(self.key(x))
        return attention_weights(query, key, edges.graph, **self._meaning(edges))

    def _meaning(self, edges: Any) -> dict[str, Any]:
        gate = self._split(self._gate(edges))  # (E, heads, head_dim)

        def gated(q_i: Tensor, k_j: Tensor, edge: Tensor) -> Tensor:
            return (q_i * k_j * gate.index_select(0, edge)).sum(-1)

        return {"score": gated, "scale": (self.channels // self.heads) ** -0.5}

    def _gate(self, edges: Any) -> Tensor:
        """`W_E e_ij` of every edge, (E, channels)."""
        if not isinstance(edges, ExphormerEdges):
            raise TypeError(
                f"Exphormer needs the edges that exphormer_edges(data) makes, got "
                f"{type(edges).__name__}; pass them in place of the batch vector"
            )
        width = None if edges.edge_attr is None else edges.edge_attr.shape[1]
        if width != self.edge_dim and self.edge_dim is not None:
            raise ValueError(
                f"the layer was built with edge_dim={self.edge_dim}, and edge_attr has width "
                f"{width}; let data have edge_attr of that width"
            )
        gates = [kind.expand(count, -1) for kind, count in zip(self.kinds, edges.counts)]
        if self.edge is not None:
            gates[0] = gates[0] + self.edge(edges.edge_attr)
        return torch.cat(gates)

    def _split(self, x: Tensor) -> Tensor:
        """(rows, channels) -> (rows, heads, head_dim)."""
        return x.unflatten(-1, (self.heads, -1))

    def extra_repr(self) -> str:
        """What printing the layer shows besides its parts."""
        return f"heads={self.heads}, dropout={self.dropout}"
