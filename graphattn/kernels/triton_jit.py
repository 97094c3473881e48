"""The functions of the GPU kernel, compiled by Triton; `triton.py` prepares what they are given.

A program computes one row of the graph, or a part of a long one, for a tile of heads, with EDGES of
its edges in flight. All heads of a node lie together in memory and are loaded together: tiles are
(EDGES, SLOTS, dim), where a slot is a query head. SLOTS = KV_TILE x GROUP_TILE, powers of two: the
query heads of a key head are next to each other, and sums over them are sums over an axis.

The parts of long rows are the first programs, and write their sums to `*_parts`; the program of the
row itself leaves it to them, and they are merged in order. Nothing is added up atomically.

Common arguments: query, key, value with the strides of their batch and node; bias, edge_key and
edge_value in edge order, or None, with the stride of their batch (0 if it shares them); weight and
slope of an additive score; softcap, if CAPPED; seed, or None if no weight is dropped, else those
are whose 32 random bits are below `drop`, and the others are multiplied by `keep`; ptr, index,
edge, part as in `Edges`. Numbers are passed as float64. NORMALIZER is "softmax", "sigmoid" or
"none". ACC is the type of sums.
"""

import triton
import triton.language as tl

from graphattn.kernels.triton_math import LOG2E, number, tanh_of

# Sizes of the graph: they change from call to call, and nothing is gained by compiling for them.
SIZES = ["num_rows", "num_parts", "num_edges", "longest"]


# --- rows and tiles -------------------------------------------------------------------------------


@triton.jit
def my_row(ptr, part, num_rows, num_parts, longest, TILES: tl.constexpr):
    """Item of the batch, tile, item of the grid, row, and edges `begin` to `end` of this program.

    `end` is below `begin` if the row is long and so left to its parts.
    """
    number_of_items = num_rows + num_parts
    item = tl.program_id(0) % number_of_items
    rest = tl.program_id(0) // number_of_items
    b, tile = (rest // TILES).to(tl.int64), rest % TILES
    is_part = item < num_parts
    row = tl.load(part + 2 * item, mask=is_part, other=0)
    row = tl.where(is_part, row, (item - num_parts).to(tl.int64))
    start, stop = tl.load(ptr + row), tl.load(ptr + row + 1)
    begin = tl.load(part + 2 * item + 1, mask=is_part, other=0)
    begin = tl.where(is_part, begin, start)
    end = tl.where(is_part, tl.minimum(begin + longest, stop), stop)
    end = tl.where((end - begin > longest), begin - 1, end)
    return b, tile, item, row, begin, end


@triton.jit
def slots(
    tile,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
):  # fmt: skip
    """Key head and query head of every slot of a tile, and whether there is one: (SLOTS,)."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    slot = tl.arange(0, KV_TILE * GROUP_TILE)
    kv = tile * KV_TILE + slot // GROUP_TILE
    if GROUP == GROUP_TILE:  # said so, for the compiler to see that heads lie together
        head = tile * KV_TILE * GROUP_TILE + slot
    else:
        head = kv * GROUP + slot % GROUP_TILE
    there = (kv < KV_HEADS) & (slot % GROUP_TILE < GROUP)
    return kv, head, there


@triton.jit
def within(head, there, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Places of the numbers of heads within a node, and whether there are such: (SLOTS, BLOCK)."""
    d = tl.arange(0, BLOCK)
    return head[:, None] * DIM + d[None, :], there[:, None] & (d < DIM)[None, :]


@triton.jit
def gather(x, node, stride, place, valid, there):
    """The numbers of some nodes: (EDGES,) and (SLOTS, BLOCK) -> (EDGES, SLOTS, BLOCK)."""
    return tl.load(
        x + (node * stride)[:, None, None] + place[None],
        mask=valid[:, None, None] & there[None],
        other=0.0,
    )


@triton.jit
def neighbors(ptr, index, row, e, end, LISTED: tl.constexpr):
    """The nodes at the other end of edges, int64 (EDGES,)."""
    if LISTED:
        return tl.load(index + e, mask=e < end, other=0).to(tl.int64)
    else:
        return e - tl.load(ptr + row) + tl.load(index + row).to(tl.int64)


@triton.jit
def place_of(edge, e, end):
    """The places of edges in edge order, int64 (EDGES,)."""
    if edge is None:
        return e
    else:
        return tl.load(edge + e, mask=e < end, other=0).to(tl.int64)


@triton.jit
def sum_groups(x, KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr):
    """Sums over the query heads of each key head: (EDGES, SLOTS, d) -> (EDGES, KV_TILE, d)."""
    if GROUP_TILE == 1:
        return x
    else:
        return tl.sum(tl.reshape(x, (x.shape[0], KV_TILE, GROUP_TILE, x.shape[2])), 2)


@triton.jit
def put_sum(sums, parts, x, b, row, item, num_rows, num_parts, WIDTH: tl.constexpr, own, there):
    """Write the sum of a row, or of a part of it, to (batch, rows or parts, WIDTH)."""
    if item < num_parts:
        tl.store(parts + (b * num_parts + item) * WIDTH + own, x, mask=there)
    else:
        tl.store(sums + (b * num_rows + row) * WIDTH + own, x, mask=there)


# --- the arithmetic of edges ----------------------------------------------------------------------


@triton.jit
def activation(x, slope, SCORE: tl.constexpr):
    if SCORE == "tanh":
        shrink = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
        y = (1.0 - shrink) / (1.0 + shrink)
        return tl.where(x < 0, -y, y)
    else:
        return tl.where(x > 0, x, slope * x)


@triton.jit
def slope_of_activation(x, y, slope, SCORE: tl.constexpr):
    if SCORE == "tanh":
        return 1.0 - y * y
    else:
        return tl.where(x > 0, 1.0, slope)


@triton.jit
def scores_of(q, k, a, scale, slope, SCORE: tl.constexpr):
    """`scale * score`: (EDGES, SLOTS)."""
    if SCORE == "dot":
        return tl.sum(q * k, 2) * scale
    else:
        return tl.sum(activation(q + k, slope, SCORE) * a, 2) * scale


@triton.jit
def logits_of(s, bias, number_of_weight, valid):
    """Scores with their bias, and -inf where there is no edge."""
    if bias is not None:
        s += tl.load(bias + number_of_weight, mask=valid, other=0.0).to(s.dtype)
    return tl.where(valid, s, -float("inf"))


@triton.jit
def weights_of(s, top, inverse, NORMALIZER: tl.constexpr):
    """The weights of logits, from the statistics of their rows."""
    if NORMALIZER == "softmax":
        return tl.exp2((s - top) * LOG2E) * inverse
    elif NORMALIZER == "sigmoid":
        small = tl.exp2(tl.abs(s) * -LOG2E)
        return tl.where(s < 0, small, 1.0) / (1.0 + small)
    else:
        return tl.where(s == -float("inf"), 0.0, s)


@triton.jit
def logit_gradients(s, p, dp, mean, NORMALIZER: tl.constexpr):
    """Of the gradients dp of weights p, those of the logits s."""
    if NORMALIZER == "softmax":
        return p * (dp - mean)
    elif NORMALIZER == "sigmoid":
        return p * (1.0 - p) * dp
    else:
        return tl.where(s == -float("inf"), 0.0, dp)


@triton.jit
def kept(seed, b, weights, drop, keep):
    """The factors of weights under dropout, 0 or `keep`: Philox of the number of the weight."""
    number_of_weight = (b << 40) + weights
    low, high = number_of_weight.to(tl.uint32), (number_of_weight >> 32).to(tl.uint32)
    nothing = low * 0
    random, _, _, _ = tl.philox(tl.load(seed), low, high, nothing, nothing)
    return tl.where(random.to(tl.int64) < drop, 0.0, keep)


# --- forward --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def forward(
    query, key, value, bias, edge_key, edge_value, weight, seed, ptr, index, edge, part,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    bias_batch, edge_key_batch, edge_value_batch, num_rows, num_parts, num_edges, longest,
    scale: tl.float64, slope: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    SCORE: tl.constexpr, CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, LISTED: tl.constexpr,
    ACC: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    TILES: tl.constexpr, KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, EDGES: tl.constexpr,
    sink, out, stats, out_parts, stats_parts,
):  # fmt: skip
    """Output and statistics of every row; of parts, the unscaled sums, (batch, parts, …).

    sink (HEADS,) or None. Statistics are those of softmax, and left alone otherwise.

    stats (batch, rows, 2, heads), stats_parts (batch, parts, 2, heads).
    """
    b, tile, item, row, begin, end = my_row(ptr, part, num_rows, num_parts, longest, TILES)
    if end < begin:
        return
    scale, slope, keep = number(scale, ACC), number(slope, ACC), number(keep, ACC)
    softcap = number(softcap, ACC)
    SLOTS: tl.constexpr = KV_TILE * GROUP_TILE
    kv, head, there = slots(tile, HEADS, KV_HEADS, KV_TILE, GROUP_TILE)
    own_q, is_q = within(head, there, HEAD_DIM, HEAD_BLOCK)
    own_k, _ = within(kv, there, HEAD_DIM, HEAD_BLOCK)
    own_v, is_v = within(kv, there, VALUE_DIM, VALUE_BLOCK)
    q = tl.load(query + b * query_batch + row * query_node + own_q, mask=is_q, other=0.0).to(ACC)
    a = q
    if weight is not None:
        a = tl.load(weight + own_q, mask=is_q, other=0.0).to(ACC)
    top = tl.full((SLOTS,), -float("inf"), ACC)
    total = tl.zeros((SLOTS,), ACC)
    if sink is not None:  # counts once in a row, before its first edge
        is_first = begin == tl.load(ptr + row)
        extra = tl.load(sink + head, mask=there, other=0.0).to(ACC)
        top = tl.where(is_first, extra, top)
        total = tl.where(is_first, 1.0, total)
    acc = tl.zeros((SLOTS, VALUE_BLOCK), ACC)
    step = tl.arange(0, EDGES)
    j = neighbors(ptr, index, row, begin + step, end, LISTED)
    for low in range(begin, end, EDGES):
        e = low + step
        exists = e < end
        valid = exists[:, None] & there[None, :]
        k = gather(key + b * key_batch, j, key_node, own_k, exists, is_q).to(ACC)
        v = gather(value + b * value_batch, j, value_node, own_v, exists, is_v)
        j = neighbors(ptr, index, row, e + EDGES, end, LISTED)
        place = place_of(edge, e, end)
        if edge_key is not None:
            stride: tl.constexpr = KV_HEADS * HEAD_DIM
            k += gather(edge_key + b * edge_key_batch, place, stride, own_k, exists, is_q).to(ACC)
        weights = place[:, None] * HEADS + head[None, :]
        s = scores_of(q[None], k, a[None], scale, slope, SCORE)
        if CAPPED:
            bent = tanh_of(s / softcap)
            s = softcap * bent
        s = logits_of(s, bias, b * bias_batch + weights, valid)
        if NORMALIZER == "softmax":
            higher = tl.maximum(top, tl.max(s, 0))
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            p = tl.exp2((s - shift[None, :]) * LOG2E)
            fade = tl.exp2((top - shift) * LOG2E)
            total = total * fade + tl.sum(p, 0)
            acc *= fade[:, None]
            top = higher
        else:
            p = weights_of(s, 0.0, 1.0, NORMALIZER)
        if seed is not None:
            p *= kept(seed, b, weights, drop, keep)
        v = v.to(ACC)
        if edge_value is not None:
            stride_v: tl.constexpr = KV_HEADS * VALUE_DIM
            v += gather(edge_value + b * edge_value_batch, place, stride_v, own_v, exists, is_v).to(
                ACC
            )
        acc += tl.sum(p[:, :, None] * v, 0)
    own_out, _ = within(head, there, VALUE_DIM, VALUE_BLOCK)
    if item < num_parts:
        place = b * num_parts + item
        tl.store(out_parts + place * HEADS * VALUE_DIM + own_out, acc, mask=is_v)
        tl.store(stats_parts + 2 * place * HEADS + head, top, mask=there)
        tl.store(stats_parts + (2 * place + 1) * HEADS + head, total, mask=there)
    elif NORMALIZER == "softmax":
        finish(out, stats, b * num_rows + row, top, total, acc, head, there, own_out, is_v,
               HEADS, VALUE_DIM)  # fmt: skip
    else:
        tl.store(out + (b * num_rows + row) * HEADS * VALUE_DIM + own_out, acc, mask=is_v)


@triton.jit
def finish(
    out, stats, place, top, total, acc, head, there, own_out, is_v,
    HEADS: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """Write the output and the statistics of a whole row."""
    inverse = tl.where(total > 0, 1.0 / total, total)  # what is NaN stays so
    top = tl.where(top == -float("inf"), 0.0, top)
    result = acc * inverse[:, None]
    tl.store(out + place * HEADS * VALUE_DIM + own_out, result, mask=is_v)
    tl.store(stats + 2 * place * HEADS + head, top, mask=there)
    tl.store(stats + (2 * place + 1) * HEADS + head, inverse, mask=there)


@triton.jit(do_not_specialize=["num_rows", "num_parts", "num_hubs"])
def merge_softmax(
    out, stats, out_parts, stats_parts, hub, num_rows, num_parts, num_hubs, ACC: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, TILES: tl.constexpr,
    KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    EDGES: tl.constexpr,
):  # fmt: skip
    """Join the parts of every long row, EDGES of them in flight."""
    u, rest = tl.program_id(0) % num_hubs, tl.program_id(0) // num_hubs
    tile, b = rest % TILES, (rest // TILES).to(tl.int64)
    row, first, count = tl.load(hub + 3 * u), tl.load(hub + 3 * u + 1), tl.load(hub + 3 * u + 2)
    SLOTS: tl.constexpr = KV_TILE * GROUP_TILE
    _, head, there = slots(tile, HEADS, KV_HEADS, KV_TILE, GROUP_TILE)
    own_out, is_v = within(head, there, VALUE_DIM, VALUE_BLOCK)
    top = tl.full((SLOTS,), -float("inf"), ACC)
    total = tl.zeros((SLOTS,), ACC)
    acc = tl.zeros((SLOTS, VALUE_BLOCK), ACC)
    for low in range(first, first + count, EDGES):
        number_of_part = low + tl.arange(0, EDGES)
        exists = number_of_part < first + count
        place = b * num_parts + number_of_part
        valid = exists[:, None] & there[None, :]
        at = stats_parts + 2 * place[:, None] * HEADS + head[None, :]
        tops = tl.load(at, mask=valid, other=-float("inf"))
        totals = tl.load(at + HEADS, mask=valid, other=0.0)
        sums = gather(out_parts, place, HEADS * VALUE_DIM, own_out, exists, is_v)
        higher = tl.maximum(top, tl.max(tops, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        factor = tl.exp2((tops - shift[None, :]) * LOG2E)
        fade = tl.exp2((top - shift) * LOG2E)
        total = total * fade + tl.sum(factor * totals, 0)
        acc = acc * fade[:, None] + tl.sum(factor[:, :, None] * sums, 0)
        top = higher
    finish(out, stats, b * num_rows + row, top, total, acc, head, there, own_out, is_v,
           HEADS, VALUE_DIM)  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "num_parts", "num_hubs"])
def merge_sum(
    out, parts, hub, num_rows, num_parts, num_hubs,
    WIDTH: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    """Add up the parts of every long row: (batch, parts, WIDTH) -> (batch, rows, WIDTH)."""
    u, rest = tl.program_id(0) % num_hubs, tl.program_id(0) // num_hubs
    tile, b = rest % TILES, (rest // TILES).to(tl.int64)
    row, first, count = tl.load(hub + 3 * u), tl.load(hub + 3 * u + 1), tl.load(hub + 3 * u + 2)
    d = tile * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), parts.dtype.element_ty)
    for low in range(first, first + count, EDGES):
        part = low + tl.arange(0, EDGES)
        there = (part < first + count)[:, None] & (d < WIDTH)[None, :]
        at = parts + (b * num_parts + part)[:, None] * WIDTH + d[None, :]
        acc += tl.sum(tl.load(at, mask=there, other=0.0), 0)
    to = out + (b * num_rows + row) * WIDTH + d
    tl.store(to, acc, mask=d < WIDTH)


# --- weights --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def weights(
    query, key, value, bias, edge_key, edge_value, weight, seed, ptr, index, edge, part,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    bias_batch, edge_key_batch, edge_value_batch, num_rows, num_parts, num_edges, longest,
    scale: tl.float64, slope: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    SCORE: tl.constexpr, CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, LISTED: tl.constexpr,
    ACC: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    TILES: tl.constexpr, KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, EDGES: tl.constexpr,
    stats, out,
):  # fmt: skip
    """The weight of every edge, (batch, E, heads) in edge order, from the statistics.

    Without a normalizer, the logits: -inf where an edge is switched off.
    """
    b, tile, _, row, begin, end = my_row(ptr, part, num_rows, num_parts, longest, TILES)
    if end < begin:
        return
    scale, slope, softcap = number(scale, ACC), number(slope, ACC), number(softcap, ACC)
    kv, head, there = slots(tile, HEADS, KV_HEADS, KV_TILE, GROUP_TILE)
    own_q, is_q = within(head, there, HEAD_DIM, HEAD_BLOCK)
    own_k, _ = within(kv, there, HEAD_DIM, HEAD_BLOCK)
    q = tl.load(query + b * query_batch + row * query_node + own_q, mask=is_q, other=0.0).to(ACC)
    a = q
    if weight is not None:
        a = tl.load(weight + own_q, mask=is_q, other=0.0).to(ACC)
    at = stats + 2 * (b * num_rows + row) * HEADS + head
    top = tl.load(at, mask=there, other=0.0)
    inverse = tl.load(at + HEADS, mask=there, other=0.0)
    for low in range(begin, end, EDGES):
        e = low + tl.arange(0, EDGES)
        exists = e < end
        valid = exists[:, None] & there[None, :]
        j = neighbors(ptr, index, row, e, end, LISTED)
        k = gather(key + b * key_batch, j, key_node, own_k, exists, is_q).to(ACC)
        place = place_of(edge, e, end)
        if edge_key is not None:
            stride: tl.constexpr = KV_HEADS * HEAD_DIM
            k += gather(edge_key + b * edge_key_batch, place, stride, own_k, exists, is_q).to(ACC)
        weights = place[:, None] * HEADS + head[None, :]
        s = scores_of(q[None], k, a[None], scale, slope, SCORE)
        if CAPPED:
            bent = tanh_of(s / softcap)
            s = softcap * bent
        s = logits_of(s, bias, b * bias_batch + weights, valid)
        if NORMALIZER != "none":
            s = weights_of(s, top[None, :], inverse[None, :], NORMALIZER)
        tl.store(out + b * num_edges * HEADS + weights, s, mask=valid)


@triton.jit(do_not_specialize=["num_rows", "num_edges"])
def weigh_gradients(
    weights, grad_weights, delta, ptr, edge, num_rows, num_edges, ACC: tl.constexpr,
    HEADS: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    """Of every row, the sum of each weight times its gradient: delta (batch, rows, heads)."""
    row, rest = (tl.program_id(0) % num_rows).to(tl.int64), tl.program_id(0) // num_rows
    tile, b = rest % TILES, (rest // TILES).to(tl.int64)
    head = tile * TILE + tl.arange(0, TILE)
    begin, end = tl.load(ptr + row), tl.load(ptr + row + 1)
    acc = tl.zeros((EDGES, TILE), ACC)
    for low in range(begin, end, EDGES):
        e = low + tl.arange(0, EDGES)
        valid = (e < end)[:, None] & (head < HEADS)[None, :]
        at = (b * num_edges + place_of(edge, e, end))[:, None] * HEADS + head[None, :]
        p = tl.load(weights + at, mask=valid, other=0.0).to(ACC)
        acc += p * tl.load(grad_weights + at, mask=valid, other=0.0).to(ACC)
    tl.store(delta + (b * num_rows + row) * HEADS + head, tl.sum(acc, 0), mask=head < HEADS)


# --- backward -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def by_destination(
    query, key, value, bias, edge_key, edge_value, weight, seed, ptr, index, edge, part,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    bias_batch, edge_key_batch, edge_value_batch, num_rows, num_parts, num_edges, longest,
    scale: tl.float64, slope: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    SCORE: tl.constexpr, CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, LISTED: tl.constexpr,
    ACC: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    TILES: tl.constexpr, KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, EDGES: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, out, grad_weights, stats, delta,
    grad_query, query_parts, grad_bias, grad_edge_key, grad_edge_value, weight_parts,
):  # fmt: skip
    """Gradients of queries, biases and features of edges; of the weight, a part for each program.

    grad_weights (batch, E, heads): instead of grad_out, for the gradient of the weights alone; then
    delta (batch, rows, heads) is given, else it is written: sum_j of weight times its gradient.
    Gradients that belong to edges: (batch, E, …), or None if not needed.
    """
    b, tile, item, row, begin, end = my_row(ptr, part, num_rows, num_parts, longest, TILES)
    if end < begin:
        return
    scale, slope, keep = number(scale, ACC), number(slope, ACC), number(keep, ACC)
    softcap = number(softcap, ACC)
    SLOTS: tl.constexpr = KV_TILE * GROUP_TILE
    kv, head, there = slots(tile, HEADS, KV_HEADS, KV_TILE, GROUP_TILE)
    own_q, is_q = within(head, there, HEAD_DIM, HEAD_BLOCK)
    own_k, _ = within(kv, there, HEAD_DIM, HEAD_BLOCK)
    own_v, is_v = within(kv, there, VALUE_DIM, VALUE_BLOCK)
    # Of the gradients that key heads share, once a key head.
    kv_slot = tile * KV_TILE + tl.arange(0, KV_TILE)
    own_ek, is_ek = within(kv_slot, kv_slot < KV_HEADS, HEAD_DIM, HEAD_BLOCK)
    own_ev, is_ev = within(kv_slot, kv_slot < KV_HEADS, VALUE_DIM, VALUE_BLOCK)
    q = tl.load(query + b * query_batch + row * query_node + own_q, mask=is_q, other=0.0).to(ACC)
    a = q
    if weight is not None:
        a = tl.load(weight + own_q, mask=is_q, other=0.0).to(ACC)
    at = b * num_rows + row
    top = tl.load(stats + 2 * at * HEADS + head, mask=there, other=0.0)
    inverse = tl.load(stats + (2 * at + 1) * HEADS + head, mask=there, other=0.0)
    mean = inverse  # of softmax alone
    if grad_weights is None:
        own_out, _ = within(head, there, VALUE_DIM, VALUE_BLOCK)
        do = grad_out + b * grad_out_batch + row * grad_out_node + own_out
        do = tl.load(do, mask=is_v, other=0.0).to(ACC)
    if NORMALIZER == "softmax" and grad_weights is None:
        o = tl.load(out + at * HEADS * VALUE_DIM + own_out, mask=is_v, other=0.0).to(ACC)
        mean = tl.sum(do * o, 1)
        tl.store(delta + at * HEADS + head, mean, mask=there)
    elif NORMALIZER == "softmax":
        mean = tl.load(delta + at * HEADS + head, mask=there, other=0.0)
    dq = tl.zeros((SLOTS, HEAD_BLOCK), ACC)
    da = tl.zeros((SLOTS, HEAD_BLOCK), ACC)
    step = tl.arange(0, EDGES)
    j = neighbors(ptr, index, row, begin + step, end, LISTED)
    for low in range(begin, end, EDGES):
        e = low + step
        exists = e < end
        valid = exists[:, None] & there[None, :]
        k = gather(key + b * key_batch, j, key_node, own_k, exists, is_q).to(ACC)
        place = place_of(edge, e, end)
        weights = place[:, None] * HEADS + head[None, :]
        if grad_weights is None:
            v = gather(value + b * value_batch, j, value_node, own_v, exists, is_v)
        j = neighbors(ptr, index, row, e + EDGES, end, LISTED)
        if edge_key is not None:
            stride: tl.constexpr = KV_HEADS * HEAD_DIM
            k += gather(edge_key + b * edge_key_batch, place, stride, own_k, exists, is_q).to(ACC)
        s = scores_of(q[None], k, a[None], scale, slope, SCORE)
        if CAPPED:
            bent = tanh_of(s / softcap)
            s = softcap * bent
        s = logits_of(s, bias, b * bias_batch + weights, valid)
        p = weights_of(s, top[None, :], inverse[None, :], NORMALIZER)
        if grad_weights is None:
            v = v.to(ACC)
            if edge_value is not None:
                stride_v: tl.constexpr = KV_HEADS * VALUE_DIM
                v += gather(
                    edge_value + b * edge_value_batch, place, stride_v, own_v, exists, is_v
                ).to(ACC)  # fmt: skip
            dp = tl.sum(do[None] * v, 2)
        else:
            dp = grad_weights + b * num_edges * HEADS + weights
            dp = tl.load(dp, mask=valid, other=0.0).to(ACC)
        dropped = p
        if seed is not None:
            factor = kept(seed, b, weights, drop, keep)
            dropped, dp = p * factor, dp * factor
        ds = logit_gradients(s, p, dp, mean[None, :], NORMALIZER)
        if grad_bias is not None:
            to = grad_bias + b * num_edges * HEADS + weights
            tl.store(to, ds, mask=valid)
        if CAPPED:
            ds *= 1.0 - bent * bent
        ds = (ds * scale)[:, :, None]
        if SCORE == "dot":
            dq += tl.sum(ds * k, 0)
            dk = ds * q[None]
        else:
            pair = q[None] + k
            y = activation(pair, slope, SCORE)
            dk = ds * a[None] * slope_of_activation(pair, y, slope, SCORE)
            dq += tl.sum(dk, 0)
            da += tl.sum(ds * y, 0)
        if grad_edge_key is not None:
            to = grad_edge_key + (b * num_edges + place)[:, None, None] * KV_HEADS * HEAD_DIM
            dk = sum_groups(dk, KV_TILE, GROUP_TILE)
            tl.store(to + own_ek[None], dk, mask=exists[:, None, None] & is_ek[None])
        if grad_edge_value is not None:
            to = grad_edge_value + (b * num_edges + place)[:, None, None] * KV_HEADS * VALUE_DIM
            dv = sum_groups(dropped[:, :, None] * do[None], KV_TILE, GROUP_TILE)
            tl.store(to + own_ev[None], dv, mask=exists[:, None, None] & is_ev[None])
    put_sum(grad_query, query_parts, dq, b, row, item, num_rows, num_parts, HEADS * HEAD_DIM,
            own_q, is_q)  # fmt: skip
    if weight_parts is not None:
        to = weight_parts + (b * (num_rows + num_parts) + item) * HEADS * HEAD_DIM + own_q
        tl.store(to, da, mask=is_q)


@triton.jit(do_not_specialize=[*SIZES, "num_dst"])
def by_source(
    query, key, value, bias, edge_key, edge_value, weight, seed, ptr, index, edge, part,
    query_batch, query_node, key_batch, key_node, value_batch, value_node,
    bias_batch, edge_key_batch, edge_value_batch, num_rows, num_parts, num_edges, longest,
    scale: tl.float64, slope: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    SCORE: tl.constexpr, CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, LISTED: tl.constexpr,
    ACC: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    TILES: tl.constexpr, KV_TILE: tl.constexpr, GROUP_TILE: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, EDGES: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, grad_weights, stats, delta, num_dst,
    dst_ptr, dst_index, grad_key, key_parts, grad_value, value_parts,
):  # fmt: skip
    """Gradients of keys and values over the transpose, whose rows are the sources.

    Weights are computed again. dst_ptr, dst_index: the intervals of the destinations.
    """
    b, tile, item, row, begin, end = my_row(ptr, part, num_rows, num_parts, longest, TILES)
    if end < begin:
        return
    scale, slope, keep = number(scale, ACC), number(slope, ACC), number(keep, ACC)
    softcap = number(softcap, ACC)
    SLOTS: tl.constexpr = KV_TILE * GROUP_TILE
    kv, head, there = slots(tile, HEADS, KV_HEADS, KV_TILE, GROUP_TILE)
    own_q, is_q = within(head, there, HEAD_DIM, HEAD_BLOCK)
    own_k, _ = within(kv, there, HEAD_DIM, HEAD_BLOCK)
    own_v, is_v = within(kv, there, VALUE_DIM, VALUE_BLOCK)
    own_out, _ = within(head, there, VALUE_DIM, VALUE_BLOCK)
    k_row = tl.load(key + b * key_batch + row * key_node + own_k, mask=is_q, other=0.0)
    k_row = k_row.to(ACC)[None]
    a = k_row
    if weight is not None:
        a = tl.load(weight + own_q, mask=is_q, other=0.0).to(ACC)[None]
    if grad_weights is None:
        v_row = tl.load(value + b * value_batch + row * value_node + own_v, mask=is_v, other=0.0)
        v_row = v_row.to(ACC)[None]
    dk = tl.zeros((SLOTS, HEAD_BLOCK), ACC)
    dv = tl.zeros((SLOTS, VALUE_BLOCK), ACC)
    step = tl.arange(0, EDGES)
    i = neighbors(ptr, index, row, begin + step, end, LISTED)
    for low in range(begin, end, EDGES):
        e = low + step
        exists = e < end
        valid = exists[:, None] & there[None, :]
        q = gather(query + b * query_batch, i, query_node, own_q, exists, is_q).to(ACC)
        if grad_weights is None:
            do = gather(grad_out + b * grad_out_batch, i, grad_out_node, own_out, exists, is_v)
        at = b * num_dst + i
        stat = stats + 2 * at[:, None] * HEADS + head[None, :]
        top = tl.load(stat, mask=valid, other=0.0)
        inverse = tl.load(stat + HEADS, mask=valid, other=0.0)
        mean = inverse
        if NORMALIZER == "softmax":
            mean = tl.load(delta + at[:, None] * HEADS + head[None, :], mask=valid, other=0.0)
        if LISTED:
            place = place_of(edge, e, end)
        elif seed is not None:
            place = tl.load(dst_ptr + i, mask=exists, other=0) + row
            place -= tl.load(dst_index + i, mask=exists, other=0)
        else:
            place = e  # nobody asks
        i = neighbors(ptr, index, row, e + EDGES, end, LISTED)
        weights = place[:, None] * HEADS + head[None, :]
        k = k_row
        if edge_key is not None:
            stride: tl.constexpr = KV_HEADS * HEAD_DIM
            feature = gather(edge_key + b * edge_key_batch, place, stride, own_k, exists, is_q)
            k = k_row + feature.to(ACC)
        s = scores_of(q, k, a, scale, slope, SCORE)
        if CAPPED:
            bent = tanh_of(s / softcap)
            s = softcap * bent
        s = logits_of(s, bias, b * bias_batch + weights, valid)
        p = weights_of(s, top, inverse, NORMALIZER)
        if grad_weights is None:
            do = do.to(ACC)
            v = v_row
            if edge_value is not None:
                stride_v: tl.constexpr = KV_HEADS * VALUE_DIM
                feature = gather(
                    edge_value + b * edge_value_batch, place, stride_v, own_v, exists, is_v
                )  # fmt: skip
                v = v_row + feature.to(ACC)
            dp = tl.sum(do * v, 2)
        else:
            dp = grad_weights + b * num_edges * HEADS + weights
            dp = tl.load(dp, mask=valid, other=0.0).to(ACC)
        dropped = p
        if seed is not None:
            factor = kept(seed, b, weights, drop, keep)
            dropped, dp = p * factor, dp * factor
        ds = logit_gradients(s, p, dp, mean, NORMALIZER)
        if CAPPED:
            ds *= 1.0 - bent * bent
        ds = (ds * scale)[:, :, None]
        if SCORE == "dot":
            dk += tl.sum(ds * q, 0)
        else:
            pair = q + k
            y = activation(pair, slope, SCORE)
            dk += tl.sum(ds * a * slope_of_activation(pair, y, slope, SCORE), 0)
        if grad_weights is None:
            dv += tl.sum(dropped[:, :, None] * do, 0)
    kv_slot = tile * KV_TILE + tl.arange(0, KV_TILE)
    own_dk, is_dk = within(kv_slot, kv_slot < KV_HEADS, HEAD_DIM, HEAD_BLOCK)
    own_dv, is_dv = within(kv_slot, kv_slot < KV_HEADS, VALUE_DIM, VALUE_BLOCK)
    if GROUP_TILE != 1:
        dk = tl.sum(tl.reshape(dk, (KV_TILE, GROUP_TILE, HEAD_BLOCK)), 1)
        dv = tl.sum(tl.reshape(dv, (KV_TILE, GROUP_TILE, VALUE_BLOCK)), 1)
    put_sum(grad_key, key_parts, dk, b, row, item, num_rows, num_parts, KV_HEADS * HEAD_DIM,
            own_dk, is_dk)  # fmt: skip
    put_sum(grad_value, value_parts, dv, b, row, item, num_rows, num_parts, KV_HEADS * VALUE_DIM,
            own_dv, is_dv)  # fmt: skip
