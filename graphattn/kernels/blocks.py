"""Graphs that fall apart into dense ones: one batched dense call for each size of block."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.biases import bias_of_grid
from graphattn.graphs.facts import fact
from graphattn.graphs.graph import Graph
from graphattn.graphs.structure import Block, as_blocks, as_intervals, is_symmetric
from graphattn.kernels.cost import head_counts, milliseconds
from graphattn.kernels.problem import Estimate, Kernel, Problem
from graphattn.kernels.sdpa import flash_work, scaled_dot_product

# On a CPU, blocks of many sizes take less time in the kernel "cpu" if a node hears so few on the
# average: with 64 channels, forward and backward on one core, 256 blocks of 10 to 40 nodes took 0.7
# of the time there, and such of 30 to 80 nodes 1.2.
SMALL, MANY_SIZES = 40, 8


class Nodes(NamedTuple):
    """How the nodes of one side are brought into the order of the blocks, and back.

    groups: For each size of block its nodes, one block after the other, int64 (blocks * size,).
    start: For each node, how many nodes are in the groups before its own, int64 (nodes,).
    length: How many are in its group.
    within: Its place there; -1 if it is in no block.
    isolated: Whether there is such a node.
    in_order: Whether the nodes of a single group are 0, 1, 2, ...
    """

    groups: tuple[Tensor, ...]
    start: Tensor
    length: Tensor
    within: Tensor
    isolated: bool
    in_order: bool

    def rows(self, batch: int) -> Tensor:
        """The flat (batch, node) of every row: group by group, in each batch by batch."""
        offset = torch.arange(batch, device=self.start.device)[:, None] * len(self.start)
        return torch.cat([(offset + group).view(-1) for group in self.groups])

    def places(self, batch: int) -> Tensor:
        """The row of every flat (batch, node); one past the last row for a node in no block."""
        offset = torch.arange(batch, device=self.start.device)[:, None]
        place = batch * self.start + offset * self.length + self.within
        past = batch * sum(len(group) for group in self.groups)
        return torch.where(self.within < 0, past, place).view(-1)


class Layout(NamedTuple):
    """The blocks of a graph, one entry for each size, and the order of nodes that they need."""

    blocks: tuple[Block, ...]
    dst: Nodes
    src: Nodes


@fact
def layout(graph: Graph) -> Layout | None:
    """How a graph is cut into blocks; None if it is not, or has none."""
    found = as_blocks(graph)
    if found is None or not found.groups:
        return None
    dst = _nodes([block.dst for block in found.groups], graph.num_dst)
    src = _nodes([block.src for block in found.groups], graph.num_src)
    return Layout(found.groups, dst, src)


def _nodes(groups: list[Tensor], num_nodes: int) -> Nodes:
    flat = tuple(group.reshape(-1) for group in groups)
    start, length, within = (flat[0].new_full((num_nodes,), fill) for fill in (0, 0, -1))
    before = 0
    for group in flat:
        start[group], length[group] = before, len(group)
        within[group] = torch.arange(len(group), device=group.device)
        before += len(group)
    node = torch.arange(num_nodes, device=start.device)
    in_order = len(flat) == 1 and torch.equal(flat[0], node)
    return Nodes(flat, start, length, within, before < num_nodes, in_order)


@fact
def small_of_many_sizes(graph: Graph) -> bool:
    """Whether a graph is complete graphs of many sizes, side by side, and most are small."""
    if graph.num_edges > SMALL * graph.num_dst or not is_symmetric(graph):
        return False
    return as_intervals(graph) is not None and len(graph.in_degree().unique()) > MANY_SIZES


class Rearrange(torch.autograd.Function):
    """Rows `x[index]`; its gradient is `grad[back]`, a gather too and not a scatter.

    Row len(x) stands for zeros, and so does row len(grad), where the flags say so.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, back: Tensor, zeros: bool, zeros_back: bool
    ) -> Tensor:
        ctx.save_for_backward(index, back)
        ctx.zeros = zeros, zeros_back
        if zeros:
            x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        index, back = ctx.saved_tensors
        zeros, zeros_back = ctx.zeros
        return Rearrange.apply(grads[0], back, index, zeros_back, zeros), None, None, None, None


def unsupported(problem: Problem) -> str | None:
    if (reason := problem.beyond_sdpa) is not None:
        return reason
    if layout(problem.graph) is None:
        return "the graph does not fall apart into complete or causal graphs"
    return None


def declines(problem: Problem) -> str | None:
    if problem.query.device.type != "cpu" or not small_of_many_sizes(problem.graph):
        return None
    return "the blocks are small and of many sizes, and there would be a call for each size"


def expected(problem: Problem) -> Estimate | None:
    if problem.beyond_sdpa is not None or (cut := layout(problem.graph)) is None:
        return None
    pairs = sum(
        block.dst.numel() * block.src.shape[1] / (2 if block.causal else 1) for block in cut.blocks
    )
    heads, kv_heads, dims = head_counts(problem)
    nodes = cut.dst.start.numel() * heads + cut.src.start.numel() * kv_heads
    work, calls = flash_work(problem, pairs), len(cut.blocks)
    host = calls * work.host[0], calls * work.host[1]
    if not (cut.dst.in_order and cut.src.in_order):  # all is brought into order, and back
        moved = 2 * nodes * dims * problem.query.element_size()
        work = work._replace(streamed=moved)
        host = host[0] + 0.1, host[1] + 0.1
    work = work._replace(host=host)
    return Estimate(milliseconds(problem, work))


def run(problem: Problem) -> Tensor:
    cut = layout(problem.graph)
    assert cut is not None
    batch = problem.query.shape[:-3]
    queries = _cut(problem.query, cut.dst, [block.dst for block in cut.blocks])
    keys = _cut(problem.key, cut.src, [block.src for block in cut.blocks])
    values = _cut(problem.value, cut.src, [block.src for block in cut.blocks])
    outs = [
        _attend(problem, *group).flatten(0, -3)
        for group in zip(cut.blocks, queries, keys, values, strict=True)
    ]
    return _join(torch.cat(outs) if len(outs) > 1 else outs[0], cut.dst, batch)


def _cut(x: Tensor, nodes: Nodes, blocks: list[Tensor]) -> list[Tensor]:
    """(*batch, nodes, heads, dim) -> (*batch, blocks, size, heads, dim) for each size."""
    batch, size = x.shape[:-3], math.prod(x.shape[:-3])
    x = x.reshape(size * x.shape[-3], *x.shape[-2:])
    if not nodes.in_order:
        rows, places = nodes.rows(size), nodes.places(size)
        x = Rearrange.apply(x, rows, places, False, nodes.isolated)  # pyright: ignore
    parts = x.split([size * block.numel() for block in blocks])
    return [
        part.unflatten(0, (*batch, *block.shape)) for part, block in zip(parts, blocks, strict=True)
    ]


def _join(x: Tensor, nodes: Nodes, batch: torch.Size) -> Tensor:
    """(rows, heads, dim) -> (*batch, nodes, heads, dim); 0 for nodes in no block."""
    size = math.prod(batch)
    if not nodes.in_order:
        x = Rearrange.apply(x, nodes.places(size), nodes.rows(size), nodes.isolated, False)
    return x.reshape(*batch, len(nodes.start), *x.shape[1:])


def _attend(problem: Problem, block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(*batch, blocks, size, heads, dim) each -> (*batch, blocks, size, heads, value_dim)."""
    mask, causal = None, block.causal
    if problem.bias is not None:
        dst, src = block.dst[:, :, None], block.src[:, None, :]
        bias = bias_of_grid(problem.bias, problem.graph, problem.heads, dst, src)
        mask, causal = bias.movedim(-1, -3), False  # (…, blocks, heads, dst, src)
    return scaled_dot_product(
        query,
        key,
        value,
        mask=mask,
        causal=causal,
        scale=problem.scale,
        dropout=problem.dropout,
    )


KERNEL = Kernel(
    name="blocks",
    why="the graph falls apart into dense graphs: one batched call for each size of them",
    unsupported=unsupported,
    run=run,
    declines=declines,
    expected=expected,
)
