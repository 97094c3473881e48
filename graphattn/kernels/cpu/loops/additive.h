// Additive scores of a pair, `<weight, act(query + key + edge)>`, and their gradients.
#pragma once
#include "tasks.h"

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

// The parts of one pair and head; edge is null if there are no features of edges.
template <class S> struct Pair {
  const Real<S>*weight, *own;  // own: the query or key of the row
  const S *other, *edge;
  i64 dim;
  Real<S> slope;

  INLINE Vector<Real<S>, LANES<Real<S>>> sum_at(i64 d) const {
    constexpr int N = LANES<Real<S>>;
    auto x = load_some<N>(own + d, dim - d) + load_some<N>(other + d, dim - d);
    return edge ? x + load_some<N>(edge + d, dim - d) : x;
  }
};

template <class S, bool TANH_> INLINE Real<S> additive_score(const Pair<S>& pair) {
  using A = Real<S>;
  constexpr int N = LANES<A>;
  Vector<A, N> total = {}, derivative;
  for (i64 d = 0; d < pair.dim; d += N)
    total += load_some<N>(pair.weight + d, pair.dim - d) *
             activated<A, N, TANH_>(pair.sum_at(d), pair.slope, derivative);
  return sum<A, N>(total);
}

// `to += grad * weight * act'(sum)` for one to three targets, `weight_grad += grad * act(sum)`; the
// targets may be null.
template <class S, bool TANH_>
INLINE void additive_gradient(const Pair<S>& pair, Real<S> grad, Real<S>* to, Real<S>* edge_to,
                              Real<S>* weight_to) {
  using A = Real<S>;
  constexpr int N = LANES<A>;
  for (i64 d = 0; d < pair.dim; d += N) {
    const i64 left = pair.dim - d;
    Vector<A, N> derivative, value = activated<A, N, TANH_>(pair.sum_at(d), pair.slope, derivative);
    auto more = grad * load_some<N>(pair.weight + d, left) * derivative;
    store_some<N>(to + d, load_some<N>(to + d, left) + more, left);
    if (edge_to) store_some<N>(edge_to + d, load_some<N>(edge_to + d, left) + more, left);
    if (weight_to)
      store_some<N>(weight_to + d, load_some<N>(weight_to + d, left) + grad * value, left);
  }
}
