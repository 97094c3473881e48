"""What the kernels on tensor cores share where they are launched; see `tiles_jit.py`.

They compute scaled dot products under the normalizers of the fused operator, with biases of edges.
A NaN or an infinity in a value reaches all rows of a tile, as in all attention by blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphattn.kernels.fused import Call, is_fused, sink_gradient
from graphattn.kernels.launch import interpreted, of_edges, of_nodes, power_of_2, triton_is_missing
from graphattn.kernels.problem import Problem
from graphattn.normalizers import identity
from graphattn.scores import Dot

LARGEST_DIM = {2: 256, 4: 128}  # by the bytes of a number
MOST_NODES = 2**30  # so that the end of a block is an int32
LN2 = 0.6931471805599453


def beyond_tiles(problem: Problem) -> str | None:
    """Why no kernel on tensor cores can compute this over any graph, if so."""
    query, value = problem.query, problem.value
    if not isinstance(problem.score, Dot) or not is_fused(problem):
        return "it computes scaled dot products, with softmax, sigmoid or no normalizer"
    if problem.edge_key is not None or problem.edge_value is not None:
        return "it knows no features of edges, which would be gathered one by one"
    if not query.is_cuda and not interpreted():
        return f"it runs on a GPU, and the tensors are on {query.device}"
    if (largest := LARGEST_DIM.get(query.element_size())) is None:
        return f"it multiplies half types and sums in float32, and the tensors are of {query.dtype}"
    if query.dtype == torch.float16 and problem.normalizer is identity:
        return "it rounds weights to float16, which they may be beyond without a normalizer"
    if (dim := max(query.shape[-1], value.shape[-1])) > largest:
        return f"it takes up to {largest} numbers a head in {query.dtype}, and here are {dim}"
    if (nodes := max(query.shape[-3], problem.key.shape[-3])) > MOST_NODES:
        return f"it takes up to {MOST_NODES:,} nodes, and here are {nodes:,}"
    return triton_is_missing("graphattn.kernels.tiles_jit")


def blocks_of_dims(call: Call) -> tuple[int, int]:
    """Powers of two for the numbers of a key and of a value."""
    dims = call.query.shape[-1], call.value.shape[-1]
    head_block, value_block = (max(power_of_2(dim), 16) for dim in dims)  # 16: least of a product
    return head_block, value_block


def class_of(width: int, query: Tensor) -> tuple[int, int]:
    """The bytes of a number, and the head dimension that tiles for so many numbers are made for."""
    return query.element_size(), next(size for size in (64, 128, 256) if width <= size)


def common(call: Call) -> dict[str, Any]:
    """The arguments that all functions take, but for those of the graph and the tiles."""
    query, key, value = call.query, call.key, call.value
    head_block, value_block = blocks_of_dims(call)
    return {
        **of_nodes("query", query),
        **of_nodes("key", key),
        **of_nodes("value", value),
        **of_edges("bias", call.bias, 2, call.batch),
        "seed": call.seed,
        "num_dst": query.shape[-3],
        "num_src": key.shape[-3],
        "scale": call.scale,
        "softcap": call.softcap,
        "drop": int(call.dropout * 2**32),
        "keep": 1 / (1 - call.dropout),
        "CAPPED": call.softcap != 0,
        "NORMALIZER": call.normalizer,
        "HEADS": query.shape[-2],
        "KV_HEADS": key.shape[-2],
        "HEAD_DIM": query.shape[-1],
        "VALUE_DIM": value.shape[-1],
        "HEAD_BLOCK": head_block,
        "VALUE_BLOCK": value_block,
    }


def empty_outputs(call: Call) -> tuple[Tensor, Tensor]:
    """Room for the output and for the statistics."""
    query = call.query
    out = query.new_empty((*query.shape[:-1], call.value.shape[-1]))
    return out, query.new_empty((*query.shape[:-2], 2, query.shape[-2]), dtype=torch.float32)


def empty_gradients(call: Call, needed: Sequence[bool]) -> list[Tensor | None]:
    """Room for the gradients of query, key, value and, if needed, of the bias, all of a batch."""
    grads: list[Tensor | None] = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (call.query, call.key, call.value)
    ]
    bias = call.bias if needed[3] else None
    return [*grads, None if bias is None else bias.new_empty((*call.batch, *bias.shape[-2:]))]


def all_gradients(
    call: Call,
    grads: list[Tensor | None],
    stats: Tensor,
    delta: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Those of the first nine tensors of a call, from those of the first four."""
    *of_nodes, of_bias = grads
    if of_bias is not None and call.bias is not None:
        of_bias = of_bias.sum_to_size(call.bias.shape)
    of_sink = None
    if needed[8]:
        stats = stats.clone()
        stats[..., 0, :] *= LN2
        of_sink = sink_gradient(call, stats, delta)
    return [*of_nodes, of_bias, *[None] * 4, of_sink]
