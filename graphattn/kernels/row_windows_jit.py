"""The functions of the kernel for row windows, compiled by Triton; `row_windows.py` launches them.

A program computes a window of ROWS rows, or a part of a long one, for GROUP_TILE query heads that
share a key head: ROWS x GROUP_TILE rows of its tiles. It gathers the columns of the window, STEP at
a time; bits say which row hears which column. Parts of long windows write their sums to `*_parts`
(batch, parts, ROWS, heads, …), which are merged in order.

Common arguments: query, key, value with the strides of their batch and node; bias in edge order, or
None, with the stride of its batch (0 if it shares it); seed, or None if no weight is dropped, else
those are whose 32 random bits are below `drop`, and the others are multiplied by `keep`; rows,
items, begin, columns, words, edge as in `RowWindows`, edge or None. GROUPS tiles have the heads of
a key head. Of logits see `tiles_jit.py`: stats (batch, num_dst, 2, heads) are their maximum in a
row and 1 / the sum of the powers, 0 and 1 without softmax. Numbers are passed as float64.
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
    weigh,
    weights_of,
)
from graphattn.kernels.triton_math import LOG2E, number

# Columns of a tile, as in `graphs/windows.py`; words are of 32, and steps of one or two of them.
TILE = tl.constexpr(64)
# Sizes of the graph: they change from call to call, and nothing is gained by compiling for them.
SIZES = ["num_dst", "num_src", "num_items", "num_parts"]


# --- windows and their columns --------------------------------------------------------------------


@triton.jit
def my_item(items, num_items, HEADS: tl.constexpr):
    """Item of the batch, head, item of this program; its window, first and last tile, and part."""
    head, rest = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    item = rest % num_items
    window, first = tl.load(items + 4 * item), tl.load(items + 4 * item + 1)
    last, part = tl.load(items + 4 * item + 2), tl.load(items + 4 * item + 3)
    return (rest // num_items).to(tl.int64), head, item, window, first, last, part


@triton.jit
def my_rows(
    rows, window, num_rows, tile,
    ROWS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Of the rows of a tile: the place in the window, the row, the head, and whether there is one.

    tile: Of heads: key head x GROUPS and which of its tiles.
    """
    m = tl.arange(0, ROWS * GROUP_TILE)
    within = m // GROUP_TILE
    of_group = tile % GROUPS * GROUP_TILE + m % GROUP_TILE
    row = tl.load(rows + window * ROWS + within)
    there = (row < num_rows) & (of_group < GROUP)
    return within, tl.where(there, row, 0), tile // GROUPS * GROUP + of_group, there


@triton.jit
def gather(x, node, stride, head, valid, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """The numbers of a head of some nodes, (nodes, BLOCK). valid: or None, if all are asked for."""
    d = tl.arange(0, BLOCK)[None, :]
    at = x + (node.to(tl.int64) * stride + head * DIM)[:, None] + d
    if valid is not None:
        return tl.load(at, mask=valid[:, None] & (d < DIM), other=0.0)
    elif BLOCK != DIM:
        return tl.load(at, mask=d < DIM, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def put_rows(x, node, stride, head, valid, numbers, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Write the numbers of a head of some nodes."""
    d = tl.arange(0, BLOCK)[None, :]
    at = x + (node.to(tl.int64) * stride + head * DIM)[:, None] + d
    tl.store(at, numbers.to(x.dtype.element_ty), mask=valid[:, None] & (d < DIM))


@triton.jit
def popcount(x):
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def words_of(words, at, within, ROWS: tl.constexpr, STEP: tl.constexpr):
    """The one or two words of rows about the columns of a step."""
    low = words + tl.cast(at, tl.int64) * (STEP // 32) * ROWS + within
    if STEP == 32:
        return tl.load(low), within
    else:
        return tl.load(low), tl.load(low + ROWS)


@triton.jit
def word_of(low, high, STEP: tl.constexpr):
    """The word about each column, (rows, STEP), and which of its bits is, (1, STEP)."""
    c = tl.arange(0, STEP)[None, :]
    if STEP == 32:
        return low[:, None], c
    else:
        return tl.where(c < 32, low[:, None], high[:, None]), c % 32


@triton.jit
def bits_of(low, high, STEP: tl.constexpr):
    """Which pairs of rows and columns are edges, (rows, STEP)."""
    word, bit = word_of(low, high, STEP)
    return ((word >> bit) & 1) != 0


@triton.jit
def edges_of(before, low, high, STEP: tl.constexpr):
    """The numbers of the edges of a step, by row, from those of its first; and of the next ones."""
    word, bit = word_of(low, high, STEP)
    below = popcount(word & ((1 << bit) - 1))
    if STEP == 32:
        return before[:, None] + below, before + popcount(low)
    else:
        of_low = popcount(low)
        below += tl.where(tl.arange(0, STEP)[None, :] < 32, 0, of_low[:, None])
        return before[:, None] + below, before + (of_low + popcount(high))


@triton.jit
def pairs_of(
    words, at, within, there, before, edge, head,
    NUMBERED: tl.constexpr, PADDED: tl.constexpr,
    HEADS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Which pairs of a step are edges, and where they are among the numbers of edges and heads.

    The latter if NUMBERED; then `before` is that of the next step. PADDED: Whether a tile has heads
    that are not there, beside rows that have no bits.
    """
    low, high = words_of(words, at, within, ROWS, STEP)
    valid = bits_of(low, high, STEP)
    if PADDED:
        valid &= there[:, None]
    if NUMBERED:
        e, before = edges_of(before, low, high, STEP)
        return valid, numbers_of(edge, e, valid, head, HEADS), before
    else:
        return valid, valid, before


# --- forward --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def forward(
    query, key, value, bias, seed, rows, items, begin, columns, words, edge,
    query_batch, query_node, key_batch, key_node, value_batch, value_node, bias_batch,
    num_dst, num_src, num_items, num_parts,
    scale: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, GROUP_TILE: tl.constexpr, GROUPS: tl.constexpr, STEP: tl.constexpr,
    sink, out, stats, out_parts, stats_parts,
):  # fmt: skip
    """Output and statistics of the destinations of a window; of parts, the undivided sums.

    sink (HEADS,) or None. stats_parts: The maxima, and sums instead of their inverse.
    """
    b, tile, item, window, first, last, part = my_item(items, num_items, KV_HEADS * GROUPS)
    scale, softcap, keep = (
        number(scale, tl.float32), number(softcap, tl.float32), number(keep, tl.float32)
    )  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    kv = tile // GROUPS
    within, row, head, there = my_rows(rows, window, num_dst, tile, ROWS, GROUP, GROUP_TILE, GROUPS)
    q = gather(query + b * query_batch, row, query_node, head, there, HEAD_DIM, HEAD_BLOCK)
    key += b * key_batch
    value += b * value_batch
    before = within.to(tl.int64)
    if bias is not None:
        bias += b * bias_batch
        before = tl.load(begin + item * ROWS + within)
    top = tl.full((ROWS * GROUP_TILE,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS * GROUP_TILE,), tl.float32)
    if sink is not None:  # of parts, when they are merged
        top = tl.where(
            part < 0, tl.load(sink + head, mask=there, other=0.0).to(tl.float32) * LOG2E, top
        )
        total = tl.where(part < 0, 1.0, total)
    acc = tl.zeros((ROWS * GROUP_TILE, VALUE_BLOCK), tl.float32)
    for at in range(first * (TILE // STEP), last * (TILE // STEP)):
        j = tl.load(columns + tl.cast(at, tl.int64) * STEP + tl.arange(0, STEP))
        k = gather(key, j, key_node, kv, None, HEAD_DIM, HEAD_BLOCK)
        v = gather(value, j, value_node, kv, None, VALUE_DIM, VALUE_BLOCK)
        valid, pair, before = pairs_of(
            words, at, within, there, before, edge, head[:, None],
            bias is not None, GROUP % GROUP_TILE != 0, HEADS, ROWS, STEP,
        )  # fmt: skip
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, _ = logits_of(s, scale, softcap, bias, pair, valid, CAPPED, NORMALIZER, True)
        p, top, total, acc = weigh(s, top, total, acc, NORMALIZER)
        if seed is not None:
            p *= kept(seed, row[:, None], j[None, :], (b * HEADS + head)[:, None], drop, keep)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    if part < 0:
        top, total, acc = finished(top, total, acc, NORMALIZER)
        at_stats = stats + 2 * (b * num_dst + row) * HEADS + head
        out += b * num_dst * HEADS * VALUE_DIM
        put_rows(out, row, HEADS * VALUE_DIM, head, there, acc, VALUE_DIM, VALUE_BLOCK)
    else:
        place = (b * num_parts + part) * ROWS + within
        at_stats = stats_parts + 2 * place * HEADS + head
        put_rows(out_parts, place, HEADS * VALUE_DIM, head, there, acc, VALUE_DIM, VALUE_BLOCK)
    tl.store(at_stats, top, mask=there)
    tl.store(at_stats + HEADS, total, mask=there)


@triton.jit(do_not_specialize=["num_cut", "num_rows", "num_parts"])
def merge_forward(
    rows, cut, num_cut, num_rows, num_parts,
    NORMALIZER: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
    sink, out, stats, parts, stats_parts,
):  # fmt: skip
    """Output and statistics of the destinations of a long window, from those of its parts."""
    head, rest = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    at, b = cut + 3 * (rest % num_cut), (rest // num_cut).to(tl.int64)
    window, first, count = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    within = tl.arange(0, ROWS)
    row = tl.load(rows + window * ROWS + within)
    there = row < num_rows
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sink is not None:
        top = tl.zeros((ROWS,), tl.float32) + tl.load(sink + head).to(tl.float32) * LOG2E
        total += 1.0
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for part in range(first, first + count):
        place = (b * num_parts + part) * ROWS + within
        found = gather(parts, place, HEADS * DIM, head, there, DIM, BLOCK)
        if NORMALIZER == "softmax":
            at_stats = stats_parts + 2 * place * HEADS + head
            other = tl.load(at_stats, mask=there, other=-float("inf"))
            higher = tl.maximum(top, other)
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            fade, grow = tl.exp2(top - shift), tl.exp2(other - shift)
            total = total * fade + tl.load(at_stats + HEADS, mask=there, other=0.0) * grow
            acc = acc * fade[:, None] + found * grow[:, None]
            top = higher
        else:
            acc += found
    top, inverse, acc = finished(top, total, acc, NORMALIZER)
    put_rows(out + b * num_rows * HEADS * DIM, row, HEADS * DIM, head, there, acc, DIM, BLOCK)
    at_stats = stats + 2 * (b * num_rows + row) * HEADS + head
    tl.store(at_stats, top, mask=there)
    tl.store(at_stats + HEADS, inverse, mask=there)


@triton.jit(do_not_specialize=["num_cut", "num_rows", "num_parts"])
def merge_sum(
    rows, cut, num_cut, num_rows, num_parts,
    HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, out, parts,
):  # fmt: skip
    """The sums of the rows of a long window, from those of its parts."""
    head, rest = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    at, b = cut + 3 * (rest % num_cut), (rest // num_cut).to(tl.int64)
    window, first, count = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    within = tl.arange(0, ROWS)
    row = tl.load(rows + window * ROWS + within)
    there = row < num_rows
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for part in range(first, first + count):
        place = (b * num_parts + part) * ROWS + within
        acc += gather(parts, place, HEADS * DIM, head, there, DIM, BLOCK)
    put_rows(out + b * num_rows * HEADS * DIM, row, HEADS * DIM, head, there, acc, DIM, BLOCK)


# --- backward -------------------------------------------------------------------------------------


@triton.jit
def put_sums(
    sums, parts, b, part, row, within, num_rows, num_parts, head, there, numbers,
    HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sums of a window, or those of a part of one."""
    if part < 0:
        put_rows(
            sums + b * num_rows * HEADS * DIM, row, HEADS * DIM, head, there, numbers, DIM, BLOCK
        )
    else:
        place = (b * num_parts + part) * ROWS + within
        put_rows(parts, place, HEADS * DIM, head, there, numbers, DIM, BLOCK)


@triton.jit(do_not_specialize=SIZES)
def by_destination(
    query, key, value, bias, seed, rows, items, begin, columns, words, edge,
    query_batch, query_node, key_batch, key_node, value_batch, value_node, bias_batch,
    num_dst, num_src, num_items, num_parts,
    scale: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, GROUP_TILE: tl.constexpr, GROUPS: tl.constexpr, STEP: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, out, stats, delta, grad_query, query_parts,
    grad_bias, grad_bias_batch,
):  # fmt: skip
    """Gradients of the queries of a window; delta (batch, num_dst, heads) is written.

    delta: Of every row, the sum of each weight times its gradient, which is that of out x grad_out.
    grad_bias: (batch, E, heads), or None.
    """
    b, tile, item, window, first, last, part = my_item(items, num_items, KV_HEADS * GROUPS)
    scale, softcap, keep = (
        number(scale, tl.float32), number(softcap, tl.float32), number(keep, tl.float32)
    )  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    kv = tile // GROUPS
    within, row, head, there = my_rows(rows, window, num_dst, tile, ROWS, GROUP, GROUP_TILE, GROUPS)
    q = gather(query + b * query_batch, row, query_node, head, there, HEAD_DIM, HEAD_BLOCK)
    key += b * key_batch
    value += b * value_batch
    before = within.to(tl.int64)
    if bias is not None:
        bias += b * bias_batch
        before = tl.load(begin + item * ROWS + within)
    if grad_bias is not None:
        grad_bias += b * grad_bias_batch
    do = gather(
        grad_out + b * grad_out_batch, row, grad_out_node, head, there, VALUE_DIM, VALUE_BLOCK
    )
    out += b * num_dst * HEADS * VALUE_DIM
    o = gather(out, row, HEADS * VALUE_DIM, head, there, VALUE_DIM, VALUE_BLOCK)
    mean = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    at_stats = stats + 2 * (b * num_dst + row) * HEADS + head
    tl.store(delta + (b * num_dst + row) * HEADS + head, mean, mask=there)  # the same of all parts
    top = tl.load(at_stats, mask=there, other=0.0)
    inverse = tl.load(at_stats + HEADS, mask=there, other=0.0)
    dq = tl.zeros((ROWS * GROUP_TILE, HEAD_BLOCK), tl.float32)
    for at in range(first * (TILE // STEP), last * (TILE // STEP)):
        j = tl.load(columns + tl.cast(at, tl.int64) * STEP + tl.arange(0, STEP))
        k = gather(key, j, key_node, kv, None, HEAD_DIM, HEAD_BLOCK)
        v = gather(value, j, value_node, kv, None, VALUE_DIM, VALUE_BLOCK)
        valid, pair, before = pairs_of(
            words, at, within, there, before, edge, head[:, None],
            bias is not None, GROUP % GROUP_TILE != 0, HEADS, ROWS, STEP,
        )  # fmt: skip
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, bent = logits_of(s, scale, softcap, bias, pair, valid, CAPPED, NORMALIZER, True)
        p = weights_of(s, top[:, None], inverse[:, None], NORMALIZER)
        factor = p
        if seed is not None:
            factor = kept(seed, row[:, None], j[None, :], (b * HEADS + head)[:, None], drop, keep)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        _, db, ds = gradients_of(
            s, bent, p, dp, mean[:, None], factor, CAPPED, NORMALIZER, seed is not None
        )
        if grad_bias is not None:
            tl.store(grad_bias + pair, db, mask=valid)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    put_sums(
        grad_query, query_parts, b, part, row, within, num_dst, num_parts, head, there, dq * scale,
        HEADS, ROWS, HEAD_DIM, HEAD_BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def by_source(
    query, key, value, bias, seed, rows, items, begin, columns, words, edge,
    query_batch, query_node, key_batch, key_node, value_batch, value_node, bias_batch,
    num_dst, num_src, num_items, num_parts,
    scale: tl.float64, softcap: tl.float64, drop: tl.int64, keep: tl.float64,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, GROUP_TILE: tl.constexpr, GROUPS: tl.constexpr, STEP: tl.constexpr,
    grad_out, grad_out_batch, grad_out_node, stats, delta,
    grad_key, key_parts, grad_value, value_parts,
):  # fmt: skip
    """Gradients of keys and values of a window of the transpose, whose rows are the sources.

    The heads that share a key head, GROUP_TILE and GROUPS being 1, are gone through one by one.
    """
    b, kv, item, window, first, last, part = my_item(items, num_items, KV_HEADS)
    scale, softcap, keep = (
        number(scale, tl.float32), number(softcap, tl.float32), number(keep, tl.float32)
    )  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    within, row, kv_head, there = my_rows(rows, window, num_src, kv, ROWS, 1, 1, 1)
    k = gather(key + b * key_batch, row, key_node, kv_head, there, HEAD_DIM, HEAD_BLOCK)
    v = gather(value + b * value_batch, row, value_node, kv_head, there, VALUE_DIM, VALUE_BLOCK)
    query += b * query_batch
    grad_out += b * grad_out_batch
    stats += 2 * b * num_dst * HEADS
    delta += b * num_dst * HEADS
    if bias is not None:
        bias += b * bias_batch
    dk = tl.zeros((ROWS, HEAD_BLOCK), tl.float32)
    dv = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    for head in range(kv * GROUP, (kv + 1) * GROUP):
        before = within.to(tl.int64)
        if bias is not None:
            before = tl.load(begin + item * ROWS + within)
        for at in range(first * (TILE // STEP), last * (TILE // STEP)):
            i = tl.load(columns + tl.cast(at, tl.int64) * STEP + tl.arange(0, STEP))
            q = gather(query, i, query_node, head, None, HEAD_DIM, HEAD_BLOCK)
            do = gather(grad_out, i, grad_out_node, head, None, VALUE_DIM, VALUE_BLOCK)
            of_node = i.to(tl.int64) * HEADS
            top = tl.load(stats + 2 * of_node + head)
            inverse = tl.load(stats + 2 * of_node + HEADS + head)
            mean = tl.load(delta + of_node + head)
            valid, pair, before = pairs_of(
                words, at, within, there, before, edge, head,
                bias is not None, False, HEADS, ROWS, STEP,
            )  # fmt: skip
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            s, bent = logits_of(s, scale, softcap, bias, pair, valid, CAPPED, NORMALIZER, True)
            p = weights_of(s, top[None, :], inverse[None, :], NORMALIZER)
            factor = p
            if seed is not None:
                factor = kept(seed, i[None, :], row[:, None], b * HEADS + head, drop, keep)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            p, _, ds = gradients_of(
                s, bent, p, dp, mean[None, :], factor, CAPPED, NORMALIZER, seed is not None
            )
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    put_sums(
        grad_key, key_parts, b, part, row, within, num_src, num_parts, kv_head, there, dk * scale,
        KV_HEADS, ROWS, HEAD_DIM, HEAD_BLOCK,
    )  # fmt: skip
    put_sums(
        grad_value, value_parts, b, part, row, within, num_src, num_parts, kv_head, there, dv,
        KV_HEADS, ROWS, VALUE_DIM, VALUE_BLOCK,
    )  # fmt: skip
