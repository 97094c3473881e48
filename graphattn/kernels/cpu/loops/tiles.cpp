// Forward and backward over tiles, of dot products without numbers of edges.
#include "tiles.h"

// Memory of a thread; `own` and `result` are of the window's rows, transposed.
template <class A, int STEP> struct Board {
  Tile<A, STEP> first, second;
  A own[2][STEP * WINDOW], result[2][STEP * WINDOW];
  A scores[TILE * WINDOW], grads[TILE * WINDOW], slopes[TILE * WINDOW];

  // Fill `own[which]` with a head of the window's rows, rows behind the last being 0.
  template <class S>
  SHARED void load_own(int which, const S* x, i64 step, i64 dim, const Window<A>& window,
                       A factor) {
    for (i64 r = 0; r < WINDOW; ++r) {
      if (r < window.count) copy(first.number + r * STEP, x + window.row(r) * step, dim, factor);
      else fill(first.number + r * STEP, dim, A(0));
    }
    transpose(own[which], WINDOW, first.number, STEP, WINDOW, dim);
  }

  // Write `result[which]` to a head of the window's rows.
  template <class S>
  SHARED void store_result(int which, S* to, i64 step, i64 dim, const Window<A>& window,
                           const PerRow<A>& factor) {
    transpose(first.number, STEP, result[which], WINDOW, dim, WINDOW);
    for (i64 r = 0; r < window.count; ++r)
      copy(to + window.row(r) * step, first.number + r * STEP, dim, factor.row(r));
  }

  INLINE void clear(int which, i64 dim) { fill(result[which], dim * WINDOW, A(0)); }

  INLINE bool is_finite(int which, i64 dim) const {  // a number less itself is 0, or NaN
    Vector<A, LANES<A>> none = {};
    for (i64 i = 0; i < dim * WINDOW; i += LANES<A>) {
      const auto some = load<LANES<A>>(result[which] + i);
      none += some - some;
    }
    return sum<A, LANES<A>>(none) == 0;
  }
};

template <class A> INLINE void soft_cap_tile(const Call& call, A* scores, A* slopes, i64 count) {
  if (call.softcap) soft_cap_run(scores, slopes, count * WINDOW, (A)call.softcap);
}

// The logits of `count` sources from `from` on, -inf where there is no edge.
template <class S, int STEP, class B>
SHARED void logits(const Call& call, B& board, const Window<Real<S>>& window, const Numbers& x,
                   i64 head, i64 from, i64 count) {
  using A = Real<S>;
  board.first.load_sources(at<S>(x, window.batch, 0) + head, x.node, call.head_dim, window, from,
                           count);
  blocks<A, STEP, 1, false>(board.scores, board.first.number, board.own[0], count, call.head_dim);
  soft_cap_tile(call, board.scores, board.slopes, count);
  mask(board.scores, window, from, count, A(-INF));
}

// --- forward -------------------------------------------------------------------------------------

// Softmax as it goes: the maximum so far, and the sum of exponentials above it.
template <class A> struct Running {
  PerRow<A> top, total;

  // Turn the logits of a tile into weights above the new maximum; whether the result is to be
  // scaled.
  SHARED bool take(A* scores, i64 count, PerRow<A>& factor) {
    bool changed = false;
    over_rows<A>([&](int v, int r) {
      auto most = top.part[v];
      for (i64 c = 0; c < count; ++c)
        most = greater<A, WIDTH<A>>(load<WIDTH<A>>(scores + c * WINDOW + r), most);
      const auto shift = most > -INF ? most : Lanes<A>{};
      factor.part[v] = exponential<A, WIDTH<A>>(top.part[v] - shift);
      Lanes<A> sum = {};
      for (i64 c = 0; c < count; ++c) {
        const auto weight =
            exponential<A, WIDTH<A>>(load<WIDTH<A>>(scores + c * WINDOW + r) - shift);
        store<WIDTH<A>>(scores + c * WINDOW + r, weight);
        sum += weight;
      }
      total.part[v] = total.part[v] * factor.part[v] + sum;
      for (int lane = 0; lane < WIDTH<A>; ++lane) changed |= most[lane] != top.part[v][lane];
      top.part[v] = most;
    });
    return changed;
  }
};

template <class S, int STEP>
static bool forward_window(const Call& call, Board<Real<S>, STEP>& board,
                           const Window<Real<S>>& window, i64 h, bool careful) {
  using A = Real<S>;
  const i64 b = window.batch, g = h / call.group, heads = call.heads, dim = call.value_dim;
  const i64 node = b * call.num_dst;
  board.load_own(0, at<S>(call.query, b, 0) + h * call.head_dim, call.query.node, call.head_dim,
                 window, (A)call.scale);
  board.clear(0, dim);
  const bool softmax = call.normalizer == SOFTMAX, sinks = softmax && call.sink;
  Running<A> running = {PerRow<A>::all_of(sinks ? ((const A*)call.sink)[h] : A(-INF)),
                        PerRow<A>::all_of(sinks)};
  for (i64 from = 0; from < window.sources; from += TILE) {
    const i64 count = smaller((i64)TILE, window.sources - from);
    logits<S, STEP>(call, board, window, call.key, g * call.head_dim, from, count);
    PerRow<A> factor;
    if (softmax) {
      if (running.take(board.scores, count, factor) && from)
        for (i64 d = 0; d < dim; ++d)
          over_rows<A>([&](int v, int r) {
            A* x = board.result[0] + d * WINDOW + r;
            store<WIDTH<A>>(x, load<WIDTH<A>>(x) * factor.part[v]);
          });
    } else {
      weigh(call.normalizer, board.scores, count * WINDOW, A(0));
      if (call.normalizer == NONE)
        weight_gradients(NONE, board.scores, board.scores, count * WINDOW, A(0));
    }
    board.first.load_sources(at<S>(call.value, b, 0) + g * dim, call.value.node, dim, window, from,
                             count);
    accumulate(board.result[0], board.first, board.scores, dim, window, from, count, careful);
  }
  PerRow<A> inverse = PerRow<A>::all_of(1);
  if (softmax) {
    over_rows<A>([&](int v, int) {
      inverse.part[v] = running.total.part[v] == 0 ? Lanes<A>{} : 1 / running.total.part[v];
    });
    for (i64 r = 0; r < window.count; ++r) {
      A* stats = (A*)call.stats + 2 * heads * (node + window.row(r)) + h;
      stats[0] = running.top.row(r) > -INF ? running.top.row(r) : A(0);
      stats[heads] = inverse.row(r);
    }
  }
  board.store_result(0, (S*)call.out + (node * heads + h) * dim, heads * dim, dim, window, inverse);
  return board.is_finite(0, dim);
}

// Turn logits into weights, and gradients of weights into those of logits, for a vector of rows.
template <class A>
INLINE void to_gradients(i64 normalizer, A* scores, A* grads, Lanes<A> top, Lanes<A> factor,
                         Lanes<A> delta) {
  constexpr int N = WIDTH<A>;
  const auto score = load<N>(scores), grad = load<N>(grads);
  Lanes<A> weight, slope;
  if (normalizer == SOFTMAX) {
    weight = exponential<A, N>(score - top) * factor;
    slope = weight * (grad - delta);
  } else if (normalizer == SIGMOID) {
    weight = sigmoid<A, N>(score);
    slope = grad * weight * (1 - weight);
  } else {
    weight = score == -INF ? Lanes<A>{} : score;
    slope = grad;  // 0 where there is no edge, by `mask`
  }
  store<N>(scores, weight);
  store<N>(grads, slope);
}

// --- by destination ------------------------------------------------------------------------------

template <class S, int STEP>
static bool destination_window(const Call& call, Board<Real<S>, STEP>& board,
                               const Window<Real<S>>& window, i64 h, bool careful) {
  using A = Real<S>;
  const i64 b = window.batch, g = h / call.group, heads = call.heads, dim = call.value_dim;
  const i64 node = b * call.num_dst;
  const bool softmax = call.normalizer == SOFTMAX;
  const S *out = (const S*)call.out + (node * heads + h) * dim,
          *grad_out = (const S*)call.grad_out + (node * heads + h) * dim;
  PerRow<A> top = PerRow<A>::all_of(0), inverse = PerRow<A>::all_of(1),
            delta = PerRow<A>::all_of(0);
  for (i64 r = 0; r < window.count; ++r) {
    const i64 row = window.row(r);
    const A* stats = (const A*)call.stats + 2 * heads * (node + row) + h;
    A* known = (A*)call.known + 3 * heads * (node + row) + h;
    top.set(r, stats[0]), inverse.set(r, stats[heads]);
    if (softmax) delta.set(r, product(out + row * heads * dim, grad_out + row * heads * dim, dim));
    known[0] = stats[0], known[heads] = -logarithm(stats[heads]), known[2 * heads] = delta.row(r);
  }
  board.load_own(0, at<S>(call.query, b, 0) + h * call.head_dim, call.query.node, call.head_dim,
                 window, (A)call.scale);
  board.load_own(1, grad_out, heads * dim, dim, window, A(1));
  board.clear(0, call.head_dim);
  for (i64 from = 0; from < window.sources; from += TILE) {
    const i64 count = smaller((i64)TILE, window.sources - from);
    logits<S, STEP>(call, board, window, call.key, g * call.head_dim, from, count);
    board.second.load_sources(at<S>(call.value, b, 0) + g * dim, call.value.node, dim, window, from,
                              count);
    blocks<A, STEP, 1, false>(board.grads, board.second.number, board.own[1], count, dim);
    for (i64 c = 0; c < count; ++c)
      over_rows<A>([&](int v, int r) {
        to_gradients(call.normalizer, board.scores + c * WINDOW + r, board.grads + c * WINDOW + r,
                     top.part[v], inverse.part[v], delta.part[v]);
      });
    if (call.softcap) multiply_run(board.grads, board.slopes, count * WINDOW);
    mask(board.grads, window, from, count, A(0));
    accumulate(board.result[0], board.first, board.grads, call.head_dim, window, from, count,
               careful);
  }
  board.store_result(0, (S*)call.grad_query + (node * heads + h) * call.head_dim,
                     heads * call.head_dim, call.head_dim, window,
                     PerRow<A>::all_of((A)call.scale));
  return board.is_finite(0, call.head_dim);
}

// --- by source -----------------------------------------------------------------------------------

template <class S, int STEP>
static bool source_window(const Call& call, Board<Real<S>, STEP>& board,
                          const Window<Real<S>>& window, i64 g, bool careful) {
  using A = Real<S>;
  const i64 b = window.batch, heads = call.heads, dim = call.head_dim, width = call.value_dim;
  const i64 node = b * call.num_src, first = b * call.num_dst;
  board.load_own(0, at<S>(call.key, b, 0) + g * dim, call.key.node, dim, window, (A)call.scale);
  board.load_own(1, at<S>(call.value, b, 0) + g * width, call.value.node, width, window, A(1));
  board.clear(0, dim), board.clear(1, width);
  for (i64 h = g * call.group; h < (g + 1) * call.group; ++h)
    for (i64 from = 0; from < window.sources; from += TILE) {
      const i64 count = smaller((i64)TILE, window.sources - from);
      logits<S, STEP>(call, board, window, call.query, h * dim, from, count);
      const S* grad_out = (const S*)call.grad_out + (first * heads + h) * width;
      board.second.load_sources(grad_out, heads * width, width, window, from, count);
      blocks<A, STEP, 1, false>(board.grads, board.second.number, board.own[1], count, width);
      for (i64 c = 0; c < count; ++c) {
        const A* known = (const A*)call.known + 3 * heads * (first + window.source(from + c)) + h;
        over_rows<A>([&](int v, int r) {
          constexpr int N = WIDTH<A>;
          A* scores = board.scores + c * WINDOW + r;
          store<N>(scores, load<N>(scores) - known[0]);
          to_gradients(call.normalizer, scores, board.grads + c * WINDOW + r, all<N>(known[heads]),
                       all<N>(A(1)), all<N>(known[2 * heads]));
        });
      }
      if (call.softcap) multiply_run(board.grads, board.slopes, count * WINDOW);
      mask(board.grads, window, from, count, A(0));
      accumulate(board.result[0], board.first, board.grads, dim, window, from, count, careful);
      accumulate(board.result[1], board.second, board.scores, width, window, from, count, careful);
    }
  const i64 kv_heads = call.kv_heads;
  board.store_result(0, (S*)call.grad_key + (node * kv_heads + g) * dim, kv_heads * dim, dim,
                     window, PerRow<A>::all_of((A)call.scale));
  board.store_result(1, (S*)call.grad_value + (node * kv_heads + g) * width, kv_heads * width,
                     width, window, PerRow<A>::all_of(1));
  return board.is_finite(0, dim) && board.is_finite(1, width);
}

// --- entries -------------------------------------------------------------------------------------

// `function<S, STEP>` over all windows, once more and carefully where its results are not finite.
// The rows of the tiles are STEP apart, no less than a head has.
#define TILES(name, function, side, count)                                                        \
  template <class S, int STEP> static int name##_of(const Call& call, i64* counter) {             \
    using A = Real<S>;                                                                            \
    Scratch<Board<A, STEP>> board(1);                                                             \
    if (!board.data) return 1;                                                                    \
    for_windows<A>(call, call.side, call.count, counter, [&](const Window<A>& window, i64 head) { \
      if (!function<S, STEP>(call, *board.data, window, head, false))                             \
        function<S, STEP>(call, *board.data, window, head, true);                                 \
    });                                                                                           \
    return 0;                                                                                     \
  }                                                                                               \
  template <class S> static int name(const Call& call, i64* counter) {                            \
    const i64 dim = larger(call.head_dim, call.value_dim);                                        \
    if constexpr (sizeof(Real<S>) == 4)                                                           \
      if (dim <= 64) return name##_of<S, 64>(call, counter);                                      \
    return name##_of<S, WIDEST>(call, counter);                                                   \
  }                                                                                               \
  ENTRY(name, name)

TILES(forward_tiles, forward_window, rows, heads)
TILES(by_destination_tiles, destination_window, rows, heads)
TILES(by_source_tiles, source_window, columns, kv_heads)
