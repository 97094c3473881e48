// Output and statistics of every row, and the weights of its edges.
#include "logits.h"

template <class S>
static void forward_segment(const Call& call, Own<S>& own, Real<S>* runs, const Segment& segment) {
  using A = Real<S>;
  const i64 heads = call.heads, low = segment.low, high = segment.high, length = padded(high - low);
  const i64 node = segment.batch * call.num_dst + segment.row, width = heads * call.out_dim();
  const A* query =
      real(at<S>(call.query, segment.batch, segment.row), heads * call.query_dim(), own.first.data);
  const Reads<S> reads = reads_of<S>(call, segment);
  row_logits(call, reads, query, runs, (A*)nullptr, length, segment.batch, low, high);
  A* stats = segment.whole() ? (A*)call.stats + 2 * heads * node
                             : (A*)call.stats_parts + 2 * heads * segment.part;
  for (i64 h = 0; h < heads; ++h) {
    A* run = runs + h * length;
    if (call.normalizer != SOFTMAX) {
      weigh(call.normalizer, run, length, A(0));
      if (call.normalizer == NONE) weight_gradients(NONE, run, run, length, A(0));  // -inf to 0
      continue;
    }
    const bool sinks = call.sink && segment.first;  // once a row
    const A sink = sinks ? ((const A*)call.sink)[h] : A(-INF);
    const A top = larger(maximum_of(run, length), sink), shift = top > -INF ? top : A(0);
    A total = exponentials(run, length, shift);
    if (sinks) total += exponential<A>(sink - shift);
    if (segment.whole()) {
      total = total != 0 ? 1 / total : total;
      scale_run(run, length, total);
    }
    stats[h] = segment.whole() ? shift : top;
    stats[heads + h] = total;
  }
  if (call.drop)
    for (i64 e = low; e < high; ++e) {
      const i64 number = (segment.batch * call.num_edges + edge_of(call, call.rows, e)) * heads;
      for (i64 h = 0; h < heads; ++h) runs[h * length + e - low] *= kept<A>(call, number + h);
    }
  A* out = !segment.whole()         ? (A*)call.out_parts + segment.part * width
           : sizeof(S) == sizeof(A) ? (A*)call.out + node * width
                                    : own.first_grad.data;
  fill(out, width, A(0));
  const Heads joined = joined_heads(call, call.out_dim());
  add_weighted(out, A(1), runs, length, value_heads(call), reads.value, low, high, true);
  if (call.edge_value)
    add_weighted(out, A(1), runs, length, value_heads(call), reads.edge_value, low, high, true);
  if (call.edge)
    add_weighted(out + call.value_dim, A(1), runs, length, joined, reads.edge, low, high, true);
  if (out == own.first_grad.data) copy((S*)call.out + node * width, out, width);
}

// Numbers of a thread's runs; a row of a task has at most UNIT edges.
static i64 runs_length(const Call& call) { return call.heads * (UNIT + PADDING); }

template <class S> static int forward(const Call& call, i64* counter) {
  Own<S> own(call);
  Scratch<Real<S>> runs(runs_length(call));
  if (own.failed() || !runs.data) return 1;
  for_segments(call, call.rows, counter,
               [&](const Segment& segment) { forward_segment(call, own, runs.data, segment); });
  return 0;
}

// Join the parts of every row that was cut.
template <class S> static int merge_forward(const Call& call, i64*) {
  using A = Real<S>;
  const i64 heads = call.heads, width = call.out_dim();
  Scratch<A> joined(width);
  if (!joined.data) return 1;
  for_cut_rows(call.batch, call.rows, [&](i64 node, i64 first, i64 last) {
    for (i64 h = 0; h < heads; ++h) {
      auto part_stats = [&](i64 task) {
        return (const A*)call.stats_parts + 2 * heads * part_of(first, task) + h;
      };
      auto part_out = [&](i64 task) {
        return (const A*)call.out_parts + (part_of(first, task) * heads + h) * width;
      };
      const bool softmax = call.normalizer == SOFTMAX;
      A top = -INF, total = 0;
      if (softmax) {
        for (i64 task = first; task <= last; ++task) top = larger(top, *part_stats(task));
        top = top > -INF ? top : A(0);
      }
      fill(joined.data, width, A(0));
      for (i64 task = first; task <= last; ++task) {
        A factor = 1;
        if (softmax) {
          if (part_stats(task)[heads] == 0) continue;
          factor = exponential<A>(*part_stats(task) - top);
          total += part_stats(task)[heads] * factor;
        }
        for (i64 d = 0; d < width; ++d) joined.data[d] += factor * part_out(task)[d];
      }
      const A inverse = !softmax ? A(1) : total != 0 ? 1 / total : A(0);
      copy((S*)call.out + (node * heads + h) * width, joined.data, width, inverse);
      if (softmax) {
        ((A*)call.stats)[2 * heads * node + h] = top;
        ((A*)call.stats)[2 * heads * node + heads + h] = inverse;
      }
    }
  });
  return 0;
}

// The weight of every edge, from the statistics; without a normalizer, the logits.
template <class S> static int weights(const Call& call, i64* counter) {
  using A = Real<S>;
  Own<S> own(call);
  Scratch<A> runs(runs_length(call));
  if (own.failed() || !runs.data) return 1;
  const i64 heads = call.heads;
  for_segments(call, call.rows, counter, [&](const Segment& segment) {
    const i64 b = segment.batch, low = segment.low, high = segment.high,
              length = padded(high - low);
    const A* stats = (const A*)call.stats + 2 * heads * (b * call.num_dst + segment.row);
    const A* query =
        real(at<S>(call.query, b, segment.row), heads * call.query_dim(), own.first.data);
    row_logits(call, reads_of<S>(call, segment), query, runs.data, (A*)nullptr, length, b, low,
               high);
    for (i64 h = 0; h < heads; ++h)
      weigh(call.normalizer, runs.data + h * length, length, stats[h]);
    for (i64 e = low; e < high; ++e) {
      A* to = (A*)call.weights + (b * call.num_edges + edge_of(call, call.rows, e)) * heads;
      for (i64 h = 0; h < heads; ++h) to[h] = runs.data[h * length + e - low] * stats[heads + h];
    }
  });
  return 0;
}

ENTRY(forward, forward)
ENTRY(merge_forward, merge_forward)
ENTRY(weights, weights)
EXPORT i64 graphattn_call_bytes() { return sizeof(Call); }
