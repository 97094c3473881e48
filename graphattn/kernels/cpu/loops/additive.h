// Additive scores, `<weight, act(own + other + edge)>` of every head, and their gradients.
#pragma once
#include "tasks.h"

// What the scores of a row are made of. Own is its query or key, other what its edges gather of
// nodes; edge is what they gather of themselves, its base null if there is nothing.
template <class S> struct Sums {
  using A = Real<S>;
  const A *weight, *own;
  Heads heads, edge_heads;
  Gather<S> other, edge;
  A slope;
};

template <class A, int N, bool TANH_>
INLINE Vector<A, N> activated(Vector<A, N> x, A slope, Vector<A, N>& derivative) {
  if constexpr (TANH_) {
    auto value = hyperbolic_tangent<A, N>(x);
    derivative = 1 - value * value;
    return value;
  } else {
    derivative = x > 0 ? all<N>(A(1)) : all<N>(slope);
    return x * derivative;
  }
}

// The scores of SOME edges and one head.
template <class S, int DIM, bool TANH_, int SOME>
INLINE void score_edges(Real<S>* to, Real<S> factor, const Sums<S>& sums, i64 h, i64 e) {
  using A = Real<S>;
  constexpr int N = DIM && DIM < LANES<A> ? DIM : LANES<A>;
  const i64 dim = DIM ? DIM : sums.heads.dim, at = sums.heads.at(h),
            edge_at = sums.edge_heads.at(h);
  const A *own = sums.own + sums.heads.own(h), *weight = sums.weight + h * dim;
  Vector<A, N> totals[4] = {}, derivative;
  for (i64 d = 0; d < dim; d += N) {
    const auto mine = part<N, DIM>(own, d, dim), w = part<N, DIM>(weight, d, dim);
    for (int r = 0; r < SOME; ++r) {
      auto x = mine + part<N, DIM>(sums.other.template row<true>(e + r) + at, d, dim);
      if (!DIM && sums.edge.base) x += part<N, DIM>(sums.edge.row(e + r) + edge_at, d, dim);
      totals[r] += w * activated<A, N, TANH_>(x, sums.slope, derivative);
    }
  }
  if constexpr (SOME == 4) store<4>(to, four_sums<A, N>(totals) * factor);
  else *to = sum<A, N>(totals[0]) * factor;
}

// `out[h * stride + e - low] = factor * score`.
template <class S, int DIM, bool TANH_>
void additive_scores_of(Real<S>* out, i64 stride, Real<S> factor, const Sums<S>& sums, i64 low,
                        i64 high) {
  const i64 lines = sums.heads.template lines<S>();
  for (i64 e = low; e < high;) {
    const i64 some = high - e >= 4 ? 4 : 1;
    for (i64 r = 0; r < some; ++r) sums.other.template prefetch<true>(e + r, lines);
    for (i64 h = 0; h < sums.heads.count(); ++h) {
      Real<S>* to = out + h * stride + e - low;
      if (some == 4) score_edges<S, DIM, TANH_, 4>(to, factor, sums, h, e);
      else score_edges<S, DIM, TANH_, 1>(to, factor, sums, h, e);
    }
    e += some;
  }
}

// Where gradients are added: of the row's own numbers, of features of edges, of the weight (heads,
// dim); edge and weight may be absent (null).
template <class A> struct SumGradients {
  A* own;
  Gather<A> edge;
  A* weight;
};

// Add `factor * grads[h * stride + e - low]` times the derivative of each score.
template <class S, int DIM, bool TANH_>
void additive_gradients_of(const SumGradients<Real<S>>& to, Real<S> factor, const Real<S>* grads,
                           i64 stride, const Sums<S>& sums, i64 low, i64 high) {
  using A = Real<S>;
  constexpr int N = DIM && DIM < LANES<A> ? DIM : LANES<A>, COUNT = DIM ? smaller(DIM / N, 4) : 1;
  const i64 dim = DIM ? DIM : sums.heads.dim;
  for (i64 h = 0; h < sums.heads.count(); ++h) {
    const i64 at = sums.heads.at(h), own_at = sums.heads.own(h), edge_at = sums.edge_heads.at(h);
    const i64 lines = h ? 0 : sums.heads.template lines<S>();
    for (i64 d = 0; d < dim; d += COUNT * N) {
      Vector<A, N> mine[COUNT], w[COUNT], own_total[COUNT] = {}, weight_total[COUNT] = {},
                                          derivative;
      for (int n = 0; n < COUNT; ++n) {
        mine[n] = part<N, DIM>(sums.own + own_at, d + n * N, dim);
        w[n] = part<N, DIM>(sums.weight + h * dim, d + n * N, dim) * factor;
      }
      for (i64 e = low; e < high; ++e) {
        const A grad = grads[h * stride + e - low];
        const S* other = sums.other.template row<true>(e) + at;
        sums.other.template prefetch<true>(e, d ? 0 : lines);
        for (int n = 0; n < COUNT; ++n) {
          const i64 i = d + n * N, left = dim - i;
          auto x = mine[n] + part<N, DIM>(other, i, dim);
          if (!DIM && sums.edge.base) x += part<N, DIM>(sums.edge.row(e) + edge_at, i, dim);
          weight_total[n] += grad * activated<A, N, TANH_>(x, sums.slope, derivative);
          const auto more = grad * w[n] * derivative;
          own_total[n] += more;
          if (!DIM && to.edge.base) {
            A* y = const_cast<A*>(to.edge.row(e)) + edge_at + i;
            store_some<N>(y, load_some<N>(y, left) + more, left);
          }
        }
      }
      for (int n = 0; n < COUNT; ++n) {
        const i64 i = d + n * N, left = dim - i;
        A* y = to.own + own_at + i;
        store_some<N>(y, load_some<N>(y, left) + own_total[n], left);
        if (!to.weight) continue;
        y = to.weight + h * dim + i;
        store_some<N>(y, load_some<N>(y, left) + factor * weight_total[n], left);
      }
    }
  }
}

// Widths of heads that are compiled for LeakyReLU without features of edges.
#define FOR_SCORE(function, sums, ...)                                               \
  if (call.score == TANH) return function<S, 0, true>(__VA_ARGS__);                  \
  if constexpr (sizeof(Real<S>) == 4) switch (sums.edge.base ? 0 : sums.heads.dim) { \
      case 8:                                                                        \
        return function<S, 8, false>(__VA_ARGS__);                                   \
      case 16:                                                                       \
        return function<S, 16, false>(__VA_ARGS__);                                  \
      case 32:                                                                       \
        return function<S, 32, false>(__VA_ARGS__);                                  \
      case 64:                                                                       \
        return function<S, 64, false>(__VA_ARGS__);                                  \
    }                                                                                \
  return function<S, 0, false>(__VA_ARGS__);

template <class S>
void additive_scores(const Call& call, Real<S>* out, i64 stride, const Sums<S>& sums, i64 low,
                     i64 high) {
  FOR_SCORE(additive_scores_of, sums, out, stride, (Real<S>)call.scale, sums, low, high)
}

template <class S>
void additive_gradients(const Call& call, const SumGradients<Real<S>>& to, const Real<S>* grads,
                        i64 stride, const Sums<S>& sums, i64 low, i64 high) {
  FOR_SCORE(additive_gradients_of, sums, to, (Real<S>)call.scale, grads, stride, sums, low, high)
}
