"""What a NeighborLoader gives, by hand, for tests where its sampler is not installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

needs_sampler = pytest.mark.skipif(
    not (WITH_PYG_LIB or WITH_TORCH_SPARSE),
    reason="PyG's loaders sample with torch_sparse or pyg-lib, and neither is installed",
)
needs_torch_sparse = pytest.mark.skipif(
    not WITH_TORCH_SPARSE, reason="torch_sparse is not installed"
)


def sampled(data: Data, seeds: Tensor, fan_out: list[int]) -> Data:
    """Seeds first, then hop after hop; edges by destination, the first of each node's neighbors."""
    nodes, rows, cols, edges = seeds.tolist(), [], [], []
    place = {node: i for i, node in enumerate(nodes)}
    src, dst = data.edge_index.tolist()
    into = {node: [e for e in range(len(dst)) if dst[e] == node] for node in range(data.num_nodes)}
    begin, of_nodes, of_edges = 0, [len(nodes)], []
    for count in fan_out:
        end = len(nodes)
        for i in range(begin, end):
            for edge in into[nodes[i]][: None if count < 0 else count]:
                if src[edge] not in place:
                    place[src[edge]] = len(nodes)
                    nodes.append(src[edge])
                rows.append(place[src[edge]])
                cols.append(i)
                edges.append(edge)
        begin = end
        of_nodes.append(len(nodes) - end)
        of_edges.append(len(edges) - sum(of_edges))
    return Data(
        data.x[nodes],
        torch.tensor([rows, cols], dtype=torch.int64),
        data.edge_attr[edges],
        n_id=torch.tensor(nodes),
        e_id=torch.tensor(edges),
        batch_size=len(seeds),
        num_sampled_nodes=of_nodes,
        num_sampled_edges=of_edges,
    )
