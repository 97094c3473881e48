"""The attention function that transformers' layers call, and the two calls that it makes.

A layer gives queries, keys and values as (batch, heads, tokens, head_dim), and what the mask
function returned for it. Of these come a graph, or a dense mask, over the keys that are read; then
`graphattn.attention` runs, or torch's, as transformers calls it, where a dense mask says all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import output_capturing

from graphattn.attention import attention, attention_weights
from graphattn.graphs import Graph, batch, bipartite, causal, from_mask
from graphattn.hf.find import ByTorch, Columns, Found, Sizes, find
from graphattn.hf.place import Place, place
from graphattn.hf.tokens import Tokens
from graphattn.hf.wiring import layer_of
from graphattn.normalizers import Softmax

HARMLESS = {
    "deterministic",
    "labels",
    "logits_to_keep",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "sliding_window",  # the mask has it
    "token_type_ids",
    "use_cache",
}
"""What layers pass on, and what doesn't change what attention computes."""


class Call(NamedTuple):
    """What a layer asked for, of the keys that are read; see `attend`.

    weights: Whether the weights are asked for.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    dropout: float
    scaling: float | None
    position_bias: Tensor | None
    softcap: float | None
    sink: Tensor | None
    weights: bool


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of "graphattn".

    Args:
        module: The layer that calls; `rewire` left its graph with it.
        query: (batch, heads, queries, head_dim).
        key: (batch, kv_heads, keys, head_dim).
        value: (batch, kv_heads, keys, value_dim).
        attention_mask: `Tokens`; or (batch or 1, heads or 1, queries, keys), bool, or added to the
            scores; or None: causal if `is_causal` says so, or else the module.
        dropout, scaling, softcap: As in `attention`; the scores of scaling None are divided by
            sqrt(head_dim).
        is_causal: What None means, for more than one query.
        position_bias: Added to the scores (T5), (batch or 1, heads, queries, keys).
        s_aux: Sinks (gpt-oss), (heads,).
        output_attentions: Whether weights are asked for.
        others: What doesn't change the result; anything else is refused.

    Returns:
        (batch, queries, heads, value_dim), and the weights (batch, heads, queries, keys), or None.

    Raises:
        TypeError, ValueError: If something can't be honored, or doesn't fit the graph.
    """
    _refuse(attention_mask, others)
    if isinstance(scaling, Tensor):
        query, scaling = query * scaling, 1.0
    if query.shape[0] != key.shape[0]:  # learned queries, shared by the batch
        query = query.expand(key.shape[0], -1, -1, -1)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    weights = bool(output_attentions) or _weights_are_recorded()
    beyond_sdpa = softcap is not None or s_aux is not None or weights
    sizes = Sizes(query.shape[0], query.shape[2], key.shape[2], query.device)
    by_torch: ByTorch = "where it is better" if position_bias is None else "always"
    if beyond_sdpa:
        by_torch = "never"
    found = find(layer_of(module), attention_mask, sizes, bool(is_causal), by_torch)
    if (keys := found.keys) is not None:
        key, value = key[:, :, keys], value[:, :, keys]
        position_bias = None if position_bias is None else position_bias[..., keys]
    if found.graph is None and not beyond_sdpa:
        plain = found.mask is None and position_bias is None and not found.causal
        if plain and query.shape[1] == key.shape[1]:  # most steps of generation
            out = F.scaled_dot_product_attention(query, key, value, None, dropout, scale=scaling)
            return out.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            found.mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=found.causal,
            position_bias=position_bias,
        )
    sink = None if s_aux is None else s_aux.reshape(-1)
    call = Call(query, key, value, dropout, scaling, position_bias, softcap, sink, weights)
    graph, flat, bias = _graph_of(call, found)
    out = _attention(call, graph, flat, bias)
    return out, _weights(call, graph, flat, bias, keys, sizes.keys) if weights else None


# --- over a graph ---------------------------------------------------------------------------------

PairBias = Callable[[Tensor, Tensor], Tensor]


def _graph_of(call: Call, found: Found) -> tuple[Graph, bool, PairBias | None]:
    """The graph of a call, whether it is on the nodes of all items, and the bias of its pairs."""
    size, _, queries, _ = call.query.shape
    graph, flat, mask = found.graph, found.flat, found.mask
    if graph is None and mask is not None and mask.dtype == torch.bool and mask.shape[1] == 1:
        graphs = [from_mask(item[0]) for item in mask.expand(-1, 1, queries, call.key.shape[2])]
        graph, flat, mask = batch(graphs) if len(mask) > 1 else graphs[0], len(mask) > 1, None
    elif graph is None:
        graph = _unmasked(queries, call.key.shape[2], found.causal)
    dense = [x for x in (call.position_bias, mask) if x is not None]
    if not flat and any(len(x) > 1 for x in dense):
        graph, flat = batch([graph] * size), True
    return graph, flat, _bias(dense, queries, call.key.shape[2])


def _unmasked(queries: int, keys: int, is_causal: bool) -> Graph:
    if not is_causal:
        return bipartite(queries, keys)
    at = Place(queries, keys, 0, 0, min(queries, keys))
    return place(causal(queries), at)


def _bias(dense: list[Tensor], queries: int, keys: int) -> PairBias | None:
    """The sum of dense biases as a function of pairs, of one item or of all.

    Args:
        dense: (batch or 1, heads or 1, queries or 1, keys): bool, or added to the scores.
    """
    if not dense:
        return None
    added = [_added(x).expand(-1, -1, queries, keys) for x in dense]

    def bias(dst: Tensor, src: Tensor) -> Tensor:
        item, dst, src = dst // queries, dst % queries, src % keys
        of_each = [
            x[item, :, dst, src] if len(x) > 1 else x[0][:, dst, src].movedim(0, 1) for x in added
        ]
        return torch.stack(torch.broadcast_tensors(*of_each)).sum(0)  # (pairs, heads or 1)

    return bias


def _added(mask: Tensor) -> Tensor:
    """A mask as what is added to the scores: -inf where transformers has the smallest number."""
    if mask.dtype == torch.bool:
        zero = torch.zeros((), device=mask.device)
        return zero.masked_fill(~mask, -torch.inf)
    return mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


def _attention(call: Call, graph: Graph, flat: bool, bias: PairBias | None) -> Tensor:
    """(batch, queries, heads, value_dim)."""
    size, _, queries, _ = call.query.shape
    query, key, value = (_nodes(x, flat) for x in (call.query, call.key, call.value))
    out = attention(
        query,
        key,
        value,
        graph,
        bias=bias,
        normalizer=Softmax(call.sink),
        scale=call.scaling,
        softcap=call.softcap,
        dropout=call.dropout,
    )
    return out.view(size, queries, *out.shape[-2:]) if flat else out.contiguous()


def _weights(
    call: Call, graph: Graph, flat: bool, bias: PairBias | None, keys: Columns | None, num_keys: int
) -> Tensor:
    """The weights of all pairs, (batch, heads, queries, keys); 0 where there is no edge."""
    size, heads, queries, _ = call.query.shape
    weights = attention_weights(
        _nodes(call.query, flat),
        _nodes(call.key, flat),
        graph,
        bias=bias,
        normalizer=Softmax(call.sink),
        scale=call.scaling,
        softcap=call.softcap,
    )
    (src, dst), read = graph.edge_index, call.key.shape[2]
    full = weights.new_zeros(size, queries, read, heads)
    if flat:
        full[dst // queries, dst % queries, src % read] = weights
    else:
        full[:, dst, src] = weights
    full = full.permute(0, 3, 1, 2)
    if keys is None:
        return full
    whole = full.new_zeros(size, heads, queries, num_keys)
    whole[..., keys] = full
    return whole


def _nodes(x: Tensor, flat: bool) -> Tensor:
    """(batch, heads, nodes, dim) as graphattn has it: (batch, nodes, heads, dim), or flat."""
    x = x.transpose(1, 2)
    return x.flatten(0, 1) if flat else x


# --- what can't be honored ------------------------------------------------------------------------


def _weights_are_recorded() -> bool:
    """Whether the model collects attention weights, of which it tells the layers nothing."""
    collected = output_capturing._active_collector.get()
    return bool(collected) and any("attentions" in name for name in collected)


def _refuse(mask: Any, others: dict[str, Any]) -> None:
    """Raise if the layer says something that would change the result."""
    is_dense = isinstance(mask, Tensor) and mask.ndim == 4
    if mask is not None and not is_dense and not isinstance(mask, Tokens):
        kind = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise TypeError(
            "graphattn takes masks (batch, heads or 1, queries, keys) and those of its own "
            f"mask function, got one {kind}; hf.restore(model) lets transformers take it"
        )
    for name, value in others.items():
        if value is None or value is False or name in HARMLESS:
            continue
        if name == "cache":
            raise ValueError(
                "graphattn can't read a cache that pages (continuous batching); use generate(), "
                "or hf.restore(model)"
            )
        if name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            if isinstance(mask, Tokens) and mask.rule is not None and mask.rule.packed is not None:
                continue
            if len(value) <= 2:  # one sequence
                continue
            raise ValueError(
                f"{name} says that sequences are packed, and position_ids doesn't: give "
                "position_ids that begin anew with each, and no attention_mask"
            )
        raise ValueError(
            f"the layer gives {name}, and graphattn doesn't know what it means; "
            "hf.restore(model) lets transformers compute it"
        )
