// Gradients of every row: once by destination (queries, biases, features of edges, the weight of an
// additive score) and once by source (keys and values). Weights are computed again, in chunks.
#include "logits.h"

constexpr i64 CHUNK = 64;  // edges whose rows stay in the first-level cache

// Weights, their gradients and the slopes of a softcap, for the edges of a chunk; notes on its row.
template <class A> struct Runs {
  Scratch<A> weights, grads, slopes, notes;  // notes of one row, or of all rows that a chunk reads
  explicit Runs(const Call& call)
      : weights(call.heads * CHUNK),
        grads(call.heads * CHUNK),
        slopes(call.heads * CHUNK),
        notes(3 * call.heads * CHUNK) {}
  bool failed() const { return !weights.data || !grads.data || !slopes.data || !notes.data; }
};

// Where the gradient of a row is added up: in the result itself, in a part of it, or in a buffer.
template <class S>
static Real<S>* target_of(void* grad, void* parts, const Segment& segment, i64 node, i64 width,
                          Real<S>* buffer) {
  Real<S>* to = !segment.whole()               ? (Real<S>*)parts + segment.part * width
                : sizeof(S) == sizeof(Real<S>) ? (Real<S>*)grad + node * width
                                               : buffer;
  fill(to, width, Real<S>(0));
  return to;
}

template <class A, class F> INLINE void each(const Call& call, i64 low, i64 high, F function) {
  for (i64 e = low; e < high; ++e)
    for (i64 h = 0; h < call.heads; ++h) function(e, h, h * CHUNK + e - low);
}

// The number of the weight of head 0 of an edge, in edge order.
INLINE i64 number_of(const Call& call, i64 b, i64 edge) {
  return (b * call.num_edges + edge) * call.heads;
}

// --- by destination ------------------------------------------------------------------------------

// Note what the pass by source needs to know of a row; one of the row's segments writes it down.
template <class S> static void note_row(const Call& call, i64 node, Real<S>* notes, bool writes) {
  using A = Real<S>;
  const i64 heads = call.heads, dim = call.out_dim();
  const A* stats = (const A*)call.stats + 2 * heads * node;
  A* known = (A*)call.known + 3 * heads * node;
  const S *out = (const S*)call.out + node * heads * dim,
          *grad_out = (const S*)call.grad_out + node * heads * dim;
  const bool softmax = call.normalizer == SOFTMAX;
  for (i64 h = 0; h < heads; ++h) {
    notes[h] = stats[h], notes[heads + h] = -logarithm(stats[heads + h]);
    notes[2 * heads + h] = !softmax ? A(0)
                           : call.grad_out
                               ? product(out + h * dim, grad_out + h * dim, dim)
                               : known[2 * heads + h];  // `weigh_gradients` was there before
  }
  if (writes) copy(known, notes, (softmax && !call.grad_out ? 2 : 3) * heads);
}

// Weights and gradients of scores of a chunk; weights as they are used, dropped ones 0.
template <class S>
static void chunk_of_row(const Call& call, const Reads<S>& reads, const Real<S>* query,
                         const Real<S>* grad_out, Runs<Real<S>>& runs, i64 b, i64 node, i64 low,
                         i64 high) {
  using A = Real<S>;
  const i64 heads = call.heads, length = padded(high - low);
  const A *stats = (const A*)call.stats + 2 * heads * node, *notes = runs.notes.data;
  A *p = runs.weights.data, *dp = runs.grads.data, *slopes = runs.slopes.data;
  row_logits(call, reads, query, p, slopes, CHUNK, b, low, high);
  if (grad_out) {
    dots(dp, CHUNK, A(1), grad_out, value_heads(call), reads.value, low, high);
    if (call.edge_value)
      dots(dp, CHUNK, A(1), grad_out, value_heads(call), reads.edge_value, low, high, true);
    if (call.edge)
      dots(dp, CHUNK, A(1), grad_out + call.value_dim, joined_heads(call, call.out_dim()),
           reads.edge, low, high, true);
  } else {
    each<A>(call, low, high, [&](i64 e, i64 h, i64 i) {
      dp[i] = ((const A*)call.grad_weights)[number_of(call, b, edge_of(call, call.rows, e)) + h];
    });
  }
  auto keep = [&](i64 e, i64 h) {
    return kept<A>(call, number_of(call, b, edge_of(call, call.rows, e)) + h);
  };
  if (call.drop) each<A>(call, low, high, [&](i64 e, i64 h, i64 i) { dp[i] *= keep(e, h); });
  for (i64 h = 0; h < heads; ++h) {
    A *weights = p + h * CHUNK, *grads = dp + h * CHUNK;
    fill(grads + high - low, length - (high - low), A(0));
    weigh(call.normalizer, weights, length, stats[h]);
    if (call.normalizer == SOFTMAX) scale_run(weights, length, stats[heads + h]);
    weight_gradients(call.normalizer, weights, grads, length, notes[2 * heads + h]);
  }
  if (call.drop) each<A>(call, low, high, [&](i64 e, i64 h, i64 i) { p[i] *= keep(e, h); });
  if (call.grad_bias)
    each<A>(call, low, high, [&](i64 e, i64 h, i64 i) {
      ((A*)call.grad_bias)[number_of(call, b, edge_of(call, call.rows, e)) + h] = dp[i];
    });
  if (call.softcap)
    for (i64 h = 0; h < heads; ++h) multiply_run(dp + h * CHUNK, slopes + h * CHUNK, length);
}

// Gradients of the features of a chunk's edges.
template <class S>
static void edge_gradients(const Call& call, const Real<S>* query, const Real<S>* grad_out,
                           const Runs<Real<S>>& runs, const Segment& segment, i64 low, i64 high) {
  using A = Real<S>;
  const A *p = runs.weights.data, *dp = runs.grads.data, scale = call.scale;
  auto add = [&](void* grad, i64 step, A factor, const A* weights, const A* own,
                 const Heads& heads) {
    const A* base = (const A*)grad + segment.batch * call.num_edges * step;
    add_to_edges(of_edges(call, call.rows, segment, base, step), factor, weights, CHUNK, own, heads,
                 low, high);
  };
  if (call.grad_edge_key && call.score == DOT)
    add(call.grad_edge_key, call.kv_heads * call.head_dim, scale, dp, query, key_heads(call));
  if (call.grad_edge_value && grad_out)
    add(call.grad_edge_value, call.kv_heads * call.value_dim, A(1), p, grad_out, value_heads(call));
  if (call.grad_edge) {
    add(call.grad_edge, call.edge_dim, scale, dp, query + call.head_dim,
        joined_heads(call, call.query_dim()));
    if (grad_out)
      add(call.grad_edge, call.edge_dim, A(1), p, grad_out + call.value_dim,
          joined_heads(call, call.out_dim()));
  }
}

template <class S>
static void by_destination(const Call& call, Own<S>& own, Runs<Real<S>>& runs,
                           const Segment& segment) {
  using A = Real<S>;
  const i64 b = segment.batch, heads = call.heads, dim = call.head_dim,
            width = heads * call.query_dim();
  const i64 node = b * call.num_dst + segment.row;
  const A* query = real(at<S>(call.query, b, segment.row), width, own.first.data);
  const A* grad_out = nullptr;
  if (call.grad_out)
    grad_out = real((const S*)call.grad_out + node * heads * call.out_dim(), heads * call.out_dim(),
                    own.second.data);
  A* target =
      target_of<S>(call.grad_query, call.query_parts, segment, node, width, own.first_grad.data);
  note_row<S>(call, node, runs.notes.data, segment.first);
  const Reads<S> reads = reads_of<S>(call, segment);
  const A *p = runs.weights.data, *dp = runs.grads.data;
  for (i64 low = segment.low; low < segment.high; low += CHUNK) {
    const i64 high = smaller(low + CHUNK, segment.high);
    chunk_of_row(call, reads, query, grad_out, runs, b, node, low, high);
    if (call.handed)
      each<A>(call, low, high, [&](i64 e, i64 h, i64 i) {
        A* to = (A*)call.handed + 2 * number_of(call, b, edge_of(call, call.rows, e)) + h;
        to[0] = p[i];
        to[heads] = dp[i];
      });
    edge_gradients<S>(call, query, grad_out, runs, segment, low, high);
    if (call.score == DOT) {
      const A scale = call.scale;
      add_weighted(target, scale, dp, CHUNK, key_heads(call), reads.key, low, high);
      if (call.edge_key)
        add_weighted(target, scale, dp, CHUNK, key_heads(call), reads.edge_key, low, high);
      if (call.edge)
        add_weighted(target + dim, scale, dp, CHUNK, joined_heads(call, call.query_dim()),
                     reads.edge, low, high);
    } else {
      const i64 step = call.kv_heads * dim;
      const A* features =
          call.grad_edge_key ? (const A*)call.grad_edge_key + b * call.num_edges * step : nullptr;
      A* of_weight = call.grad_weight ? (A*)call.grad_weight + segment.task * heads * dim : nullptr;
      const SumGradients<A> to = {target, of_edges(call, call.rows, segment, features, step),
                                  of_weight};
      additive_gradients(call, to, dp, CHUNK, sums_of(call, reads, query), low, high);
    }
  }
  if (target == own.first_grad.data) copy((S*)call.grad_query + node * width, target, width);
}

// --- by source -----------------------------------------------------------------------------------

// Heads of a source, read by destinations.
INLINE Heads query_heads(const Call& call) {
  const i64 dim = call.head_dim, step = call.query_dim();
  return {dim, call.kv_heads, call.group, dim, 0, call.group * step, step};
}
INLINE Heads out_heads(const Call& call) {
  const i64 dim = call.value_dim, step = call.out_dim();
  return {dim, call.kv_heads, call.group, dim, 0, call.group * step, step};
}

// What the edges of a source read: queries, gradients of outputs, and what is known of rows.
template <class S> struct ColumnReads {
  Gather<S> query, grad_out;
  Gather<Real<S>> known;
  Gather<S> edge_key;
};

template <class S>
INLINE Sums<S> sums_of_column(const Call& call, const ColumnReads<S>& reads, const Real<S>* key) {
  return {(const Real<S>*)call.weight,
          key,
          query_heads(call),
          key_heads(call),
          reads.query,
          reads.edge_key,
          (Real<S>)call.slope};
}

// Take over what the pass by destination computed of a chunk's edges.
template <class A>
static void take_over(const Call& call, Runs<A>& runs, i64 b, i64 low, i64 high) {
  for (i64 e = low; e < high; ++e) {
    const i64 ahead = edge_of(call, call.columns, smaller(e + AHEAD, call.num_edges - 1));
    __builtin_prefetch((const A*)call.handed + 2 * number_of(call, b, ahead));
    const A* from = (const A*)call.handed + 2 * number_of(call, b, edge_of(call, call.columns, e));
    for (i64 h = 0; h < call.heads; ++h) {
      runs.weights.data[h * CHUNK + e - low] = from[h];
      runs.grads.data[h * CHUNK + e - low] = from[call.heads + h];
    }
  }
}

// Compute the same again, for edges that have no tensors of their own.
template <class S>
static void chunk_of_column(const Call& call, const ColumnReads<S>& reads, const Real<S>* key,
                            const Real<S>* value, Runs<Real<S>>& runs, i64 b, i64 src, i64 low,
                            i64 high) {
  using A = Real<S>;
  const i64 heads = call.heads, length = padded(high - low);
  A *p = runs.weights.data, *dp = runs.grads.data, *slopes = runs.slopes.data;
  if (call.score == DOT)
    dots(p, CHUNK, (A)call.scale, key, query_heads(call), reads.query, low, high);
  else additive_scores(call, p, CHUNK, sums_of_column(call, reads, key), low, high);
  dots(dp, CHUNK, A(1), value, out_heads(call), reads.grad_out, low, high);
  if (call.softcap)
    for (i64 h = 0; h < heads; ++h)
      soft_cap_run(p + h * CHUNK, slopes + h * CHUNK, length, (A)call.softcap);
  auto keep = [&](i64 e, i64 h) {
    const i64 edge = edge_of_column(call, e, neighbor(call, call.columns, src, e), src);
    return kept<A>(call, number_of(call, b, edge) + h);
  };
  if (call.drop) each<A>(call, low, high, [&](i64 e, i64 h, i64 i) { dp[i] *= keep(e, h); });
  A* notes = runs.notes.data;
  gather_columns(notes, CHUNK, 3 * heads, reads.known, low, high);
  for (i64 h = 0; h < heads; ++h) {
    const A *top = notes + h * CHUNK, *total = top + heads * CHUNK, *delta = total + heads * CHUNK;
    over<A>(length, [&](i64 d) {
      const i64 i = h * CHUNK + d;
      store<LANES<A>>(p + i,
                      load<LANES<A>>(p + i) - load<LANES<A>>(top + d) - load<LANES<A>>(total + d));
      store<LANES<A>>(dp + i, load<LANES<A>>(dp + i) - load<LANES<A>>(delta + d));
    });
    fill(p + h * CHUNK + high - low, length - (high - low), A(-INF));
    fill(dp + h * CHUNK + high - low, length - (high - low), A(0));
    weigh(call.normalizer, p + h * CHUNK, length, A(0));
    weight_gradients(call.normalizer, p + h * CHUNK, dp + h * CHUNK, length, A(0));
    if (call.softcap) multiply_run(dp + h * CHUNK, slopes + h * CHUNK, length);
  }
  if (call.drop) each<A>(call, low, high, [&](i64 e, i64 h, i64 i) { p[i] *= keep(e, h); });
}

template <class S>
static void by_source(const Call& call, Own<S>& own, Runs<Real<S>>& runs, const Segment& segment) {
  using A = Real<S>;
  const i64 b = segment.batch, heads = call.heads, node = b * call.num_src + segment.row;
  const i64 dim = call.head_dim, keys = call.kv_heads * dim,
            values = call.kv_heads * call.value_dim;
  const A* key = real(at<S>(call.key, b, segment.row), keys, own.first.data);
  const A* value = real(at<S>(call.value, b, segment.row), values, own.second.data);
  A* grad_key =
      target_of<S>(call.grad_key, call.key_parts, segment, node, keys, own.first_grad.data);
  A* grad_value =
      target_of<S>(call.grad_value, call.value_parts, segment, node, values, own.second_grad.data);
  auto nodes = [&](auto* base, i64 step) {
    return of_nodes(call, call.columns, segment, base, step);
  };
  const i64 out = heads * call.out_dim(), first = b * call.num_dst;
  const ColumnReads<S> reads = {
      nodes(at<S>(call.query, b, 0), call.query.node),
      nodes((const S*)call.grad_out + first * out, out),
      nodes((const A*)call.known + first * 3 * heads, 3 * heads),
      of_edges(call, call.columns, segment, call.edge_key ? at<S>(call.edge_key, b, 0) : nullptr,
               keys)};
  const A *p = runs.weights.data, *dp = runs.grads.data;
  for (i64 low = segment.low; low < segment.high; low += CHUNK) {
    const i64 high = smaller(low + CHUNK, segment.high);
    if (call.handed) take_over(call, runs, b, low, high);
    else chunk_of_column(call, reads, key, value, runs, b, segment.row, low, high);
    if (call.score == DOT)
      add_weighted(grad_key, (A)call.scale, dp, CHUNK, query_heads(call), reads.query, low, high,
                   call.handed);
    else
      additive_gradients(call, {grad_key, {}, nullptr}, dp, CHUNK, sums_of_column(call, reads, key),
                         low, high);
    if (call.grad_out)
      add_weighted(grad_value, A(1), p, CHUNK, out_heads(call), reads.grad_out, low, high,
                   call.handed);
  }
  if (grad_key == own.first_grad.data) {
    copy((S*)call.grad_key + node * keys, grad_key, keys);
    copy((S*)call.grad_value + node * values, grad_value, values);
  }
}

// --- entries -------------------------------------------------------------------------------------

template <class S, void pass(const Call&, Own<S>&, Runs<Real<S>>&, const Segment&)>
static int run(const Call& call, const Rows& rows, i64* counter) {
  Own<S> own(call);
  Runs<Real<S>> runs(call);
  if (own.failed() || runs.failed()) return 1;
  for_segments(call, rows, counter,
               [&](const Segment& segment) { pass(call, own, runs, segment); });
  return 0;
}

template <class S> static int destinations(const Call& call, i64* counter) {
  return run<S, by_destination<S>>(call, call.rows, counter);
}
template <class S> static int sources(const Call& call, i64* counter) {
  return run<S, by_source<S>>(call, call.columns, counter);
}

// Add up the parts of every row that was cut.
template <class S>
static int merge(const Call& call, const Rows& rows, void* out, const void* parts, i64 width) {
  using A = Real<S>;
  Scratch<A> total(width);
  if (!total.data) return 1;
  for_cut_rows(call.batch, rows, [&](i64 node, i64 first, i64 last) {
    fill(total.data, width, A(0));
    for (i64 task = first; task <= last; ++task) {
      const A* part = (const A*)parts + part_of(first, task) * width;
      for (i64 d = 0; d < width; ++d) total.data[d] += part[d];
    }
    copy((S*)out + node * width, total.data, width);
  });
  return 0;
}

template <class S> static int merge_destinations(const Call& call, i64*) {
  return merge<S>(call, call.rows, call.grad_query, call.query_parts,
                  call.heads * call.query_dim());
}
template <class S> static int merge_sources(const Call& call, i64*) {
  return merge<S>(call, call.columns, call.grad_key, call.key_parts,
                  call.kv_heads * call.head_dim) ||
         merge<S>(call, call.columns, call.grad_value, call.value_parts,
                  call.kv_heads * call.value_dim);
}

// Note, for every row, the sum of each weight times its gradient.
template <class S> static int weigh_gradients(const Call& call, i64* counter) {
  using A = Real<S>;
  const i64 heads = call.heads, rows = call.batch * call.num_dst;
  for (;;) {
    const i64 begin = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED) * UNIT;
    if (begin >= rows) return 0;
    for (i64 node = begin; node < smaller(begin + UNIT, rows); ++node) {
      const i64 b = node / call.num_dst, row = node % call.num_dst;
      A* delta = (A*)call.known + (3 * node + 2) * heads;
      fill(delta, heads, A(0));
      for (i64 e = call.rows.ptr[row]; e < call.rows.ptr[row + 1]; ++e) {
        const i64 number = number_of(call, b, edge_of(call, call.rows, e));
        for (i64 h = 0; h < heads; ++h)
          delta[h] +=
              ((const A*)call.weights)[number + h] * ((const A*)call.grad_weights)[number + h];
      }
    }
  }
}

ENTRY(by_destination, destinations)
ENTRY(by_source, sources)
ENTRY(merge_by_destination, merge_destinations)
ENTRY(merge_by_source, merge_sources)
ENTRY(weigh_gradients, weigh_gradients)
