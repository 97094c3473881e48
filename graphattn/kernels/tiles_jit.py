"""What the functions on tensor cores share: tiles of nodes, and the arithmetic of their pairs.

A tile holds the pairs of some rows and of some nodes at their other end, (ROWS, STEP); sums are
float32 throughout. Logits are counted in units of ln 2, so that exponentials are powers of two, but
with NORMALIZER "none", whose weights they are. `valid` says which pairs are edges, if MASKED; where
not, all are. `number` is the place of a pair among the numbers of edges and heads.
"""

import triton
import triton.language as tl

from graphattn.kernels.triton_math import LOG2E, tanh_of

PRECISION = tl.constexpr("ieee")  # of products of float32, which tensor cores would round
LEAST = tl.constexpr(-3.0e38)


# --- tiles of nodes -------------------------------------------------------------------------------


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
def numbers_of(edge, e, valid, head, HEADS: tl.constexpr):
    """The places of edges `e`, by row, among the numbers of edges in edge order and heads."""
    if edge is not None:
        e = tl.load(edge + e, mask=valid, other=0).to(tl.int64)
    return e * HEADS + head


@triton.jit
def logits_of(
    products, scale, softcap, bias, number, valid,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Logits, -inf where a pair is no edge; and what products were bent to, if CAPPED."""
    unit = 1.0 if NORMALIZER == "none" else LOG2E
    if CAPPED:
        bent = tanh_of(products * (scale / softcap))
        s = bent * (softcap * unit)
    else:
        bent = products
        s = products * (scale * unit)
    if bias is not None:
        added = tl.load(bias + number, mask=valid, other=0.0).to(tl.float32)
        # Not -inf, in these units either: the least number of a dtype, which people mask with.
        finite = tl.maximum(added * unit, LEAST)
        s = tl.where(added == -float("inf"), added, s + finite)
    if MASKED:
        s = tl.where(valid, s, -float("inf"))
    return s, bent


@triton.jit
def weights_of(s, top, inverse, NORMALIZER: tl.constexpr):
    """The weights of logits, from the statistics of their rows."""
    if NORMALIZER == "softmax":
        return tl.exp2(s - top) * inverse
    elif NORMALIZER == "sigmoid":
        small = tl.exp2(-tl.abs(s))
        return tl.where(s < 0, small, 1.0) / (1.0 + small)
    else:
        return tl.where(s == -float("inf"), 0.0, s)


@triton.jit
def weigh(s, top, total, acc, NORMALIZER: tl.constexpr):
    """Weights of logits, not yet divided by their sum; maxima, sums and values in step with it."""
    if NORMALIZER == "softmax":
        higher = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp2(s - shift[:, None])
        fade = tl.exp2(top - shift)
        return p, higher, total * fade + tl.sum(p, 1), acc * fade[:, None]
    else:
        return weights_of(s, 0.0, 1.0, NORMALIZER), top, total, acc


@triton.jit
def finished(top, total, acc, NORMALIZER: tl.constexpr):
    """The statistics of rows, and their output: maxima, 1 / sums, and the values by these."""
    if NORMALIZER == "softmax":
        inverse = tl.where(total > 0, 1.0 / total, total)  # what is NaN stays so
        return tl.where(top == -float("inf"), 0.0, top), inverse, acc * inverse[:, None]
    else:
        return tl.zeros_like(top), tl.zeros_like(top) + 1.0, acc


@triton.jit
def kept(seed, i, j, head, drop, keep):
    """The factors of weights under dropout, 0 or `keep`: Philox of destination, source and head."""
    i, j = tl.broadcast(i.to(tl.uint32), j.to(tl.uint32))
    nothing = i * 0
    random, _, _, _ = tl.philox(tl.load(seed), i, j, nothing + head.to(tl.uint32), nothing)
    return tl.where(random.to(tl.int64) < drop, 0.0, keep)


@triton.jit
def gradients_of(
    s, bent, p, dp, mean, factor,
    CAPPED: tl.constexpr, NORMALIZER: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Of weights and their gradients: the weights that count, and gradients of logits and products.

    Those of products lack the scale.
    """
    dropped = p
    if DROPS:
        dropped, dp = p * factor, dp * factor
    if NORMALIZER == "softmax":
        ds = p * (dp - mean)
    elif NORMALIZER == "sigmoid":
        ds = p * (1.0 - p) * dp
    else:
        ds = tl.where(s == -float("inf"), 0.0, dp)
    if CAPPED:
        return dropped, ds, ds * (1.0 - bent * bent)
    else:
        return dropped, ds, ds
