"""Keys and values that are not made: what maps nodes moves from the sources to the destinations.

`<q_i, W_k x_j> = <W_k' q_i, x_j>` and `sum_j w_ij W_v x_j = W_v sum_j w_ij x_j`: where few
destinations hear many sources, as in the batches of a loader, far fewer rows are multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn.attention import attention
from graphattn.graphs import Graph
from graphattn.graphs.csr import ends
from graphattn.graphs.facts import fact
from graphattn.pyg.edges import is_a_matrix

EDGE_OVER_ROW = 12
"""Time of a channel of an edge, gathered, over that of a multiply-add in both matrix products.

Forward and backward on a core, 4 heads of 32 channels: 2.0 ns and twice 0.08 ns.
"""


def is_worth_folding(layer: Any, x_src: Tensor, graph: Graph, edge: object) -> bool:
    """Whether a `TransformerConv` takes less time with keys and values folded.

    Features of edges are added to keys and values, which then have to be there; so have they to be
    for whatever else than a product with a matrix the layer makes of them.
    """
    if graph.num_src <= graph.num_dst or edge is not None:
        return False
    linear = (layer.lin_key, layer.lin_value)
    if layer.training and layer.dropout > 0:
        return False
    if x_src.device.type != "cpu" or torch.compiler.is_compiling():  # measured on CPUs alone
        return False
    if not all(map(is_a_matrix, linear)) or x_src.shape[1] != linear[0].in_channels:
        return False  # torch has the error
    wide, narrow = layer.heads * x_src.shape[1], layer.heads * layer.out_channels
    rows = (graph.num_src - graph.num_dst) * x_src.shape[1] * narrow
    return rows > EDGE_OVER_ROW * graph.num_edges * max(wide - narrow, 0)


def folded_attention(layer: Any, query: Tensor, x_src: Tensor, graph: Graph) -> Tensor:
    """What `attention` gives for the keys and values of a layer, (num_dst, heads, out_channels).

    A bias of keys adds the same to all logits of a destination, and changes nothing.
    """
    key, value = layer.lin_key, layer.lin_value
    split = (layer.heads, layer.out_channels, x_src.shape[1])
    asked = torch.einsum("nhd,hdc->nhc", query, key.weight.view(split))
    sent = x_src[:, None]  # (num_src, 1, channels), for all heads
    scale = layer.out_channels**-0.5
    heard = attention(asked, sent, sent, graph, scale=scale)
    out = torch.einsum("nhc,hdc->nhd", heard, value.weight.view(split))
    if value.bias is not None:
        bias = value.bias * _hears(graph)[:, None] + 0 * key.bias  # whose gradient is 0
        out = out + bias.view(-1, *split[:2]).to(out.dtype)
    return out


@fact
def _hears(graph: Graph) -> Tensor:
    """Which destinations hear anybody, (num_dst,)."""
    hears = torch.zeros(graph.num_dst, dtype=torch.bool, device=graph.device)
    hears[ends(graph)[1]] = True
    return hears
