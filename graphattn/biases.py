"""What is added to the score of a pair: from a tensor per edge, or from a function of the pair.

A function `bias(dst, src) -> (pairs, heads)` is evaluated where a kernel needs it: on the edges,
on the pairs of a block, or on the full grid. The functions below are the published ones; those
with learned tables are modules in `graphattn.nn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphattn.graphs import Graph
from graphattn.graphs.checks import integer
from graphattn.graphs.csr import pair_keys, sorted_keys
from graphattn.graphs.grid import coordinates
from graphattn.graphs.memory import require

PairBias = Callable[[Tensor, Tensor], Tensor]
Bias = Tensor | PairBias


def bias_of_pairs(bias: PairBias, dst: Tensor, src: Tensor, heads: int) -> Tensor:
    """A bias function on pairs of any shape: (*pairs) -> (*pairs, heads).

    Raises:
        TypeError: If the function returns anything but a floating tensor.
        ValueError: If it has another shape than (pairs, heads) or (pairs, 1), or another device.
    """
    dst, src = torch.broadcast_tensors(dst, src)
    values = bias(dst.reshape(-1), src.reshape(-1))
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"bias(dst, src) must return a floating tensor, got {kind}")
    if values.shape not in ((dst.numel(), heads), (dst.numel(), 1)):
        raise ValueError(
            f"bias(dst, src) must return ({dst.numel()}, {heads}) for {dst.numel()} pairs and "
            f"{heads} heads, got {tuple(values.shape)}"
        )
    if values.device != dst.device:
        raise ValueError(
            f"bias(dst, src) must return a tensor on {dst.device}, where its arguments are, got "
            f"one on {values.device}"
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

    Raises:
        TypeError, ValueError: If that is not a positive integer.

    Example:
        >>> ALiBi(2)(torch.tensor([5]), torch.tensor([3]))
        tensor([[-0.1250, -0.0078]])
    """

    heads: int

    def __post_init__(self) -> None:
        integer("heads", self.heads, low=1)

    def slopes(self) -> list[float]:
        power = 2 ** (self.heads.bit_length() - 1)
        slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
        double = [2 ** (-4 * (head + 1) / power) for head in range(2 * power)]
        return slopes + double[0::2][: self.heads - power]

    def __call__(self, dst: Tensor, src: Tensor) -> Tensor:
        slopes = torch.tensor(self.slopes(), device=dst.device)
        return -(dst - src).abs()[:, None] * slopes


def t5_bucket(
    offset: Tensor, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """The bucket of a distance: exact when near, logarithmic beyond (Raffel et al. 2020, 2.1).

    Args:
        offset: Source minus destination, int64 of any shape.
        num_buckets: Number of buckets.
        max_distance: All distances from here on share the last bucket.
        bidirectional: Whether sources ahead have the second half of the buckets; else they share
            that of distance 0.

    Returns:
        int64 of the same shape, 0 to num_buckets - 1.

    Example:
        >>> offset = torch.tensor([0, -3, 3, -500])
        >>> t5_bucket(offset, num_buckets=32, max_distance=128, bidirectional=True).tolist()
        [0, 3, 19, 15]
    """
    bucket = torch.zeros_like(offset)
    if bidirectional:
        num_buckets //= 2
        bucket = (offset > 0) * num_buckets
        distance = offset.abs()
    else:
        distance = (-offset).clamp(min=0)
    exact = num_buckets // 2
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return bucket + torch.where(distance < exact, distance, far)


def grid_offset(dst: Tensor, src: Tensor, shape: tuple[int, ...], reach: tuple[int, ...]) -> Tensor:
    """Number of the offset of two cells, as Swin indexes its table (Liu et al. 2021, eq. 4).

    Args:
        dst: Destinations, int64 of any shape.
        src: Sources, of the same shape.
        shape: Shape of the grid.
        reach: Offsets along each axis are cut to -(reach - 1) .. reach - 1.

    Returns:
        int64 of the same shape, 0 to prod(2 * reach - 1) - 1.

    Example:
        >>> grid_offset(torch.tensor([0, 4, 8]), torch.tensor([0, 0, 0]), (3, 3), (3, 3)).tolist()
        [12, 18, 24]
    """
    number = torch.zeros_like(dst)
    pairs = zip(coordinates(dst, shape), coordinates(src, shape), reach, strict=True)
    for to, place, size in pairs:
        number = number * (2 * size - 1) + (to - place).clamp(1 - size, size - 1) + size - 1
    return number


def hop_distance(graph: Graph, max_distance: int) -> Tensor:
    """Edges on the shortest path from each source to each destination, by scipy's csgraph.

    Args:
        graph: A graph on one set of nodes.
        max_distance: Longer paths count as this long.

    Returns:
        int16 (num_nodes, num_nodes): entry [dst, src]; max_distance + 1 where there is no path.

    Raises:
        ValueError: If sources and destinations are not the same nodes.

    Example:
        >>> from graphattn import sliding_window
        >>> hop_distance(sliding_window(4, 1), max_distance=2).tolist()[0]
        [0, 1, 2, 2]
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    n = graph.num_dst
    if n != graph.num_src:
        raise ValueError(f"paths need one set of nodes, got {graph.num_src} sources and {n} others")
    require(18 * n * n, torch.device("cpu"), f"all distances of {graph}", "take fewer nodes")
    src, dst = graph.edge_index.cpu().numpy()
    links = csr_array(([True] * len(src), (dst, src)), shape=(n, n))
    hops = torch.from_numpy(shortest_path(links, unweighted=True))
    hops = hops.clamp(max=max_distance).masked_fill(hops == torch.inf, max_distance + 1)
    return hops.to(graph.device, torch.int16)
