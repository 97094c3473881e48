"""Batches of a loader: the nodes that came last hear nobody, and the very last speak to nobody."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphattn.graphs import Graph
from graphattn.graphs.csr import ends
from graphattn.graphs.facts import fact
from graphattn.graphs.sparse import EdgeList

WORTH = 7 / 8
"""Nodes are left out if at most this share of them takes part."""


def first_nodes(graph: Graph) -> Graph:
    """The same edges between the first nodes: up to the last destination, and the last source.

    Only lists of edges are looked at; within compiled code, where every graph would have sizes of
    its own, none is.

    Example:
        >>> import graphattn as ga
        >>> first_nodes(ga.from_edges([[1, 3, 2], [0, 0, 1]], 9))
        edge list: 4 sources -> 2 destinations, 3 edges, 37.5% of all pairs
    """
    if torch.compiler.is_compiling() or (first := part(graph)) is None:
        return graph
    return first


@fact
def part(graph: Graph) -> Graph | None:
    """The graph of the first nodes; None if few are left out, or it is no list of edges."""
    return None


@part.register
def _(graph: EdgeList) -> Graph | None:
    sizes = sizes_of_part(graph)
    return None if sizes is None else EdgeList(*ends(graph), *sizes)


def sizes_of_part(graph: Graph) -> tuple[int, int] | None:
    """Numbers of destinations and sources that take part, if some are worth leaving out."""
    num_src, num_dst = (int(end.max()) + 1 if len(end) else 0 for end in ends(graph))
    if graph.num_src == graph.num_dst:  # one tensor of nodes, of which both are parts
        num_src = max(num_src, num_dst)
    few = num_src + num_dst <= WORTH * (graph.num_src + graph.num_dst)
    return (num_dst, num_src) if few else None


def first_rows(x: Tensor, count: int) -> Tensor:
    """The first rows of a tensor; the tensor itself if these are all of them."""
    return x if len(x) == count else x[:count]


def with_others(out: Tensor, num_dst: int) -> Tensor:
    """The rows of first destinations, and 0 for all others up to num_dst, which hear nobody."""
    return out if len(out) == num_dst else pad(out, (0, 0, 0, num_dst - len(out)))


def add_to_first(whole: Tensor, first: Tensor) -> Tensor:
    """`whole + with_others(first, len(whole))`, written into a whole that nobody else needs."""
    if len(first) == len(whole) or first.dtype != whole.dtype:
        return whole + with_others(first, len(whole))
    return AddToFirst.apply(whole, first)


class AddToFirst(torch.autograd.Function):
    """Adds to the first rows in place; autograd of a view would copy the gradient of all rows."""

    @staticmethod
    def forward(whole: Tensor, first: Tensor) -> Tensor:
        whole[: len(first)].add_(first)
        return whole

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        ctx.num_first = len(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        return grad, grad[: ctx.num_first]
