"""The functions of the kernel for intervals, compiled by Triton; `intervals.py` launches them.

A program computes ROWS rows of one head, and walks over the nodes at their other end, STEP at a
time. First and last come steps in which some of the rows hear only some of the nodes; between them
those in which all rows hear all nodes, without a mask.

Common arguments: query, key, value with the strides of their batch and node; ptr, index, some, each
of the intervals and the `Reach` of their blocks, of which a program takes CHUNKS. Logits are
counted in units of ln 2, so that exponentials are powers of two: stats (batch, num_dst, 2, heads)
are their maximum in a row, in these units, and 1 / the sum of the powers. Numbers are passed as
float64; sums are float32 throughout.
"""

import triton
import triton.language as tl

from graphattn.kernels.triton_math import LOG2E, number, tanh_of

PRECISION = tl.constexpr("ieee")  # of products of float32, which tensor cores would round

# Sizes of the graph: they change from call to call, and nothing is gained by compiling for them.
SIZES = ["num_dst", "num_src", "num_blocks"]


# --- rows and tiles -------------------------------------------------------------------------------


@triton.jit
def my_block(num_rows, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Item of the batch, head and block of this program; heads follow each other."""
    head, rest = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    blocks = tl.cdiv(num_rows, ROWS)
    return (rest // blocks).to(tl.int64), head, rest % blocks


@triton.jit
def phases(some, each, block, num_blocks, CHUNKS: tl.constexpr, STEP: tl.constexpr):
    """Where the walk of a block begins, needs no mask any more, needs one again, and ends."""
    chunk = block * CHUNKS
    low, high = tl.load(some + 2 * chunk), tl.load(some + 2 * chunk + 1)
    inner_low, inner_high = tl.load(each + 2 * chunk), tl.load(each + 2 * chunk + 1)
    for _ in tl.static_range(CHUNKS - 1):
        chunk = tl.minimum(chunk + 1, num_blocks - 1)
        low = tl.minimum(low, tl.load(some + 2 * chunk))
        high = tl.maximum(high, tl.load(some + 2 * chunk + 1))
        inner_low = tl.maximum(inner_low, tl.load(each + 2 * chunk))
        inner_high = tl.minimum(inner_high, tl.load(each + 2 * chunk + 1))
    inner_low = tl.minimum(inner_low, high)  # nothing is added to the largest number of all
    first = tl.minimum(low + tl.cdiv(tl.maximum(inner_low - low, 0), STEP) * STEP, high)
    last = first + tl.maximum(inner_high - first, 0) // STEP * STEP
    return low, tl.maximum(first, low), tl.maximum(last, low), high


@triton.jit
def bounds(ptr, index, row, num_rows):
    """The intervals of rows: int32, each as row."""
    there = row < num_rows
    start = tl.load(index + row, mask=there, other=0)
    begin = tl.load(ptr + row, mask=there, other=0)
    end = tl.load(ptr + row + 1, mask=there, other=0)
    return start, start + (end - begin).to(tl.int32)


@triton.jit
def tile_of(
    x, node, stride, at, limit,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """Numbers of the nodes from `node` on, (ROWS, BLOCK); if CHECKED, 0 for those from `limit` on.

    at: (ROWS, BLOCK), where they are, counted from the first.
    """
    d = tl.arange(0, BLOCK)[None, :]
    there = (node + tl.arange(0, ROWS))[:, None] < limit
    x += tl.cast(node, tl.int64) * stride
    if CHECKED and BLOCK != DIM:
        return tl.load(x + at, mask=there & (d < DIM), other=0.0)
    elif CHECKED:
        return tl.load(x + at, mask=there, other=0.0)
    elif BLOCK != DIM:
        return tl.load(x + at, mask=d < DIM, other=0.0)
    else:
        return tl.load(x + at)


@triton.jit
def places(stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Where the numbers of consecutive nodes are, int64 (ROWS, BLOCK)."""
    return tl.arange(0, ROWS).to(tl.int64)[:, None] * stride + tl.arange(0, BLOCK)[None, :]


@triton.jit
def put_tile(
    x, node, stride, tile, limit, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the numbers of the nodes from `node` on and below `limit`."""
    there = (node + tl.arange(0, ROWS) < limit)[:, None] & (tl.arange(0, BLOCK) < DIM)[None, :]
    x += tl.cast(node, tl.int64) * stride
    tl.store(x + places(stride, ROWS, BLOCK), tile, mask=there)


# --- the arithmetic of pairs ----------------------------------------------------------------------


@triton.jit
def logits_of(products, scale, softcap, CAPPED: tl.constexpr):
    """Logits in units of ln 2, and what they were bent to, if CAPPED."""
    if CAPPED:
        bent = tanh_of(products * (scale / softcap))
        return bent * (softcap * LOG2E), bent
    else:
        return products * (scale * LOG2E), products


@triton.jit
def slope_of(ds, bent, CAPPED: tl.constexpr):
    """Gradients of what was bent, from those of the logits."""
    if CAPPED:
        return ds * (1.0 - bent * bent)
    else:
        return ds


# --- forward --------------------------------------------------------------------------------------


@triton.jit
def attend_steps(
    q, start, stop, top, total, acc, key, value, begin, end, key_node, value_node,
    scale, softcap, CAPPED: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Maxima, sums and weighted values of rows after the nodes from `begin` to `end`."""
    at_k, at_v = places(key_node, STEP, HEAD_BLOCK), places(value_node, STEP, VALUE_BLOCK)
    for node in range(begin, end, STEP):
        k = tile_of(key, node, key_node, at_k, end, STEP, HEAD_DIM, HEAD_BLOCK, MASKED)
        s, _ = logits_of(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, CAPPED)
        if MASKED:
            j = node + tl.arange(0, STEP)[None, :]
            s = tl.where((j >= start[:, None]) & (j < stop[:, None]), s, -float("inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(p, 1)
        v = tile_of(value, node, value_node, at_v, end, STEP, VALUE_DIM, VALUE_BLOCK, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        top = higher
    return top, total, acc


@triton.jit(do_not_specialize=SIZES)
def forward(
    query, key, value, ptr, index, some, each,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    num_dst, num_src, num_blocks, scale: tl.float64, softcap: tl.float64,
    CAPPED: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    sink, out, stats,
):  # fmt: skip
    """Output and statistics of the destinations of a block. sink (HEADS,) or None."""
    b, head, block = my_block(num_dst, HEADS, ROWS)
    scale, softcap = number(scale, tl.float32), number(softcap, tl.float32)
    row, first = block * ROWS + tl.arange(0, ROWS), block * ROWS
    start, stop = bounds(ptr, index, row, num_dst)
    low, inner_low, inner_high, high = phases(some, each, block, num_blocks, CHUNKS, STEP)
    query += b * query_batch + head * HEAD_DIM
    key += b * key_batch + head // (HEADS // KV_HEADS) * HEAD_DIM
    value += b * value_batch + head // (HEADS // KV_HEADS) * VALUE_DIM
    at_q = places(query_node, ROWS, HEAD_BLOCK)
    q = tile_of(query, first, query_node, at_q, num_dst, ROWS, HEAD_DIM, HEAD_BLOCK, True)
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sink is not None:
        top = tl.zeros((ROWS,), tl.float32) + tl.load(sink + head).to(tl.float32) * LOG2E
        total += 1.0
    acc = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    top, total, acc = attend_steps(
        q, start, stop, top, total, acc, key, value, low, inner_low, key_node, value_node,
        scale, softcap, CAPPED, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, True,
    )  # fmt: skip
    top, total, acc = attend_steps(
        q, start, stop, top, total, acc, key, value, inner_low, inner_high, key_node, value_node,
        scale, softcap, CAPPED, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, False,
    )  # fmt: skip
    top, total, acc = attend_steps(
        q, start, stop, top, total, acc, key, value, inner_high, high, key_node, value_node,
        scale, softcap, CAPPED, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, True,
    )  # fmt: skip
    inverse = tl.where(total > 0, 1.0 / total, total)  # what is NaN stays so
    top = tl.where(top == -float("inf"), 0.0, top)
    out += b * num_dst * HEADS * VALUE_DIM + head * VALUE_DIM
    put_tile(
        out, first, HEADS * VALUE_DIM, (acc * inverse[:, None]).to(out.dtype.element_ty), num_dst,
        ROWS, VALUE_DIM, VALUE_BLOCK,
    )  # fmt: skip
    at = stats + 2 * (b * num_dst + row) * HEADS + head
    tl.store(at, top, mask=row < num_dst)
    tl.store(at + HEADS, inverse, mask=row < num_dst)


# --- backward -------------------------------------------------------------------------------------


@triton.jit
def query_steps(
    q, do, start, stop, top, inverse, mean, dq, key, value, begin, end, key_node, value_node,
    scale, softcap, CAPPED: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, without scale, after the nodes from `begin` to `end`."""
    at_k, at_v = places(key_node, STEP, HEAD_BLOCK), places(value_node, STEP, VALUE_BLOCK)
    for node in range(begin, end, STEP):
        k = tile_of(key, node, key_node, at_k, end, STEP, HEAD_DIM, HEAD_BLOCK, MASKED)
        v = tile_of(value, node, value_node, at_v, end, STEP, VALUE_DIM, VALUE_BLOCK, MASKED)
        s, bent = logits_of(
            tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, CAPPED
        )
        p = tl.exp2(s - top[:, None]) * inverse[:, None]
        if MASKED:
            j = node + tl.arange(0, STEP)[None, :]
            p = tl.where((j >= start[:, None]) & (j < stop[:, None]), p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = slope_of(p * (dp - mean[:, None]), bent, CAPPED)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=SIZES)
def by_destination(
    query, key, value, ptr, index, some, each,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    num_dst, num_src, num_blocks, scale: tl.float64, softcap: tl.float64,
    CAPPED: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, out, stats, delta, grad_query,
):  # fmt: skip
    """Gradients of the queries of a block; delta (batch, num_dst, heads) is written.

    delta: Of every row, the sum of each weight times its gradient, which is that of out x grad_out.
    """
    b, head, block = my_block(num_dst, HEADS, ROWS)
    scale, softcap = number(scale, tl.float32), number(softcap, tl.float32)
    row, first = block * ROWS + tl.arange(0, ROWS), block * ROWS
    start, stop = bounds(ptr, index, row, num_dst)
    low, inner_low, inner_high, high = phases(some, each, block, num_blocks, CHUNKS, STEP)
    query += b * query_batch + head * HEAD_DIM
    key += b * key_batch + head // (HEADS // KV_HEADS) * HEAD_DIM
    value += b * value_batch + head // (HEADS // KV_HEADS) * VALUE_DIM
    grad_out += b * grad_out_batch + head * VALUE_DIM
    out += b * num_dst * HEADS * VALUE_DIM + head * VALUE_DIM
    stride: tl.constexpr = HEADS * VALUE_DIM
    at_q, at_o = places(query_node, ROWS, HEAD_BLOCK), places(stride, ROWS, VALUE_BLOCK)
    at_do = places(grad_out_node, ROWS, VALUE_BLOCK)
    q = tile_of(query, first, query_node, at_q, num_dst, ROWS, HEAD_DIM, HEAD_BLOCK, True)
    do = tile_of(grad_out, first, grad_out_node, at_do, num_dst, ROWS, VALUE_DIM, VALUE_BLOCK, True)
    o = tile_of(out, first, stride, at_o, num_dst, ROWS, VALUE_DIM, VALUE_BLOCK, True)
    mean = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    there = row < num_dst
    tl.store(delta + (b * num_dst + row) * HEADS + head, mean, mask=there)
    at = stats + 2 * (b * num_dst + row) * HEADS + head
    top = tl.load(at, mask=there, other=0.0)
    inverse = tl.load(at + HEADS, mask=there, other=0.0)
    dq = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    dq = query_steps(
        q, do, start, stop, top, inverse, mean, dq, key, value, low, inner_low,
        key_node, value_node, scale, softcap, CAPPED,
        HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, True,
    )  # fmt: skip
    dq = query_steps(
        q, do, start, stop, top, inverse, mean, dq, key, value, inner_low, inner_high,
        key_node, value_node, scale, softcap, CAPPED,
        HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, False,
    )  # fmt: skip
    dq = query_steps(
        q, do, start, stop, top, inverse, mean, dq, key, value, inner_high, high,
        key_node, value_node, scale, softcap, CAPPED,
        HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, True,
    )  # fmt: skip
    grad_query += b * num_dst * HEADS * HEAD_DIM + head * HEAD_DIM
    dq = (dq * scale).to(grad_query.dtype.element_ty)
    put_tile(grad_query, first, HEADS * HEAD_DIM, dq, num_dst, ROWS, HEAD_DIM, HEAD_BLOCK)


@triton.jit
def key_steps(
    k, v, start, stop, dk, dv, query, grad_out, stats, delta, begin, end,
    query_node, grad_out_node, scale, softcap,
    CAPPED: tl.constexpr, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, without scale, and values after the destinations from `begin` to `end`."""
    at_q, at_do = places(query_node, STEP, HEAD_BLOCK), places(grad_out_node, STEP, VALUE_BLOCK)
    for node in range(begin, end, STEP):
        i = node + tl.arange(0, STEP)
        there = i < end
        row = i.to(tl.int64) * HEADS
        q = tile_of(query, node, query_node, at_q, end, STEP, HEAD_DIM, HEAD_BLOCK, MASKED)
        do = tile_of(
            grad_out, node, grad_out_node, at_do, end, STEP, VALUE_DIM, VALUE_BLOCK, MASKED
        )
        top = tl.load(stats + 2 * row, mask=there, other=0.0)
        inverse = tl.load(stats + 2 * row + HEADS, mask=there, other=0.0)
        mean = tl.load(delta + row, mask=there, other=0.0)
        s, bent = logits_of(
            tl.dot(k, tl.trans(q), input_precision=PRECISION), scale, softcap, CAPPED
        )
        p = tl.exp2(s - top[None, :]) * inverse[None, :]
        if MASKED:
            p = tl.where((i[None, :] >= start[:, None]) & (i[None, :] < stop[:, None]), p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = slope_of(p * (dp - mean[None, :]), bent, CAPPED)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=SIZES)
def by_source(
    query, key, value, ptr, index, some, each,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    num_dst, num_src, num_blocks, scale: tl.float64, softcap: tl.float64,
    CAPPED: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, stats, delta, grad_key, grad_value,
):  # fmt: skip
    """Gradients of the keys and values of a block, over the transpose, whose rows are the sources.

    The heads that share a key head are walked over one after the other.
    """
    b, kv, block = my_block(num_src, KV_HEADS, ROWS)
    scale, softcap = number(scale, tl.float32), number(softcap, tl.float32)
    row, first = block * ROWS + tl.arange(0, ROWS), block * ROWS
    start, stop = bounds(ptr, index, row, num_src)
    low, inner_low, inner_high, high = phases(some, each, block, num_blocks, CHUNKS, STEP)
    key += b * key_batch + kv * HEAD_DIM
    value += b * value_batch + kv * VALUE_DIM
    at_k, at_v = places(key_node, ROWS, HEAD_BLOCK), places(value_node, ROWS, VALUE_BLOCK)
    k = tile_of(key, first, key_node, at_k, num_src, ROWS, HEAD_DIM, HEAD_BLOCK, True)
    v = tile_of(value, first, value_node, at_v, num_src, ROWS, VALUE_DIM, VALUE_BLOCK, True)
    dk = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    dv = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    for head in range(kv * GROUP, (kv + 1) * GROUP):
        q = query + b * query_batch + head * HEAD_DIM
        do = grad_out + b * grad_out_batch + head * VALUE_DIM
        stat = stats + 2 * b * num_dst * HEADS + head
        mean = delta + b * num_dst * HEADS + head
        dk, dv = key_steps(
            k, v, start, stop, dk, dv, q, do, stat, mean, low, inner_low,
            query_node, grad_out_node, scale, softcap, CAPPED, HEADS,
            HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, True,
        )  # fmt: skip
        dk, dv = key_steps(
            k, v, start, stop, dk, dv, q, do, stat, mean, inner_low, inner_high,
            query_node, grad_out_node, scale, softcap, CAPPED, HEADS,
            HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, False,
        )  # fmt: skip
        dk, dv = key_steps(
            k, v, start, stop, dk, dv, q, do, stat, mean, inner_high, high,
            query_node, grad_out_node, scale, softcap, CAPPED, HEADS,
            HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, STEP, True,
        )  # fmt: skip
    grad_key += b * num_src * KV_HEADS * HEAD_DIM + kv * HEAD_DIM
    grad_value += b * num_src * KV_HEADS * VALUE_DIM + kv * VALUE_DIM
    dk = (dk * scale).to(grad_key.dtype.element_ty)
    put_tile(grad_key, first, KV_HEADS * HEAD_DIM, dk, num_src, ROWS, HEAD_DIM, HEAD_BLOCK)
    dv = dv.to(grad_value.dtype.element_ty)
    put_tile(grad_value, first, KV_HEADS * VALUE_DIM, dv, num_src, ROWS, VALUE_DIM, VALUE_BLOCK)
