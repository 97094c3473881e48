"""The functions of the kernel for intervals, compiled by Triton; `intervals.py` launches them.

A program computes ROWS rows of one head, and walks over the nodes at their other end, STEP at a
time, over one interval of the rows after the other. First and last come steps in which some of the
rows hear only some of the nodes; between them those in which all rows hear all nodes, without a
mask. (Where there is a bias, which takes longer than a mask, all is one phase, and fewer registers
do.)

Common arguments: query, key, value with the strides of their batch and node; bias in edge order, or
None, with the stride of its batch (0 if it shares it); seed, or None if no weight is dropped, else
those are whose 32 random bits are below `drop`, and the others are multiplied by `keep`; ptr,
bounds, some, each, edge as in `SpanRows`, edge or None, of whose blocks a program takes CHUNKS. Of
logits see `tiles_jit.py`: stats (batch, num_dst, 2, heads) are their maximum in a row and 1 / the
sum of the powers, 0 and 1 without softmax. Numbers are passed as float64.
"""

import triton
import triton.language as tl

from graphattn.kernels.tiles_jit import (
    PRECISION,
    finished,
    gradients_of,
    kept,
    logits_of,
    numbers_of,
    places,
    put_tile,
    tile_of,
    weigh,
    weights_of,
)
from graphattn.kernels.triton_math import LOG2E, number

# Sizes of the graph: they change from call to call, and nothing is gained by compiling for them.
SIZES = ["num_dst", "num_src", "num_blocks"]


# --- rows and their intervals ---------------------------------------------------------------------


@triton.jit
def my_block(num_rows, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Item of the batch, head and block of this program; heads follow each other."""
    head, rest = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    blocks = tl.cdiv(num_rows, ROWS)
    return (rest // blocks).to(tl.int64), head, rest % blocks


@triton.jit
def phases(some, each, part, block, num_blocks, CHUNKS: tl.constexpr, STEP: tl.constexpr):
    """Where a walk of a block begins, needs no mask any more, needs one again, and ends."""
    some += 2 * part * num_blocks
    each += 2 * part * num_blocks
    chunk = block * CHUNKS
    low, high = tl.load(some + 2 * chunk), tl.load(some + 2 * chunk + 1)
    inner_low, inner_high = tl.load(each + 2 * chunk), tl.load(each + 2 * chunk + 1)
    for _ in tl.static_range(CHUNKS - 1):
        chunk = tl.minimum(chunk + 1, num_blocks - 1)
        low = tl.minimum(low, tl.load(some + 2 * chunk))
        high = tl.maximum(high, tl.load(some + 2 * chunk + 1))
        inner_low = tl.maximum(inner_low, tl.load(each + 2 * chunk))
        inner_high = tl.minimum(inner_high, tl.load(each + 2 * chunk + 1))
    # Of rows that hear nobody, low is the largest number of all: nothing may be added to it, not
    # even by the compiler, which loads ahead where low + STEP is below high.
    low, inner_low = tl.minimum(low, high), tl.minimum(inner_low, high)
    first = tl.minimum(low + tl.cdiv(tl.maximum(inner_low - low, 0), STEP) * STEP, high)
    last = first + tl.maximum(inner_high - first, 0) // STEP * STEP
    return low, tl.maximum(first, low), tl.maximum(last, low), high


@triton.jit
def phase_of(low, inner_low, inner_high, high, PHASE: tl.constexpr, PHASES: tl.constexpr):
    """Where one of three phases of a walk begins and ends; or where all of it does."""
    if PHASES == 1:
        return low, high
    elif PHASE == 0:
        return low, inner_low
    elif PHASE == 1:
        return inner_low, inner_high
    else:
        return inner_high, high


@triton.jit
def bounds_of(bounds, part, row, num_rows, valid):
    """One interval of rows: where it starts and stops, int32, each as row."""
    at = bounds + 2 * part * tl.cast(num_rows, tl.int64) + row
    return tl.load(at, mask=valid, other=0), tl.load(at + num_rows, mask=valid, other=0)


@triton.jit
def origin_of(ptr, bounds, part, row, num_rows, valid):
    """Of rows, what the nodes of an interval are less than the numbers of their edges; int64."""
    start, stop = bounds_of(bounds, 0, row, num_rows, valid)
    own, _ = bounds_of(bounds, part, row, num_rows, valid)
    before = tl.where(part == 0, 0, stop - start)
    return tl.load(ptr + row, mask=valid, other=0) + (before - own)


# --- forward --------------------------------------------------------------------------------------


@triton.jit
def attend_steps(
    q, i, start, stop, origin, top, total, acc, key, value, begin, end, key_node, value_node,
    bias, edge, seed, head, numbered_head, scale, softcap, drop, keep,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Maxima, sums and weighted values of rows `i` after the nodes from `begin` to `end`."""
    at_k, at_v = places(key_node, STEP, HEAD_BLOCK), places(value_node, STEP, VALUE_BLOCK)
    for node in range(begin, end, STEP):
        j = node + tl.arange(0, STEP)[None, :]
        valid = (j >= start[:, None]) & (j < stop[:, None])
        k = tile_of(key, node, key_node, at_k, end, STEP, HEAD_DIM, HEAD_BLOCK, MASKED)
        pair = j
        if bias is not None:
            pair = numbers_of(edge, origin[:, None] + j, valid, head, HEADS)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, _ = logits_of(s, scale, softcap, bias, pair, valid, CAPPED, NORMALIZER, MASKED)
        p, top, total, acc = weigh(s, top, total, acc, NORMALIZER)
        if seed is not None:
            p *= kept(seed, i[:, None], j, numbered_head, drop, keep)
        v = tile_of(value, node, value_node, at_v, end, STEP, VALUE_DIM, VALUE_BLOCK, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return top, total, acc


@triton.jit(do_not_specialize=SIZES)
def forward(
    query, key, value, bias, seed, ptr, bounds, some, each, edge,
    query_batch, query_node, key_batch, key_node, value_batch, value_node, bias_batch,
    num_dst, num_src, num_blocks,
    scale: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, PARTS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    sink, out, stats,
):  # fmt: skip
    """Output and statistics of the destinations of a block. sink (HEADS,) or None."""
    b, head, block = my_block(num_dst, HEADS, ROWS)
    scale, softcap, keep = (
        number(scale, tl.float32),
        number(softcap, tl.float32),
        number(keep, tl.float32),
    )
    row, first = block * ROWS + tl.arange(0, ROWS), block * ROWS
    there = row < num_dst
    query += b * query_batch + head * HEAD_DIM
    key += b * key_batch + head // (HEADS // KV_HEADS) * HEAD_DIM
    value += b * value_batch + head // (HEADS // KV_HEADS) * VALUE_DIM
    if bias is not None:
        bias += b * bias_batch
    at_q = places(query_node, ROWS, HEAD_BLOCK)
    q = tile_of(query, first, query_node, at_q, num_dst, ROWS, HEAD_DIM, HEAD_BLOCK, True)
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sink is not None:
        top = tl.zeros((ROWS,), tl.float32) + tl.load(sink + head).to(tl.float32) * LOG2E
        total += 1.0
    acc = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    PHASES: tl.constexpr = 3 if bias is None else 1
    for part in range(PARTS):
        start, stop = bounds_of(bounds, part, row, num_dst, there)
        origin = row
        if bias is not None:
            origin = origin_of(ptr, bounds, part, row, num_dst, there)
        low, inner_low, inner_high, high = phases(some, each, part, block, num_blocks, CHUNKS, STEP)
        for phase in tl.static_range(PHASES):
            begin, end = phase_of(low, inner_low, inner_high, high, phase, PHASES)
            top, total, acc = attend_steps(
                q, row, start, stop, origin, top, total, acc, key, value, begin, end,
                key_node, value_node, bias, edge, seed, head, b * HEADS + head,
                scale, softcap, drop, keep, CAPPED, NORMALIZER, HEADS, HEAD_DIM, VALUE_DIM,
                HEAD_BLOCK, VALUE_BLOCK, STEP, phase != 1,
            )  # fmt: skip
    top, inverse, acc = finished(top, total, acc, NORMALIZER)
    out += b * num_dst * HEADS * VALUE_DIM + head * VALUE_DIM
    put_tile(
        out, first, HEADS * VALUE_DIM, acc.to(out.dtype.element_ty), num_dst,
        ROWS, VALUE_DIM, VALUE_BLOCK,
    )  # fmt: skip
    at = stats + 2 * (b * num_dst + row) * HEADS + head
    tl.store(at, top, mask=there)
    tl.store(at + HEADS, inverse, mask=there)


# --- backward -------------------------------------------------------------------------------------


@triton.jit
def query_steps(
    q, do, i, start, stop, origin, top, inverse, mean, dq, key, value, begin, end,
    key_node, value_node, bias, grad_bias, edge, seed, head, numbered_head,
    scale, softcap, drop, keep,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients of queries `i`, without scale, after the nodes from `begin` to `end`."""
    at_k, at_v = places(key_node, STEP, HEAD_BLOCK), places(value_node, STEP, VALUE_BLOCK)
    for node in range(begin, end, STEP):
        j = node + tl.arange(0, STEP)[None, :]
        valid = (j >= start[:, None]) & (j < stop[:, None])
        k = tile_of(key, node, key_node, at_k, end, STEP, HEAD_DIM, HEAD_BLOCK, MASKED)
        v = tile_of(value, node, value_node, at_v, end, STEP, VALUE_DIM, VALUE_BLOCK, MASKED)
        pair = j
        if bias is not None:
            pair = numbers_of(edge, origin[:, None] + j, valid, head, HEADS)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, bent = logits_of(s, scale, softcap, bias, pair, valid, CAPPED, NORMALIZER, MASKED)
        p = weights_of(s, top[:, None], inverse[:, None], NORMALIZER)
        factor = p
        if seed is not None:
            factor = kept(seed, i[:, None], j, numbered_head, drop, keep)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        _, db, ds = gradients_of(
            s, bent, p, dp, mean[:, None], factor, CAPPED, NORMALIZER, seed is not None
        )
        if grad_bias is not None:
            tl.store(grad_bias + pair, db, mask=valid)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=SIZES)
def by_destination(
    query, key, value, bias, seed, ptr, bounds, some, each, edge,
    query_batch, query_node, key_batch, key_node, value_batch, value_node, bias_batch,
    num_dst, num_src, num_blocks,
    scale: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, PARTS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, out, stats, delta, grad_query, grad_bias,
):  # fmt: skip
    """Gradients of the queries of a block; delta (batch, num_dst, heads) is written.

    delta: Of every row, the sum of each weight times its gradient, which is that of out x grad_out.
    grad_bias: (batch, E, heads), or None.
    """
    b, head, block = my_block(num_dst, HEADS, ROWS)
    scale, softcap, keep = (
        number(scale, tl.float32),
        number(softcap, tl.float32),
        number(keep, tl.float32),
    )
    row, first = block * ROWS + tl.arange(0, ROWS), block * ROWS
    there = row < num_dst
    query += b * query_batch + head * HEAD_DIM
    key += b * key_batch + head // (HEADS // KV_HEADS) * HEAD_DIM
    value += b * value_batch + head // (HEADS // KV_HEADS) * VALUE_DIM
    if bias is not None:
        bias += b * bias_batch
    if grad_bias is not None:
        grad_bias += b * tl.load(ptr + num_dst) * HEADS
    grad_out += b * grad_out_batch + head * VALUE_DIM
    out += b * num_dst * HEADS * VALUE_DIM + head * VALUE_DIM
    stride: tl.constexpr = HEADS * VALUE_DIM
    at_q, at_o = places(query_node, ROWS, HEAD_BLOCK), places(stride, ROWS, VALUE_BLOCK)
    at_do = places(grad_out_node, ROWS, VALUE_BLOCK)
    q = tile_of(query, first, query_node, at_q, num_dst, ROWS, HEAD_DIM, HEAD_BLOCK, True)
    do = tile_of(grad_out, first, grad_out_node, at_do, num_dst, ROWS, VALUE_DIM, VALUE_BLOCK, True)
    o = tile_of(out, first, stride, at_o, num_dst, ROWS, VALUE_DIM, VALUE_BLOCK, True)
    mean = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + (b * num_dst + row) * HEADS + head, mean, mask=there)
    at = stats + 2 * (b * num_dst + row) * HEADS + head
    top = tl.load(at, mask=there, other=0.0)
    inverse = tl.load(at + HEADS, mask=there, other=0.0)
    dq = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    PHASES: tl.constexpr = 3 if bias is None else 1
    for part in range(PARTS):
        start, stop = bounds_of(bounds, part, row, num_dst, there)
        origin = row
        if bias is not None:
            origin = origin_of(ptr, bounds, part, row, num_dst, there)
        low, inner_low, inner_high, high = phases(some, each, part, block, num_blocks, CHUNKS, STEP)
        for phase in tl.static_range(PHASES):
            begin, end = phase_of(low, inner_low, inner_high, high, phase, PHASES)
            dq = query_steps(
                q, do, row, start, stop, origin, top, inverse, mean, dq, key, value, begin, end,
                key_node, value_node, bias, grad_bias, edge, seed, head, b * HEADS + head,
                scale, softcap, drop, keep, CAPPED, NORMALIZER, HEADS, HEAD_DIM, VALUE_DIM,
                HEAD_BLOCK, VALUE_BLOCK, STEP, phase != 1,
            )  # fmt: skip
    grad_query += b * num_dst * HEADS * HEAD_DIM + head * HEAD_DIM
    dq = (dq * scale).to(grad_query.dtype.element_ty)
    put_tile(grad_query, first, HEADS * HEAD_DIM, dq, num_dst, ROWS, HEAD_DIM, HEAD_BLOCK)


@triton.jit
def key_steps(
    k, v, j, start, stop, dk, dv, query, grad_out, stats, delta, begin, end,
    query_node, grad_out_node, bias, dst_ptr, dst_bounds, edge, seed, head, numbered_head, num_dst,
    scale, softcap, drop, keep,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, DST_PARTS: tl.constexpr, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values `j` after the destinations from `begin` to `end`.

    Those of keys lack the scale.
    """
    at_q, at_do = places(query_node, STEP, HEAD_BLOCK), places(grad_out_node, STEP, VALUE_BLOCK)
    for node in range(begin, end, STEP):
        i = node + tl.arange(0, STEP)
        there = i < end
        valid = (i[None, :] >= start[:, None]) & (i[None, :] < stop[:, None])
        row = i.to(tl.int64) * HEADS
        q = tile_of(query, node, query_node, at_q, end, STEP, HEAD_DIM, HEAD_BLOCK, MASKED)
        do = tile_of(
            grad_out, node, grad_out_node, at_do, end, STEP, VALUE_DIM, VALUE_BLOCK, MASKED
        )
        top = tl.load(stats + 2 * row, mask=there, other=0.0)
        inverse = tl.load(stats + 2 * row + HEADS, mask=there, other=0.0)
        mean = tl.load(delta + row, mask=there, other=0.0)
        pair = i[None, :]
        if bias is not None:
            origin = origin_of(dst_ptr, dst_bounds, 0, i, num_dst, there)[None, :]
            if DST_PARTS == 2:
                _, first_stop = bounds_of(dst_bounds, 0, i, num_dst, there)
                second = origin_of(dst_ptr, dst_bounds, 1, i, num_dst, there)
                origin = tl.where(j[:, None] < first_stop[None, :], origin, second[None, :])
            pair = numbers_of(edge, origin + j[:, None], valid, head, HEADS)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        s, bent = logits_of(s, scale, softcap, bias, pair, valid, CAPPED, NORMALIZER, MASKED)
        p = weights_of(s, top[None, :], inverse[None, :], NORMALIZER)
        factor = p
        if seed is not None:
            factor = kept(seed, i[None, :], j[:, None], numbered_head, drop, keep)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        p, _, ds = gradients_of(
            s, bent, p, dp, mean[None, :], factor, CAPPED, NORMALIZER, seed is not None
        )
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def by_source(
    query, key, value, bias, seed, ptr, bounds, some, each, edge,
    query_batch, query_node, key_batch, key_node, value_batch, value_node, bias_batch,
    num_dst, num_src, num_blocks,
    scale: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, PARTS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, stats, delta, grad_key, grad_value,
    dst_ptr, dst_bounds, DST_PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values of a block, over the transpose, whose rows are the sources.

    The heads that share a key head are walked over one after the other. dst_ptr, dst_bounds: Of the
    destinations, from which the places of edges are told.
    """
    b, kv, block = my_block(num_src, KV_HEADS, ROWS)
    scale, softcap, keep = (
        number(scale, tl.float32),
        number(softcap, tl.float32),
        number(keep, tl.float32),
    )
    row, first = block * ROWS + tl.arange(0, ROWS), block * ROWS
    there = row < num_src
    key += b * key_batch + kv * HEAD_DIM
    value += b * value_batch + kv * VALUE_DIM
    if bias is not None:
        bias += b * bias_batch
    at_k, at_v = places(key_node, ROWS, HEAD_BLOCK), places(value_node, ROWS, VALUE_BLOCK)
    k = tile_of(key, first, key_node, at_k, num_src, ROWS, HEAD_DIM, HEAD_BLOCK, True)
    v = tile_of(value, first, value_node, at_v, num_src, ROWS, VALUE_DIM, VALUE_BLOCK, True)
    dk = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    dv = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    PHASES: tl.constexpr = 3 if bias is None else 1
    for walk in range(GROUP * PARTS):
        head, part = kv * GROUP + walk % GROUP, walk // GROUP
        start, stop = bounds_of(bounds, part, row, num_src, there)
        low, inner_low, inner_high, high = phases(some, each, part, block, num_blocks, CHUNKS, STEP)
        q = query + b * query_batch + head * HEAD_DIM
        do = grad_out + b * grad_out_batch + head * VALUE_DIM
        stat = stats + 2 * b * num_dst * HEADS + head
        mean = delta + b * num_dst * HEADS + head
        for phase in tl.static_range(PHASES):
            begin, end = phase_of(low, inner_low, inner_high, high, phase, PHASES)
            dk, dv = key_steps(
                k, v, row, start, stop, dk, dv, q, do, stat, mean, begin, end,
                query_node, grad_out_node, bias, dst_ptr, dst_bounds, edge, seed, head,
                b * HEADS + head, num_dst, scale, softcap, drop, keep, CAPPED, NORMALIZER,
                DST_PARTS, HEADS, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, phase != 1,
            )  # fmt: skip
    grad_key += b * num_src * KV_HEADS * HEAD_DIM + kv * HEAD_DIM
    grad_value += b * num_src * KV_HEADS * VALUE_DIM + kv * VALUE_DIM
    dk = (dk * scale).to(grad_key.dtype.element_ty)
    put_tile(grad_key, first, KV_HEADS * HEAD_DIM, dk, num_src, ROWS, HEAD_DIM, HEAD_BLOCK)
    dv = dv.to(grad_value.dtype.element_ty)
    put_tile(grad_value, first, KV_HEADS * VALUE_DIM, dv, num_src, ROWS, VALUE_DIM, VALUE_BLOCK)
