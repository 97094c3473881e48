"""What is added to the score of a pair: from a tensor per edge, or from a function of the pair.

A function `bias(dst, src) -> (pairs, heads)` is evaluated where a kernel needs it: on the edges,
on the pairs of a block, or on the full grid. The functions below are the published ones; those
with learned tables are modules in `graphattn.nn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.csr import sorted_keys, pair_keys

PairBias = Callable[[Tensor, Tensor], Tensor]
Bias = Tensor | PairBias


def bias_of_pairs(bias: PairBias, dst: Tensor, src: Tensor, heads: int) -> Tensor:
    """A bias function on pairs of any shape: (*pairs) -> (*pairs, heads).

    Raises:
        ValueError: If the function returns another shape than (pairs, heads) or (pairs, 1).
    """
    dst, src = torch.broadcast_tensors(dst, src)
    values = bias(dst.reshape(-1), src.reshape(-1))
    if values.shape not in ((dst.numel(), heads), (dst.numel(), 1)):
        raise ValueError(
            f"bias(dst, src) must return ({dst.numel()}, {heads}) for {dst.numel()} pairs and "
            f"{heads} heads, got {tuple(values.shape)}"
        )
    return values.view(*dst.shape, values.shape[-1]).expand(*dst.shape, heads)


def bias_of_edges(bias: Bias, graph: Graph, heads: int) -> Tensor:
    """The bias of every edge in CSR order, (…, E, heads)."""
    csr = graph.csr()
    if isinstance(bias, Tensor):
        return csr.from_edge_order(bias, dim=-2)
    return bias_of_pairs(bias, csr.row, csr.index, heads)


def bias_of_grid(bias: Bias, graph: Graph, heads: int, dst: Tensor, src: Tensor) -> Tensor:
    """The bias of pairs of nodes, -inf where they are not an edge.

    Args:
        dst: Destinations, int64; broadcasts with `src` to (*pairs).
        src: Sources.

    Returns:
        (…, *pairs, heads), with the leading dimensions of a bias tensor.
    """
    if not isinstance(bias, Tensor):
        values = bias_of_pairs(bias, dst, src, heads)
        exists = graph.has_edge(dst, src)
        return values.masked_fill(~exists[..., None], -torch.inf)
    keys = sorted_keys(graph)
    wanted = pair_keys(dst, src, graph.num_src)
    if len(keys) == 0:
        return bias.new_full((*bias.shape[:-2], *wanted.shape, bias.shape[-1]), -torch.inf)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    exists = keys[place] == wanted
    edge = graph.csr().edge
    values = bias.index_select(-2, (place if edge is None else edge[place]).reshape(-1))
    values = values.view(*bias.shape[:-2], *wanted.shape, bias.shape[-1])
    return values.masked_fill(~exists[..., None], -torch.inf)


@dataclass(frozen=True)
class ALiBi:
    """Attention falls off linearly with distance, at a slope of its own for every head.

    Press et al. 2022, section 3: slopes 2^(-8/h), 2^(-16/h), ...; for a number of heads that is no
    power of two, as their code has it, those of the power of two below and every other one of the
    double.

    Args:
        heads: Number of heads.

    Example:
        >>> ALiBi(2)(torch.tensor([5]), torch.tensor([3]))
        tensor([[-0.1250, -0.0078]])
    """

    heads: int

    def slopes(self) -> list[float]:
        power = 2 ** (self.heads.bit_length() - 1)
        slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
        double = [2 ** (-4 * (head + 1) / power) for head in range(2 * power)]
        return slopes + double[0::2][: self.heads - power]

    def __call__(self, dst: Tensor, src: Tensor) -> Tensor:
        slopes = torch.tensor(self.slopes(), device=dst.device)
        return -(dst - src).abs()[:, None] * slopes
