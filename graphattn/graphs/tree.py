"""Trees of nodes that go on from a sequence: several continuations in one graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs.checks import integer, integers, items
from graphattn.graphs.graph import Graph
from graphattn.graphs.sequence import causal
from graphattn.graphs.sparse import EdgeList


@dataclass(frozen=True, eq=False)
class Branches:
    """A tree, each node after its parent.

    parents: int64 (nodes,); -1 for a root.
    depth: How many ancestors each node has, int64 (nodes,).
    path: The ancestor of each node at each depth, itself at its own, int64 (nodes, depths); -1
        beyond.
    """

    parents: Tensor
    depth: Tensor
    path: Tensor

    @classmethod
    def of(cls, parents: Tensor | Iterable[int]) -> Branches:
        """The tree of the parents, once they are checked."""
        given = parents if isinstance(parents, Tensor) else items("parents", parents)
        checked = integers("parents", given)
        if checked.ndim != 1:
            raise ValueError(f"parents must have shape (nodes,), got {tuple(checked.shape)}")
        paths: list[list[int]] = []
        for node, parent in enumerate(checked.tolist()):
            if not -1 <= parent < node:
                raise ValueError(
                    f"parents[{node}] must be -1, for a root, or a node before {node}, got "
                    f"{parent}; list every node after its parent"
                )
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        depth = torch.tensor([len(path) - 1 for path in paths], dtype=torch.int64)
        most = max(map(len, paths), default=0)
        rows = [path + [-1] * (most - len(path)) for path in paths]
        path = torch.tensor(rows, dtype=torch.int64).view(len(paths), most)
        return cls(checked.cpu(), depth, path)


def tree(parents: Tensor | Iterable[int]) -> Graph:
    """Each node of a tree attends to itself and its ancestors (SpecInfer, Miao et al. 2024).

    Args:
        parents: The parent of each node, int64 (nodes,); -1 for a root. A node comes after its
            parent.

    Returns:
        A graph on the nodes of the tree, without edges between branches.

    Raises:
        TypeError: If the parents are not integers.
        ValueError: If a parent does not come before its child.

    Example:
        >>> tree([-1, 0, 0, 1]).mask().int().tolist()  # 0 -> 1 -> 3, and 0 -> 2
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    branches = Branches.of(parents)
    return grown(causal(branches.path.shape[1]), 0, branches)


def grown(graph: Graph, length: int, branches: Branches) -> Graph:
    """What the nodes of a tree attend to, if each branch goes on from the same `length` nodes.

    A node of depth d attends to what node `length + d` of the graph attends to: to nodes before the
    tree, and beyond them to its own ancestors in their place.

    Args:
        graph: A causal graph on at least as many nodes as the longest branch ends at.
        length: How many nodes stand before the tree.
        branches: The tree.

    Returns:
        A graph from `length` nodes and those of the tree to those of the tree.

    Example:
        >>> from graphattn import sliding_window
        >>> window = causal(9) & sliding_window(9, 2)
        >>> grown(window, 3, Branches.of([-1, 0, 0])).mask().int().tolist()
        [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1]]
    """
    integer("the nodes of the longest branch", length + branches.path.shape[1], high=graph.num_dst)
    rows = graph.rows(length, length + branches.path.shape[1]).csr()
    depth, path = branches.depth.to(graph.device), branches.path.to(graph.device)
    degree = rows.ptr.diff()[depth]
    dst = torch.arange(len(depth), device=graph.device).repeat_interleave(degree)
    within = torch.arange(len(dst), device=graph.device) - (degree.cumsum(0) - degree)[dst]
    src = rows.index[rows.ptr[depth[dst]] + within]
    ahead = src - length
    if path.numel():
        src = torch.where(ahead < 0, src, length + path[dst, ahead.clamp(min=0)])
    return EdgeList(src, dst, len(depth), length + len(depth))
