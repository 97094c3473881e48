// Runs of numbers, one for each edge of a row: logits, weights and their gradients. Lengths are
// multiples of PADDING; behind the last edge the logits are -inf.
#pragma once
#include "interface.h"

constexpr i64 PADDING = 16;

INLINE i64 padded(i64 length) { return larger((length + PADDING - 1) / PADDING, 1LL) * PADDING; }

// `function(vector at d)` in place, for all of a run.
template <class A, class F> INLINE void over(i64 length, F function) {
  for (i64 d = 0; d < length; d += LANES<A>) function(d);
}

template <class A> INLINE A maximum_of(const A* x, i64 length) {
  constexpr int N = LANES<A>;
  auto largest = all<N>(A(-INF));
  over<A>(length, [&](i64 d) { largest = greater<A, N>(load<N>(x + d), largest); });
  return maximum<A, N>(largest);
}

// `x = exp(x - shift)`, and their sum.
template <class A> INLINE A exponentials(A* x, i64 length, A shift) {
  constexpr int N = LANES<A>;
  Vector<A, N> total = {};
  over<A>(length, [&](i64 d) {
    auto value = exponential<A, N>(load<N>(x + d) - shift);
    store<N>(x + d, value);
    total += value;
  });
  return sum<A, N>(total);
}

template <class A> INLINE void scale_run(A* x, i64 length, A factor) {
  over<A>(length, [&](i64 d) { store<LANES<A>>(x + d, load<LANES<A>>(x + d) * factor); });
}

template <class A> INLINE void multiply_run(A* x, const A* y, i64 length) {
  constexpr int N = LANES<A>;
  over<A>(length, [&](i64 d) { store<N>(x + d, load<N>(x + d) * load<N>(y + d)); });
}

template <class A, int N> INLINE Vector<A, N> sigmoid(Vector<A, N> x) {
  auto negative = x < 0;
  auto small = exponential<A, N>(negative ? x : -x);
  return (negative ? small : all<N>(A(1))) / (1 + small);
}

// `cap * tanh(x / cap)` and the slope there; -inf stays. Near 0 a quotient of polynomials (Cephes),
// for `hyperbolic_tangent` is rounded as 1 is.
template <class A, int N> INLINE Vector<A, N> soft_cap(Vector<A, N> x, A cap, Vector<A, N>& slope) {
  auto ratio = x / cap, square = ratio * ratio;
  auto above = (square * A(-9.64399179425052238628e-1) - A(9.92877231001918586564e1)) * square -
               A(1.61468768441708447952e3);
  auto below =
      ((square + A(1.12811678491632931402e2)) * square + A(2.23548839060100448583e3)) * square +
      A(4.84406305325125486048e3);
  auto bent = square < A(0.625 * 0.625) ? ratio + ratio * square * above / below
                                        : hyperbolic_tangent<A, N>(ratio);
  slope = 1 - bent * bent;
  return x == -INF ? x : bent * cap;
}

template <class A> INLINE void soft_cap_run(A* x, A* slopes, i64 length, A cap) {
  constexpr int N = LANES<A>;
  over<A>(length, [&](i64 d) {
    Vector<A, N> slope;
    auto value = soft_cap<A, N>(load<N>(x + d), cap, slope);
    if (slopes) store<N>(slopes + d, slope);
    store<N>(x + d, value);
  });
}

// Logits become weights; those of softmax are still to be multiplied by 1 / their sum. Without a
// normalizer, edges that are switched off stay at -inf.
template <class A> INLINE void weigh(i64 normalizer, A* x, i64 length, A shift) {
  constexpr int N = LANES<A>;
  if (normalizer == SOFTMAX)
    over<A>(length, [&](i64 d) { store<N>(x + d, exponential<A, N>(load<N>(x + d) - shift)); });
  else if (normalizer == SIGMOID)
    over<A>(length, [&](i64 d) { store<N>(x + d, sigmoid<A, N>(load<N>(x + d))); });
}

// Gradients of weights become those of logits, and what is switched off becomes 0.
template <class A>
INLINE void weight_gradients(i64 normalizer, A* weights, A* grads, i64 length, A delta) {
  constexpr int N = LANES<A>;
  over<A>(length, [&](i64 d) {
    auto w = load<N>(weights + d), grad = load<N>(grads + d);
    if (normalizer == SOFTMAX) {
      store<N>(grads + d, w * (grad - delta));
    } else if (normalizer == SIGMOID) {
      store<N>(grads + d, grad * w * (1 - w));
    } else {
      store<N>(weights + d, w == -INF ? Vector<A, N>{} : w);
      store<N>(grads + d, w == -INF ? Vector<A, N>{} : grad);
    }
  });
}
