// The logits of a row's edges, as forward, weights and the pass by destination need them.
#pragma once
#include "additive.h"

// What a thread needs beside its runs: the numbers of a row, converted or added up.
template <class S> struct Own {
  using A = Real<S>;
  Scratch<A> first, second, first_grad, second_grad;

  static i64 length(const Call& call) {
    return call.heads * larger(call.query_dim(), call.out_dim());
  }
  explicit Own(const Call& call)
      : first(length(call)),
        second(length(call)),
        first_grad(length(call)),
        second_grad(length(call)) {}
  bool failed() const {
    return !first.data || !second.data || !first_grad.data || !second_grad.data;
  }
};

template <class S> struct Reads {
  Gather<S> key, value, edge_key, edge_value, edge;
};

// What the edges of a destination read.
template <class S> INLINE Reads<S> reads_of(const Call& call, const Segment& segment) {
  auto nodes = [&](const Numbers& x) {
    return of_nodes(call, call.rows, segment, at<S>(x, segment.batch, 0), x.node);
  };
  auto edges = [&](const Numbers& x, i64 step) {
    return of_edges(call, call.rows, segment, x ? at<S>(x, segment.batch, 0) : nullptr, step);
  };
  return {nodes(call.key), nodes(call.value), edges(call.edge_key, call.kv_heads * call.head_dim),
          edges(call.edge_value, call.kv_heads * call.value_dim), edges(call.edge, call.edge_dim)};
}

// Heads of a destination, which reads keys, values, and what joins them for all heads.
INLINE Heads key_heads(const Call& call) {
  const i64 dim = call.head_dim, own = call.query_dim();
  return {dim, call.kv_heads, call.group, call.group * own, own, dim, 0};
}
INLINE Heads value_heads(const Call& call) {
  const i64 dim = call.value_dim, own = call.out_dim();
  return {dim, call.kv_heads, call.group, call.group * own, own, dim, 0};
}
INLINE Heads joined_heads(const Call& call, i64 own) {
  return {call.edge_dim, 1, call.heads, 0, own, 0, 0};
}

template <class S>
INLINE Sums<S> sums_of(const Call& call, const Reads<S>& reads, const Real<S>* query) {
  return {(const Real<S>*)call.weight,
          query,
          key_heads(call),
          key_heads(call),
          reads.key,
          reads.edge_key,
          (Real<S>)call.slope};
}

// Fill `runs[h * stride + e - low]`, -inf behind; the slopes of a softcap go to `slopes`, if not
// null.
template <class S>
void row_logits(const Call& call, const Reads<S>& reads, const Real<S>* query, Real<S>* runs,
                Real<S>* slopes, i64 stride, i64 b, i64 low, i64 high) {
  using A = Real<S>;
  const i64 length = padded(high - low);
  const A scale = call.scale;
  if (call.score == DOT) {
    const Heads heads = key_heads(call), joined = joined_heads(call, call.query_dim());
    dots(runs, stride, scale, query, heads, reads.key, low, high);
    if (call.edge_key) dots(runs, stride, scale, query, heads, reads.edge_key, low, high, true);
    if (call.edge)
      dots(runs, stride, scale, query + call.head_dim, joined, reads.edge, low, high, true);
  } else {
    additive_scores(call, runs, stride, sums_of(call, reads, query), low, high);
  }
  for (i64 h = 0; h < call.heads; ++h) {
    A* run = runs + h * stride;
    fill(run + high - low, length - (high - low), A(-INF));
    if (call.softcap)
      soft_cap_run(run, slopes ? slopes + h * stride : nullptr, length, (A)call.softcap);
  }
  if (call.bias) {
    const A* bias = at<A>(call.bias, b, 0);
    for (i64 e = low; e < high; ++e) {
      const A* of_edge = bias + edge_of(call, call.rows, e) * call.heads;
      for (i64 h = 0; h < call.heads; ++h) runs[h * stride + e - low] += of_edge[h];
    }
  }
}
