"""The loops of the CPU kernel, compiled by Numba; `cpu.py` prepares what they are given.

All arrays are one-dimensional. A kernel works through tasks of `UNIT` steps, where a row takes one
step and each of its edges one more: cut there, no task is longer than another, whatever the
degrees. Threads draw the tasks from a counter. A row that a cut goes through is computed in parts,
each in a place of its own, which are merged in order; so results do not depend on the threads.

Within a row, heads go one after the other: the logits of a head are a run of numbers, and its sums
stay in registers while the edges go by.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from graphattn.kernels import simd
from graphattn.kernels.simd import (
    AHEAD,
    PADDING,
    add_scaled,
    add_weighted,
    dot,
    dots,
    exp_sum,
    fetch_add,
    fill,
    get,
    identity_gradient,
    leaky_relu_gradient,
    leaky_relu_score,
    maximum,
    multiply,
    prefetch,
    put,
    scale,
    sigmoid,
    sigmoid_gradient,
    soft_cap,
    softmax_gradient,
    tanh_gradient,
    tanh_score,
)

UNIT = 2048  # steps of a task
CHUNK = 64  # edges whose rows stay in the first-level cache between their scores and their sums

SCORES = ("dot", "leaky_relu", "tanh")
DOT, LEAKY_RELU, TANH = range(3)
NORMALIZERS = ("softmax", "sigmoid", "none")
SOFTMAX, SIGMOID, NONE = range(3)


class Form(NamedTuple):
    """What is known when a kernel is compiled.

    score, normalizer: Index into SCORES and NORMALIZERS.
    head_dim, value_dim: 0 if they are known only when it is called.
    edge_dim: -1 if no features of edges are joined; 0 if their number is known when it is called.
    listed: Whether edges are listed, or given as intervals.
    plain: Whether there is no bias, no feature of edges, no softcap and no dropout.
    code: Of `simd.py`; Numba keeps machine code for a Form, and looks at this file alone otherwise.
    """

    score: int
    normalizer: int
    head_dim: int
    value_dim: int
    edge_dim: int
    listed: bool
    plain: bool
    code: int = zlib.crc32(inspect.getsource(simd).encode())


class Shape(NamedTuple):
    """Sizes of a call, as in `Problem`; `batch` is the product of all leading dimensions.

    edge_dim: Numbers of an edge that join those of its key and its value; the heads of query and
        output are so much wider.
    """

    batch: int
    num_dst: int
    num_src: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    edge_dim: int
    num_edges: int


class Rows(NamedTuple):
    """The edges, grouped by destination or by source.

    ptr: int64 (rows + 1,).
    index: int32 (E,), the node at the other end; of intervals (rows,), the first such node.
    edge: The place of each edge in edge order, (E,); empty where that is this order, or not asked.
    """

    ptr: Any
    index: Any
    edge: Any


class Inputs(NamedTuple):
    """Tensors of a call, flat, with the strides that are not plain.

    bias (…, E, heads), edge_key (…, E, kv_heads, head_dim), edge_value (…, E, kv_heads, value_dim),
        edge (…, E, edge_dim): in edge order, empty if there is none; with a stride of the batch
        that is 0 if it is shared.
    weight (heads, head_dim): of the additive score, with its slope.
    sink (heads,): empty if there is none; softcap: 0 if there is none.
    drop: A weight is dropped if its 64 random bits are below this; keep: 1 / (1 - dropout).
    """

    query: Any
    query_strides: tuple[int, int]  # batch, node
    key: Any
    key_strides: tuple[int, int]
    value: Any
    value_strides: tuple[int, int]
    bias: Any
    bias_stride: int
    edge_key: Any
    edge_key_stride: int
    edge_value: Any
    edge_value_stride: int
    edge: Any
    edge_stride: int
    weight: Any
    sink: Any
    slope: Any
    scale: Any
    softcap: Any
    zero: Any
    one: Any
    seed: Any
    drop: Any
    keep: Any


class Gradients(NamedTuple):
    """What backward is given and what it fills; an empty array is one that nobody asked for.

    stats (batch, num_dst, 2, heads): of the logits of a row the maximum and 1 / the sum of their
    exponentials.
    rows (batch, num_dst, 3, heads): what the pass by source needs to know of a row, written by the
    pass by destination: the maximum, log of the sum, and sum_j of each weight times its gradient.
    grad_weights (batch, E, heads): instead of grad_out, for the gradient of the weights alone.
    handed (batch, E, 2, heads): where edges have tensors of their own, every weight as it is used
    and the gradient of its score, for the pass by source, which else computes them again.
    """

    grad_out: Any
    out: Any
    grad_weights: Any
    stats: Any
    rows: Any
    handed: Any
    query: Any
    key: Any
    value: Any
    bias: Any
    edge_key: Any
    edge_value: Any
    edge: Any
    weight: Any  # (batch * tasks, heads, head_dim), a part for each task


# Without reference counts: their updates would be most of the work. No array is made in here.
inline = njit(error_model="numpy", forceinline=True, _nrt=False)


def compiled(function: Callable) -> Callable:
    """Compile for the types of the first call, and keep the machine code on disk if possible."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # no folder that can be written to
        return njit(function, **options)


# --- rows and tasks -------------------------------------------------------------------------------


@inline
def num_tasks(ptr):
    return (ptr[-1] + len(ptr) - 1 + UNIT - 1) // UNIT


@inline
def first_row(ptr, step):
    """The row that a step belongs to."""
    low, high = 0, len(ptr) - 1
    while low < high:
        middle = (low + high) // 2
        if ptr[middle + 1] + middle + 1 > step:
            high = middle
        else:
            low = middle + 1
    return low


@inline
def segment(ptr, row, task):
    """Edges `low` to `high` of a row are in a task; the part of the row they are: -1 for all."""
    begin, end = task * UNIT, (task + 1) * UNIT
    start, stop = ptr[row] + row, ptr[row + 1] + row + 1
    low = max(ptr[row], begin - row - 1)
    high = min(ptr[row + 1], end - row - 1)
    if start >= begin:
        return low, high, (-1 if stop <= end else 2 * task + 1)
    return low, high, 2 * task


@inline
def neighbor(form, rows, row, e):
    if form.listed:
        return np.int64(get(rows.index, e))
    return e + first_neighbor(form, rows, row)


@inline
def first_neighbor(form, rows, row):
    """What is to be added to an edge to get its neighbor, in the row of an interval."""
    return np.int64(0) if form.listed else get(rows.index, row) - get(rows.ptr, row)


@inline
def edge_of(rows, e):
    return np.int64(get(rows.edge, e)) if len(rows.edge) else e


@inline
def edge_of_transposed(form, rows, columns, e, dst, src):
    """The place in edge order of the edge at `e` of the transpose."""
    if form.listed:
        return edge_of(columns, e)
    return src - first_neighbor(form, rows, dst)


@inline
def padded(length):
    """The length of whole vectors, at least one."""
    return max((length + PADDING - 1) // PADDING, 1) * PADDING


@inline
def joined(form, shape):
    """How many numbers of an edge join those of its key and value."""
    if form.edge_dim < 0:
        return np.int64(0)
    return np.int64(form.edge_dim if form.edge_dim else shape.edge_dim)


@inline
def clear(array, start, length):
    for place in range(start, start + length):
        array[place] = 0


# --- features of edges behind those of keys and values --------------------------------------------


@inline
def dot_edges(form, shape, rows, inputs, out, factor, a, at, b, low, high):
    """Add the dot products of `a`, from `at`, with the features of edges to `out`."""
    width = joined(form, shape)
    dots(
        out, factor, a, at, width, inputs.edge, b * inputs.edge_stride, width, len(rows.edge) > 0,
        rows.edge, shape.num_edges - 1, np.int64(0), low, high, True,
    )  # fmt: skip


@inline
def add_weighted_edges(form, shape, rows, inputs, out, at, factor, run, b, low, high):
    """Add the sum of the features of edges, each by its number in `run`, to `out`, from `at`."""
    width = joined(form, shape)
    add_weighted(
        out, at, factor, run, width, inputs.edge, b * inputs.edge_stride, width,
        len(rows.edge) > 0, rows.edge, shape.num_edges - 1, np.int64(0), low, high,
    )  # fmt: skip


# --- one pair -------------------------------------------------------------------------------------


@inline
def places(form, dim, shape, inputs, b, i, j, h, g):
    """Where head h of query i and head g of key j begin."""
    q = b * inputs.query_strides[0] + i * inputs.query_strides[1] + h * (dim + joined(form, shape))
    k = b * inputs.key_strides[0] + j * inputs.key_strides[1] + g * dim
    return q, k


@inline
def key_feature(form, dim, shape, inputs, b, edge, g):
    """Where head g of the key feature of an edge begins; -1 if there are none."""
    if not form.plain and len(inputs.edge_key):
        return b * inputs.edge_key_stride + (edge * shape.kv_heads + g) * dim
    return np.int64(-1)


@inline
def additive_score(form, dim, shape, inputs, b, i, j, h, g, edge):
    """`scale * score` of one pair."""
    q, k = places(form, dim, shape, inputs, b, i, j, h, g)
    e = key_feature(form, dim, shape, inputs, b, edge, g)
    if form.score == TANH:
        s = tanh_score(
            inputs.weight, h * dim, inputs.slope, inputs.query, q, inputs.key, k,
            inputs.edge_key, e, dim,
        )  # fmt: skip
    else:
        s = leaky_relu_score(
            inputs.weight, h * dim, inputs.slope, inputs.query, q, inputs.key, k,
            inputs.edge_key, e, dim,
        )  # fmt: skip
    return s * inputs.scale


@inline
def add_pair_gradient(
    form, dim, shape, inputs, grad, b, i, j, h, g, edge, target, at, weights, weight_at
):  # fmt: skip
    """Add what an additive score passes to query, key and edge alike, and to its weight."""
    q, k = places(form, dim, shape, inputs, b, i, j, h, g)
    e = key_feature(form, dim, shape, inputs, b, edge, g)
    if form.score == TANH:
        tanh_gradient(
            grad, inputs.weight, h * dim, inputs.slope, inputs.query, q, inputs.key, k,
            inputs.edge_key, e, target, at, weights, weight_at, dim,
        )  # fmt: skip
    else:
        leaky_relu_gradient(
            grad, inputs.weight, h * dim, inputs.slope, inputs.query, q, inputs.key, k,
            inputs.edge_key, e, target, at, weights, weight_at, dim,
        )  # fmt: skip


@inline
def scores_pairs(form, inputs):
    """Whether scores are computed pair by pair: all but dot products without features of edges."""
    return form.score != DOT or (not form.plain and len(inputs.edge_key) > 0)


@inline
def pair_score(form, dim, shape, inputs, s, b, i, j, h, g, edge):
    """`scale * score` of one pair; s is that of the dot product with the key alone."""
    if form.score == DOT:
        q, _ = places(form, dim, shape, inputs, b, i, 0, h, g)
        e = key_feature(form, dim, shape, inputs, b, edge, g)
        return s + inputs.scale * dot(inputs.query, q, inputs.edge_key, e, dim)
    return additive_score(form, dim, shape, inputs, b, i, j, h, g, edge)


@inline
def extra_gradient(form, shape, inputs, grads, width, grad, b, i, h, g, edge):
    """The gradient of a weight, with the value feature of its edge, and the factor of dropout."""
    if len(inputs.edge_value):
        to = ((b * shape.num_dst + i) * shape.heads + h) * (width + joined(form, shape))
        f = b * inputs.edge_value_stride + (edge * shape.kv_heads + g) * width
        grad += dot(grads.grad_out, to, inputs.edge_value, f, width)
    keep = inputs.one
    if inputs.drop:
        keep = kept(inputs, (b * shape.num_edges + edge) * shape.heads + h)
    return grad * keep, keep


@inline
def kept(inputs, number):
    """Factor of a weight under dropout, from the number of the weight (SplitMix64's finalizer)."""
    x = inputs.seed + np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return inputs.keep if x >= inputs.drop else inputs.zero


@inline
def row_logits(form, dim, shape, rows, inputs, logits, slopes, length, b, i, h, g, low, high):
    """The logits of head h for the edges `low` to `high` of destination i; -inf in the padding.

    The slopes of a softcap go to `slopes`, which are the logits themselves if nobody wants them.
    """
    fill(logits, length - PADDING, -np.inf)
    if form.score == DOT:
        q, k = places(form, dim, shape, inputs, b, i, 0, h, g)
        dots(
            logits, inputs.scale, inputs.query, q, dim, inputs.key, k, inputs.key_strides[1],
            form.listed, rows.index, shape.num_edges - 1, first_neighbor(form, rows, i), low, high,
            False,
        )  # fmt: skip
        if form.edge_dim >= 0:
            dot_edges(
                form, shape, rows, inputs, logits, inputs.scale, inputs.query, q + dim, b, low, high
            )  # fmt: skip
    if scores_pairs(form, inputs):
        for e in range(low, high):
            j, edge, s = neighbor(form, rows, i, e), edge_of(rows, e), get(logits, e - low)
            s = pair_score(form, dim, shape, inputs, s, b, i, j, h, g, edge)
            put(logits, e - low, s)
    if not form.plain:
        if inputs.softcap != 0:
            soft_cap(logits, slopes, length, inputs.softcap)
        if len(inputs.bias):
            for e in range(low, high):
                place = b * inputs.bias_stride + edge_of(rows, e) * shape.heads + h
                put(logits, e - low, get(logits, e - low) + get(inputs.bias, place))


@inline
def weigh(form, logits, length, shift):
    """Turn logits into weights; those of softmax are still to be divided by their sum, returned.

    Where there is no normalizer, edges that are switched off stay at -inf.
    """
    if form.normalizer == SOFTMAX:
        return exp_sum(logits, length, shift)
    if form.normalizer == SIGMOID:
        sigmoid(logits, logits, length, shift)
    return shift


@inline
def weight_gradient(form, p, dp, length, delta):
    """Turn the gradients of weights into those of logits, and switch off what is off."""
    if form.normalizer == SOFTMAX:
        softmax_gradient(p, dp, length, delta)
    elif form.normalizer == SIGMOID:
        sigmoid_gradient(p, dp, length, delta)
    else:
        identity_gradient(p, dp, length, delta)


# --- forward --------------------------------------------------------------------------------------


@cache
def forward(form: Form) -> Callable:
    """Output and statistics of every row; statistics of softmax alone."""

    @compiled
    def forward(counter, p, shape, rows, inputs, out, stats, out_parts, stats_parts):
        dim = form.head_dim if form.head_dim else shape.head_dim
        width = form.value_dim if form.value_dim else shape.value_dim
        heads, tasks, last = shape.heads, num_tasks(rows.ptr), shape.num_edges - 1
        group, out_dim = heads // shape.kv_heads, width + joined(form, shape)
        while True:
            task = fetch_add(counter)
            if task >= shape.batch * tasks:
                break
            b, t = task // tasks, task % tasks
            row = first_row(rows.ptr, t * UNIT)
            while row < shape.num_dst and rows.ptr[row] + row < (t + 1) * UNIT:
                low, high, part = segment(rows.ptr, row, t)
                length, first = padded(high - low), first_neighbor(form, rows, row)
                if part < 0:
                    place, out_to, stats_to = b * shape.num_dst + row, out, stats
                else:
                    place, out_to, stats_to = 2 * b * tasks + part, out_parts, stats_parts
                clear(out_to, heads * out_dim * place, heads * out_dim)
                # Each phase for all heads, so that a head need not wait for the one before.
                for h in range(heads):
                    run = p[h * length : (h + 1) * length]
                    row_logits(
                        form, dim, shape, rows, inputs, run, run, length, b, row, h, h // group,
                        low, high,
                    )  # fmt: skip
                for h in range(heads):
                    run = p[h * length : (h + 1) * length]
                    if form.normalizer != SOFTMAX:
                        weigh(form, run, length, inputs.zero)
                        if form.normalizer == NONE:
                            identity_gradient(run, run, length, inputs.zero)
                        continue
                    top = maximum(run, length)
                    sinks = len(inputs.sink) and (part < 0 or part == 2 * t + 1)  # once a row
                    if sinks:
                        top = max(top, get(inputs.sink, h))
                    shift = top if top > -np.inf else inputs.zero
                    total = exp_sum(run, length, shift)
                    if sinks:
                        total += np.exp(get(inputs.sink, h) - shift)
                    if part < 0:
                        top = shift
                        total = inputs.one / total if total != 0 else total
                        scale(run, length, total)
                    put(stats_to, 2 * heads * place + h, top)
                    put(stats_to, (2 * place + 1) * heads + h, total)
                for h in range(heads):
                    run = p[h * length : (h + 1) * length]
                    g, to = h // group, (heads * place + h) * out_dim
                    if not form.plain:
                        for e in range(low, high):
                            edge, weight = edge_of(rows, e), get(run, e - low)
                            if inputs.drop:
                                number = (b * shape.num_edges + edge) * heads + h
                                weight *= kept(inputs, number)
                                put(run, e - low, weight)
                            if len(inputs.edge_value):
                                f = b * inputs.edge_value_stride
                                f += (edge * shape.kv_heads + g) * width
                                add_scaled(out_to, to, weight, inputs.edge_value, f, width)
                    add_weighted(
                        out_to, to, inputs.one, run, width, inputs.value,
                        b * inputs.value_strides[0] + g * width, inputs.value_strides[1],
                        form.listed, rows.index, last, first, low, high,
                    )  # fmt: skip
                    if form.edge_dim >= 0:
                        add_weighted_edges(
                            form, shape, rows, inputs, out_to, to + width, inputs.one, run, b,
                            low, high,
                        )  # fmt: skip
                row += 1

    return forward


@compiled
def merge_softmax(shape, rows, out, stats, out_parts, stats_parts):
    """Join the parts of every row that was cut."""
    tasks, heads, width = num_tasks(rows.ptr), shape.heads, shape.value_dim + shape.edge_dim
    for b in range(shape.batch):
        for t in range(tasks):
            row = first_row(rows.ptr, (t + 1) * UNIT - 1)
            if row >= shape.num_dst or segment(rows.ptr, row, t)[2] != 2 * t + 1:
                continue
            place = b * shape.num_dst + row
            last = (rows.ptr[row + 1] + row) // UNIT
            clear(out, place * heads * width, heads * width)
            for h in range(heads):
                top, sum_ = -np.inf, 0.0
                for u in range(t, last + 1):
                    part = 2 * (b * tasks + u) + (u == t)
                    top = max(top, stats_parts[2 * heads * part + h])
                top = top if top > -np.inf else 0.0
                for u in range(t, last + 1):
                    part = 2 * (b * tasks + u) + (u == t)
                    total = stats_parts[(2 * part + 1) * heads + h]
                    if total != 0:
                        factor = np.exp(stats_parts[2 * heads * part + h] - top)
                        sum_ += total * factor
                        for d in range(h * width, (h + 1) * width):
                            more = factor * out_parts[part * heads * width + d]
                            out[place * heads * width + d] += more
                inverse = 1 / sum_ if sum_ != 0 else 0.0
                stats[2 * heads * place + h] = top
                stats[(2 * place + 1) * heads + h] = inverse
                for d in range((place * heads + h) * width, (place * heads + h + 1) * width):
                    out[d] *= inverse


@compiled
def merge_sum(batch, rows, width, out, parts):
    """Add up the parts of every row that was cut."""
    tasks, num_rows = num_tasks(rows.ptr), len(rows.ptr) - 1
    for b in range(batch):
        for t in range(tasks):
            row = first_row(rows.ptr, (t + 1) * UNIT - 1)
            if row >= num_rows or segment(rows.ptr, row, t)[2] != 2 * t + 1:
                continue
            at = (b * num_rows + row) * width
            clear(out, at, width)
            for u in range(t, (rows.ptr[row + 1] + row) // UNIT + 1):
                part = (2 * (b * tasks + u) + (u == t)) * width
                for d in range(width):
                    out[at + d] += parts[part + d]


# --- weights --------------------------------------------------------------------------------------


@cache
def weights(form: Form) -> Callable:
    """The weight of every edge, from the statistics; without a normalizer, the logits."""

    @compiled
    def weights(counter, p, shape, rows, inputs, stats, out):
        dim = form.head_dim if form.head_dim else shape.head_dim
        heads, tasks = shape.heads, num_tasks(rows.ptr)
        group = heads // shape.kv_heads
        while True:
            task = fetch_add(counter)
            if task >= shape.batch * tasks:
                break
            b, t = task // tasks, task % tasks
            row = first_row(rows.ptr, t * UNIT)
            while row < shape.num_dst and rows.ptr[row] + row < (t + 1) * UNIT:
                low, high, _ = segment(rows.ptr, row, t)
                length, top = padded(high - low), 2 * heads * (b * shape.num_dst + row)
                for h in range(heads):
                    row_logits(
                        form, dim, shape, rows, inputs, p, p, length, b, row, h, h // group,
                        low, high,
                    )  # fmt: skip
                    weigh(form, p, length, get(stats, top + h))
                    inverse = get(stats, top + heads + h)
                    for e in range(low, high):
                        place = (b * shape.num_edges + edge_of(rows, e)) * heads + h
                        put(out, place, get(p, e - low) * inverse)
                row += 1

    return weights


@compiled
def weigh_gradients(counter, shape, rows, weights, grads):
    """Of every row: the sum of each weight times its gradient, into the third of `rows`."""
    heads = shape.heads
    while True:
        task = fetch_add(counter)
        begin = task * UNIT
        if begin >= shape.batch * shape.num_dst:
            break
        for place in range(begin, min(begin + UNIT, shape.batch * shape.num_dst)):
            b, row = place // shape.num_dst, place % shape.num_dst
            delta = (3 * place + 2) * heads
            clear(grads.rows, delta, heads)
            for e in range(rows.ptr[row], rows.ptr[row + 1]):
                edge = (b * shape.num_edges + edge_of(rows, e)) * heads
                for h in range(heads):
                    grads.rows[delta + h] += weights[edge + h] * grads.grad_weights[edge + h]


# --- backward -------------------------------------------------------------------------------------


@cache
def by_destination(form: Form) -> Callable:
    """Gradients of queries, biases, features of edges and the weight of an additive score."""

    @compiled
    def by_destination(counter, scratch, shape, rows, inputs, grads, query_parts):
        dim = form.head_dim if form.head_dim else shape.head_dim
        width = form.value_dim if form.value_dim else shape.value_dim
        heads, tasks, last = shape.heads, num_tasks(rows.ptr), shape.num_edges - 1
        group, more = heads // shape.kv_heads, joined(form, shape)
        query_dim, out_dim = dim + more, width + more
        p, dp = scratch[: heads * CHUNK], scratch[heads * CHUNK : 2 * heads * CHUNK]
        slopes = scratch[2 * heads * CHUNK : 3 * heads * CHUNK]
        while True:
            task = fetch_add(counter)
            if task >= shape.batch * tasks:
                break
            b, t = task // tasks, task % tasks
            row = first_row(rows.ptr, t * UNIT)
            while row < shape.num_dst and rows.ptr[row] + row < (t + 1) * UNIT:
                begin, end, part = segment(rows.ptr, row, t)
                first, place = first_neighbor(form, rows, row), b * shape.num_dst + row
                if part < 0:
                    target, at = grads.query, heads * query_dim * place
                else:
                    target, at = query_parts, heads * query_dim * (2 * b * tasks + part)
                clear(target, at, heads * query_dim)
                for h in range(heads):
                    stat, top = 2 * heads * place + h, 3 * heads * place + h
                    put(grads.rows, top, get(grads.stats, stat))
                    put(grads.rows, top + heads, -np.log(get(grads.stats, stat + heads)))
                    if form.normalizer != SOFTMAX:
                        put(grads.rows, top + 2 * heads, inputs.zero)
                    elif not len(grads.grad_weights):
                        to = (place * heads + h) * out_dim
                        delta = dot(grads.grad_out, to, grads.out, to, out_dim)
                        put(grads.rows, top + 2 * heads, delta)
                for low in range(begin, end, CHUNK):
                    high = min(low + CHUNK, end)
                    length = padded(high - low)
                    for h in range(heads):
                        row_logits(
                            form, dim, shape, rows, inputs, p[h * CHUNK : (h + 1) * CHUNK],
                            slopes[h * CHUNK : (h + 1) * CHUNK], length, b, row, h, h // group,
                            low, high,
                        )  # fmt: skip
                    for h in range(heads):
                        run = dp[h * CHUNK : (h + 1) * CHUNK]
                        if len(grads.grad_weights):
                            for e in range(low, high):
                                number = (b * shape.num_edges + edge_of(rows, e)) * heads + h
                                put(run, e - low, get(grads.grad_weights, number))
                        else:
                            v = b * inputs.value_strides[0] + h // group * width
                            to = (place * heads + h) * out_dim
                            dots(
                                run, inputs.one, grads.grad_out, to, width, inputs.value, v,
                                inputs.value_strides[1], form.listed, rows.index, last, first,
                                low, high, False,
                            )  # fmt: skip
                            if form.edge_dim >= 0:
                                dot_edges(
                                    form, shape, rows, inputs, run, inputs.one, grads.grad_out,
                                    to + width, b, low, high,
                                )  # fmt: skip
                    for h in range(heads):
                        run = p[h * CHUNK : (h + 1) * CHUNK]
                        weigh(form, run, length, get(grads.stats, 2 * heads * place + h))
                        if form.normalizer == SOFTMAX:
                            scale(run, length, get(grads.stats, (2 * place + 1) * heads + h))
                    if not form.plain:
                        for h in range(heads):
                            add_extras(
                                form, shape, rows, inputs, grads, p[h * CHUNK : (h + 1) * CHUNK],
                                dp[h * CHUNK : (h + 1) * CHUNK], width, b, row, h, h // group,
                                low, high,
                            )  # fmt: skip
                    for h in range(heads):
                        delta = get(grads.rows, (3 * place + 2) * heads + h)
                        run = dp[h * CHUNK : (h + 1) * CHUNK]
                        weight_gradient(form, p[h * CHUNK : (h + 1) * CHUNK], run, length, delta)
                    if not form.plain:
                        for h in range(heads):
                            run = dp[h * CHUNK : (h + 1) * CHUNK]
                            if len(grads.bias):
                                for e in range(low, high):
                                    number = b * shape.num_edges + edge_of(rows, e)
                                    put(grads.bias, number * heads + h, get(run, e - low))
                            if inputs.softcap != 0:
                                slope = slopes[h * CHUNK : (h + 1) * CHUNK]
                                multiply(run, slope, length, inputs.zero)
                        if len(grads.handed):
                            hand_over(shape, rows, inputs, grads, p, dp, b, low, high)
                    for h in range(heads):
                        run, g = dp[h * CHUNK : (h + 1) * CHUNK], h // group
                        to = at + h * query_dim
                        if form.score == DOT:
                            _, k = places(form, dim, shape, inputs, b, row, 0, h, g)
                            add_weighted(
                                target, to, inputs.scale, run, dim, inputs.key, k,
                                inputs.key_strides[1], form.listed, rows.index, last, first,
                                low, high,
                            )  # fmt: skip
                        if form.edge_dim >= 0:
                            add_weighted_edges(
                                form, shape, rows, inputs, target, to + dim, inputs.scale, run, b,
                                low, high,
                            )  # fmt: skip
                            if len(grads.edge):
                                joined_gradients(
                                    form, dim, width, shape, rows, inputs, grads,
                                    p[h * CHUNK : (h + 1) * CHUNK], run, b, row, h, low, high,
                                )  # fmt: skip
                        if scores_pairs(form, inputs):
                            chunk_gradients(
                                form, dim, shape, rows, inputs, grads, run, b, row, h, g, low,
                                high, target, to, (task * heads + h) * dim,
                            )  # fmt: skip
                row += 1

    return by_destination


@inline
def add_extras(form, shape, rows, inputs, grads, p, dp, width, b, i, h, g, low, high):
    """Value features and dropout, between the weights of a chunk and their gradients."""
    for e in range(low, high):
        edge = edge_of(rows, e)
        grad, keep = extra_gradient(
            form, shape, inputs, grads, width, get(dp, e - low), b, i, h, g, edge
        )  # fmt: skip
        put(dp, e - low, grad)
        weight = get(p, e - low) * keep
        if len(grads.edge_value) and not (form.normalizer == NONE and weight == -np.inf):
            f = ((b * shape.num_edges + edge) * shape.kv_heads + g) * width
            to = ((b * shape.num_dst + i) * shape.heads + h) * (width + joined(form, shape))
            add_scaled(grads.edge_value, f, weight, grads.grad_out, to, width)


@inline
def hand_over(shape, rows, inputs, grads, p, dp, b, low, high):
    """Keep the weights of a chunk and the gradients of its scores for the pass by source."""
    heads = shape.heads
    for e in range(low, high):
        number = b * shape.num_edges + edge_of(rows, e)
        for h in range(heads):
            weight = get(p, h * CHUNK + e - low)
            if inputs.drop:
                weight *= kept(inputs, number * heads + h)
            put(grads.handed, 2 * number * heads + h, weight)
            put(grads.handed, (2 * number + 1) * heads + h, get(dp, h * CHUNK + e - low))


@inline
def joined_gradients(form, dim, width, shape, rows, inputs, grads, p, dp, b, i, h, low, high):
    """Add the gradients of what joins the keys and values of a chunk, for head h."""
    more = joined(form, shape)
    q, _ = places(form, dim, shape, inputs, b, i, 0, h, 0)
    to = ((b * shape.num_dst + i) * shape.heads + h) * (width + more) + width
    for e in range(low, high):
        number = b * shape.num_edges + edge_of(rows, e)
        at, grad, weight = number * more, get(dp, e - low) * inputs.scale, get(p, e - low)
        add_scaled(grads.edge, at, grad, inputs.query, q + dim, more)
        if len(grads.grad_out):
            if inputs.drop:
                weight *= kept(inputs, number * shape.heads + h)
            add_scaled(grads.edge, at, weight, grads.grad_out, to, more)


@inline
def chunk_gradients(
    form, dim, shape, rows, inputs, grads, dp, b, i, h, g, low, high, target, at, weight_at
):  # fmt: skip
    """Pass the gradients of scores on, edge by edge, to all but the keys."""
    if not len(grads.weight):
        weight_at = np.int64(-1)
    for e in range(low, high):
        j, edge, grad = neighbor(form, rows, i, e), edge_of(rows, e), get(dp, e - low)
        grad *= inputs.scale
        own = ((b * shape.num_edges + edge) * shape.kv_heads + g) * dim
        if form.score != DOT:
            add_pair_gradient(
                form, dim, shape, inputs, grad, b, i, j, h, g, edge, target, at,
                grads.weight, weight_at,
            )  # fmt: skip
            if len(grads.edge_key):
                add_pair_gradient(
                    form, dim, shape, inputs, grad, b, i, j, h, g, edge, grads.edge_key, own,
                    grads.weight, np.int64(-1),
                )  # fmt: skip
        else:
            f = key_feature(form, dim, shape, inputs, b, edge, g)
            add_scaled(target, at, grad, inputs.edge_key, f, dim)
            if len(grads.edge_key):
                q, _ = places(form, dim, shape, inputs, b, i, j, h, g)
                add_scaled(grads.edge_key, own, grad, inputs.query, q, dim)


@inline
def take_over(shape, columns, grads, p, dp, b, low, high):
    """What the pass by destination kept of the edges of a chunk."""
    heads, last = shape.heads, shape.num_edges - 1
    for e in range(low, high):
        ahead = b * shape.num_edges + edge_of(columns, min(e + AHEAD, last))
        prefetch(grads.handed, 2 * ahead * heads)
        number = b * shape.num_edges + edge_of(columns, e)
        for h in range(heads):
            put(p, h * CHUNK + e - low, get(grads.handed, 2 * number * heads + h))
            put(dp, h * CHUNK + e - low, get(grads.handed, (2 * number + 1) * heads + h))


@inline
def weigh_again(
    form, dim, width, shape, rows, columns, inputs, grads, p, dp, slopes, b, j, low, high
):  # fmt: skip
    """The same, computed again: of edges that have no tensors of their own."""
    heads, last, length = shape.heads, shape.num_edges - 1, padded(high - low)
    group, first = heads // shape.kv_heads, first_neighbor(form, columns, j)
    for h in range(heads):
        q, k = places(form, dim, shape, inputs, b, 0, j, h, h // group)
        run = p[h * CHUNK : (h + 1) * CHUNK]
        fill(run, length - PADDING, -np.inf)
        if form.score == DOT:
            dots(
                run, inputs.scale, inputs.key, k, dim, inputs.query, q, inputs.query_strides[1],
                form.listed, columns.index, last, first, low, high, False,
            )  # fmt: skip
        else:
            for e in range(low, high):
                i = neighbor(form, columns, j, e)
                s = additive_score(form, dim, shape, inputs, b, i, j, h, h // group, np.int64(0))
                put(run, e - low, s)
    for h in range(heads):
        v = b * inputs.value_strides[0] + j * inputs.value_strides[1]
        dots(
            dp[h * CHUNK : (h + 1) * CHUNK], inputs.one, inputs.value, v + h // group * width,
            width, grads.grad_out, (b * shape.num_dst * heads + h) * width, heads * width,
            form.listed, columns.index, last, first, low, high, False,
        )  # fmt: skip
    if not form.plain and inputs.softcap != 0:
        for h in range(heads):
            run, slope = p[h * CHUNK : (h + 1) * CHUNK], slopes[h * CHUNK : (h + 1) * CHUNK]
            soft_cap(run, slope, length, inputs.softcap)
    for e in range(low, high):
        i, at = neighbor(form, columns, j, e), e - low
        top = 3 * heads * (b * shape.num_dst + i)
        if form.listed:
            ahead = np.int64(get(columns.index, min(e + AHEAD, last)))
            prefetch(grads.rows, 3 * heads * (b * shape.num_dst + ahead))
        for h in range(heads):
            s, grad = get(p, h * CHUNK + at), get(dp, h * CHUNK + at)
            if not form.plain and inputs.drop:
                edge = b * shape.num_edges + edge_of_transposed(form, rows, columns, e, i, j)
                grad *= kept(inputs, edge * heads + h)
            s = s - get(grads.rows, top + h) - get(grads.rows, top + heads + h)
            put(p, h * CHUNK + at, s)
            put(dp, h * CHUNK + at, grad - get(grads.rows, top + 2 * heads + h))
    for h in range(heads):
        run = p[h * CHUNK : (h + 1) * CHUNK]
        grad = dp[h * CHUNK : (h + 1) * CHUNK]
        weigh(form, run, length, inputs.zero)
        weight_gradient(form, run, grad, length, inputs.zero)
        if not form.plain and inputs.softcap != 0:
            multiply(grad, slopes[h * CHUNK : (h + 1) * CHUNK], length, inputs.zero)
    if not form.plain and inputs.drop:
        for e in range(low, high):
            i, at = neighbor(form, columns, j, e), e - low
            edge = b * shape.num_edges + edge_of_transposed(form, rows, columns, e, i, j)
            for h in range(heads):
                keep = kept(inputs, edge * heads + h)
                put(p, h * CHUNK + at, get(p, h * CHUNK + at) * keep)


@cache
def by_source(form: Form) -> Callable:
    """Gradients of keys and values, over the transpose."""

    @compiled
    def by_source(
        counter, scratch, shape, rows, columns, inputs, grads, key_parts, value_parts
    ):  # fmt: skip
        dim = form.head_dim if form.head_dim else shape.head_dim
        width = form.value_dim if form.value_dim else shape.value_dim
        heads, kv_heads, tasks = shape.heads, shape.kv_heads, num_tasks(columns.ptr)
        group, last = heads // kv_heads, shape.num_edges - 1
        out_dim, handed = width + joined(form, shape), not form.plain and len(grads.handed) > 0
        p, dp = scratch[: heads * CHUNK], scratch[heads * CHUNK : 2 * heads * CHUNK]
        slopes = scratch[2 * heads * CHUNK : 3 * heads * CHUNK]
        while True:
            task = fetch_add(counter)
            if task >= shape.batch * tasks:
                break
            b, t = task // tasks, task % tasks
            row = first_row(columns.ptr, t * UNIT)
            while row < shape.num_src and columns.ptr[row] + row < (t + 1) * UNIT:
                begin, end, part = segment(columns.ptr, row, t)
                first = first_neighbor(form, columns, row)
                if part < 0:
                    place, dk, dv = b * shape.num_src + row, grads.key, grads.value
                else:
                    place, dk, dv = 2 * b * tasks + part, key_parts, value_parts
                clear(dk, kv_heads * dim * place, kv_heads * dim)
                clear(dv, kv_heads * width * place, kv_heads * width)
                for low in range(begin, end, CHUNK):
                    high = min(low + CHUNK, end)
                    if handed:
                        take_over(shape, columns, grads, p, dp, b, low, high)
                    else:
                        weigh_again(
                            form, dim, width, shape, rows, columns, inputs, grads, p, dp, slopes,
                            b, row, low, high,
                        )  # fmt: skip
                    for h in range(heads):
                        g, run = h // group, dp[h * CHUNK : (h + 1) * CHUNK]
                        q, _ = places(form, dim, shape, inputs, b, 0, row, h, g)
                        to = (kv_heads * place + g) * dim
                        if form.score == DOT:
                            add_weighted(
                                dk, to, inputs.scale, run, dim, inputs.query, q,
                                inputs.query_strides[1], form.listed, columns.index, last, first,
                                low, high,
                            )  # fmt: skip
                        else:
                            for e in range(low, high):
                                i = neighbor(form, columns, row, e)
                                edge = edge_of_transposed(form, rows, columns, e, i, row)
                                add_pair_gradient(
                                    form, dim, shape, inputs, inputs.scale * get(run, e - low),
                                    b, i, row, h, g, edge, dk, to, dk, np.int64(-1),
                                )  # fmt: skip
                    if len(grads.grad_out):
                        for h in range(heads):
                            add_weighted(
                                dv, (kv_heads * place + h // group) * width, inputs.one,
                                p[h * CHUNK : (h + 1) * CHUNK], width, grads.grad_out,
                                (b * shape.num_dst * heads + h) * out_dim, heads * out_dim,
                                form.listed, columns.index, last, first, low, high,
                            )  # fmt: skip
                row += 1

    return by_source
