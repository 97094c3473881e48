"""Graphs that fall apart into dense ones: one batched dense call for each size of block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.biases import bias_of_grid
from graphattn.graphs.facts import fact
from graphattn.graphs.graph import Graph
from graphattn.graphs.structure import Block, as_blocks
from graphattn.kernels.problem import Kernel, Problem
from graphattn.kernels.sdpa import scaled_dot_product


class Nodes(NamedTuple):
    """Nodes of equal blocks, one block after the other.

    `index` (blocks * size,) int64; `start` is the first of them if they are consecutive, so that
    a slice can take them without a copy, else None.
    """

    index: Tensor
    start: int | None

    def take(self, x: Tensor, size: int) -> Tensor:
        """(*batch, nodes, heads, head_dim) -> (*batch, blocks, size, heads, head_dim)."""
        if self.start is None:
            taken = x.index_select(-3, self.index)
        else:
            taken = x.narrow(-3, self.start, len(self.index))
        return taken.unflatten(-3, (-1, size))


class Layout(NamedTuple):
    """`groups`: destinations, sources and the blocks themselves, for each size of block.

    `place` (num_dst,): where each destination is in the concatenated outputs; one past the end if
    it is in no block; None if the outputs are in order as they are.
    """

    groups: tuple[tuple[Nodes, Nodes, Block], ...]
    place: Tensor | None
    isolated: bool


@fact
def layout(graph: Graph) -> Layout | None:
    """How a graph is cut into blocks; None if it is not, or has none."""
    blocks = as_blocks(graph)
    if blocks is None or not blocks.groups:
        return None
    groups = tuple((_nodes(block.dst), _nodes(block.src), block) for block in blocks.groups)
    order = torch.cat([dst.index for dst, _, _ in groups])
    in_order = torch.arange(graph.num_dst, device=graph.device)
    if torch.equal(order, in_order):
        return Layout(groups, None, isolated=False)
    place = torch.full_like(in_order, len(order))
    place[order] = torch.arange(len(order), device=graph.device)
    return Layout(groups, place, isolated=len(order) < graph.num_dst)


def _nodes(index: Tensor) -> Nodes:
    index = index.reshape(-1)
    first = int(index[0])
    consecutive = torch.equal(index - first, torch.arange(len(index), device=index.device))
    return Nodes(index, first if consecutive else None)


def unsupported(problem: Problem) -> str | None:
    if not problem.scaled_dot_softmax:
        return "it computes scaled dot products and softmax only"
    if layout(problem.graph) is None:
        return "the graph does not fall apart into complete or causal graphs"
    return None


def run(problem: Problem) -> Tensor:
    cut = layout(problem.graph)
    assert cut is not None
    query, value = problem.query, problem.value
    rows = [_attend(problem, *group) for group in cut.groups]  # (*batch, nodes, heads, value_dim)
    if cut.isolated:
        rows.append(query.new_zeros(*query.shape[:-3], 1, query.shape[-2], value.shape[-1]))
    out = torch.cat(rows, dim=-3) if len(rows) > 1 else rows[0]
    return out if cut.place is None else out.index_select(-3, cut.place)


def _attend(problem: Problem, dst: Nodes, src: Nodes, block: Block) -> Tensor:
    mask, causal = None, block.causal
    if problem.bias is not None:
        bias = bias_of_grid(
            problem.bias,
            problem.graph,
            problem.heads,
            block.dst[:, :, None],
            block.src[:, None, :],
        )  # (…, blocks, dst, src, heads)
        mask, causal = bias.movedim(-1, -3), False
        mask = mask.expand(*problem.query.shape[:-3], *mask.shape[-4:])
    out = scaled_dot_product(
        dst.take(problem.query, block.dst.shape[1]),
        src.take(problem.key, block.src.shape[1]),
        src.take(problem.value, block.src.shape[1]),
        mask=mask,
        causal=causal,
        scale=problem.scale,
        dropout=problem.dropout,
    )
    return out.flatten(-4, -3)


KERNEL = Kernel(
    name="blocks",
    why="the graph falls apart into dense graphs: one batched call for each size of them",
    unsupported=unsupported,
    run=run,
)
