"""Expander graphs on PyG's data: a few random edges for each node, and few hops between any two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.transforms import BaseTransform

from graphattn.graphs.checks import integer
from graphattn.pyg.batches import batch_graph


class AddExpander(BaseTransform):
    """Put the edges of a random regular graph on data (Shirzad et al. 2023, section 3.2).

    The union of degree / 2 random Hamiltonian cycles, which is an expander with high probability
    (Friedman 2008): each node has `degree` edges to it and from it, and two cycles may share one.
    A graph with at most degree + 1 nodes gets every pair once. Applied to a `Batch`, each of its
    graphs gets edges of its own.

    Args:
        degree: Edges to each node, a positive even number.
        seed: The same seed gives the same edges to the same numbers of nodes.
        attr: Name of the attribute, int64 (2, E); one that ends in "index" is renumbered by PyG
            when data is batched.

    Raises:
        ValueError: If degree is not positive and even, or attr does not end in "index".

    Example:
        >>> from torch_geometric.data import Data
        >>> data = AddExpander(degree=4)(Data(num_nodes=10))
        >>> data.expander_edge_index[1].bincount().tolist()
        [4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    """

    def __init__(self, degree: int = 4, seed: int = 0, attr: str = "expander_edge_index") -> None:
        self.degree, self.seed = integer("degree", degree, low=2), integer("seed", seed)
        if degree % 2:
            raise ValueError(f"degree must be even, two for each cycle, got {degree}")
        if not attr.endswith("index"):
            raise ValueError(f'attr must end in "index", so that PyG renumbers it, got {attr!r}')
        self.attr = attr

    def forward(self, data: Any) -> Any:
        """The data, a `Data` or `Batch`, with edges.

        Raises:
            ValueError: If the number of nodes is not known.
        """
        batch = data.get("batch")
        if batch is None:
            if data.num_nodes is None:
                raise ValueError("data must know its number of nodes; set data.num_nodes")
            edges = data.edge_index if "edge_index" in data else None
            device = torch.device("cpu") if edges is None else edges.device
            batch = torch.zeros(data.num_nodes, dtype=torch.int64, device=device)
        data[self.attr] = _expander(batch.cpu(), self.degree, self.seed).to(batch.device)
        return data


def _expander(batch: Tensor, degree: int, seed: int) -> Tensor:
    """Edges (2, E) within every graph of a batch vector (nodes,)."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.bincount(batch)[batch] <= degree + 1
    nodes = (~small).nonzero().squeeze(1)
    cycles = [_cycles(nodes, batch[nodes], generator) for _ in range(degree // 2)]
    few = small.nonzero().squeeze(1)
    pairs = few[batch_graph(batch[few]).edge_index]
    return torch.cat([*cycles, pairs[:, pairs[0] != pairs[1]]], dim=1)


def _cycles(nodes: Tensor, batch: Tensor, generator: torch.Generator) -> Tensor:
    """A random cycle through all nodes of each graph, there and back, (2, 2 * nodes)."""
    order = torch.randperm(len(nodes), generator=generator)
    order = order[batch[order].argsort(stable=True)]  # graph by graph
    begins = torch.ones(len(nodes), dtype=torch.bool)
    begins[1:] = batch[order].diff() != 0
    ends = begins.roll(-1)
    following = order.roll(-1)
    following[ends] = order[begins]  # the last node of a graph is followed by the first
    ahead = nodes[torch.stack([order, following])]
    return torch.cat([ahead, ahead.flip(0)], dim=1)
