// Rows of numbers that a run of edges reads, and the three things done with them: dot products,
// weighted sums, and adding to the rows themselves. All heads go at once, so that a row is read in
// one piece. Rows of nodes that edges name are prefetched.
#pragma once
#include "interface.h"

constexpr int AHEAD = 16;             // edges between the prefetch of a row and its use
constexpr int PREFETCHED_LINES = 8;   // of a row; the hardware foresees the rest
constexpr int LINE = 64;              // bytes

// The row of the edge at e begins at `base + index[e] * step`.
template <class S> struct Gather {
  const S* base;
  i64 step;
  const void* index;  // int32, or int64 if wide
  bool wide;
  i64 last;           // place in the index that may be read

  // NARROW: the index is known to be int32.
  template <bool NARROW = false> INLINE const S* row(i64 e) const {
    const i64 i = NARROW || !wide ? ((const i32*)index)[e] : ((const i64*)index)[e];
    return base + i * step;
  }
  template <bool NARROW = false> INLINE void prefetch(i64 e, i64 lines) const {
    auto line = (const char*)row<NARROW>(smaller(e + AHEAD, last));
    for (i64 i = 0; i < lines; ++i) __builtin_prefetch(line + i * LINE);
  }
};

// Heads of `dim` numbers, `own_step` apart in the row that attends or is attended to, `step` apart in
// the rows that are gathered; `own_group` or `group` heads at a time share what is there.
struct Heads {
  i64 heads, dim, own_group, own_step, group, step;

  static INLINE i64 shared(i64 h, i64 group) { return group == 1 ? h : (u32)h / (u32)group; }
  INLINE i64 own(i64 h) const { return shared(h, own_group) * own_step; }
  INLINE i64 at(i64 h) const { return shared(h, group) * step; }
  // Cache lines of a row that are prefetched.
  template <class S> INLINE i64 lines() const {
    const i64 bytes = (at(heads - 1) + dim) * (i64)sizeof(S);
    return smaller((bytes + LINE - 1) / LINE, (i64)PREFETCHED_LINES);
  }
};

// Shuffles within pieces of four lanes, which cost one step.
#define SHUFFLE(name, p, q, r, s)                                                               \
  template <int N> INLINE Vector<float, N> name(Vector<float, N> a, Vector<float, N> b) {       \
    if constexpr (N == 4) return __builtin_shufflevector(a, b, p, (q) + 4, r, (s) + 4);         \
    else if constexpr (N == 8)                                                                  \
      return __builtin_shufflevector(a, b, p, (q) + 8, r, (s) + 8, p + 4, (q) + 12, r + 4,      \
                                     (s) + 12);                                                 \
    else                                                                                        \
      return __builtin_shufflevector(a, b, p, (q) + 16, r, (s) + 16, p + 4, (q) + 20, r + 4,    \
                                     (s) + 20, p + 8, (q) + 24, r + 8, (s) + 24, p + 12,        \
                                     (q) + 28, r + 12, (s) + 28);                               \
  }
SHUFFLE(interleave_low, 0, 0, 1, 1)   // a0 b0 a1 b1
SHUFFLE(interleave_high, 2, 2, 3, 3)  // a2 b2 a3 b3
#undef SHUFFLE

// The sums of four vectors.
template <class A, int N> INLINE Vector<A, 4> four_sums(const Vector<A, N> (&x)[4]) {
  if constexpr (sizeof(A) == 4 && N >= 4) {
    auto ac = interleave_low<N>(x[0], x[2]) + interleave_high<N>(x[0], x[2]);
    auto bd = interleave_low<N>(x[1], x[3]) + interleave_high<N>(x[1], x[3]);
    auto abcd = interleave_low<N>(ac, bd) + interleave_high<N>(ac, bd);
    Vector<A, 4> result = {};
    for (int lane = 0; lane < N; lane += 4) result += load<4>((const A*)&abcd + lane);
    return result;
  } else {
    return Vector<A, 4>{sum<A, N>(x[0]), sum<A, N>(x[1]), sum<A, N>(x[2]), sum<A, N>(x[3])};
  }
}

// `out[h * stride + e - low] (+)= factor * <own[h], row(e)[h]>`.
template <class S, int DIM>
void dots_of(Real<S>* out, i64 stride, Real<S> factor, const Real<S>* own, Heads heads,
             Gather<S> gather, i64 low, i64 high, bool adds) {
  using A = Real<S>;
  constexpr int N = DIM && DIM < LANES<A> ? DIM : LANES<A>;
  const i64 dim = DIM ? DIM : heads.dim, lines = heads.template lines<S>();
  i64 e = low;
  for (; e + 4 <= high; e += 4) {
    const S* rows[4];
    for (int r = 0; r < 4; ++r) {
      rows[r] = gather.template row<DIM != 0>(e + r);
      gather.template prefetch<DIM != 0>(e + r, lines);
    }
    for (i64 h = 0; h < heads.heads; ++h) {
      const A* x = own + heads.own(h);
      const i64 at = heads.at(h);
      Vector<A, N> sums[4] = {};
      i64 d = 0;
#pragma GCC unroll 8
      for (; d + N <= dim; d += N) {
        auto mine = load<N>(x + d);
        for (int r = 0; r < 4; ++r) sums[r] += mine * load<N>(rows[r] + at + d);
      }
      auto total = four_sums<A, N>(sums);
      if constexpr (!DIM)
        for (; d < dim; ++d)
          for (int r = 0; r < 4; ++r) total[r] += x[d] * number(rows[r][at + d]);
      A* to = out + h * stride + e - low;
      total *= factor;
      store<4>(to, adds ? total + load<4>(to) : total);
    }
  }
  for (; e < high; ++e) {
    const S* row = gather.template row<DIM != 0>(e);
    gather.template prefetch<DIM != 0>(e, lines);
    for (i64 h = 0; h < heads.heads; ++h) {
      const A* x = own + heads.own(h);
      const i64 at = heads.at(h);
      Vector<A, N> sums = {};
      i64 d = 0;
#pragma GCC unroll 8
      for (; d + N <= dim; d += N) sums += load<N>(x + d) * load<N>(row + at + d);
      A total = sum<A, N>(sums);
      if constexpr (!DIM)
        for (; d < dim; ++d) total += x[d] * number(row[at + d]);
      A* to = out + h * stride + e - low;
      *to = adds ? *to + factor * total : factor * total;
    }
  }
}

// `own[h] += factor * sum_e weights[h * stride + e - low] * row(e)[h]`.
template <class S, int DIM, int SOME>
INLINE void weighted_heads(Real<S>* own, Real<S> factor, const Real<S>* weights,
                           i64 stride, Heads heads, i64 h, Gather<S> gather, i64 low,
                           i64 high, i64 lines) {
  using A = Real<S>;
  constexpr int N = DIM < LANES<A> ? DIM : LANES<A>, COUNT = DIM / N;
  Vector<A, N> sums[SOME][COUNT] = {};
  for (i64 e = low; e < high; ++e) {
    const S* row = gather.template row<DIM != 0>(e);
    gather.template prefetch<DIM != 0>(e, lines);
    for (int s = 0; s < SOME; ++s) {
      const A weight = weights[(h + s) * stride + e - low];
      for (int n = 0; n < COUNT; ++n)
        sums[s][n] += weight * load<N>(row + heads.at(h + s) + n * N);
    }
  }
  for (int s = 0; s < SOME; ++s) {
    A* to = own + heads.own(h + s);
    for (int n = 0; n < COUNT; ++n)
      store<N>(to + n * N, load<N>(to + n * N) + factor * sums[s][n]);
  }
}

template <class S, int DIM>
void add_weighted_of(Real<S>* own, Real<S> factor, const Real<S>* weights, i64 stride,
                     Heads heads, Gather<S> gather, i64 low, i64 high) {
  using A = Real<S>;
  if constexpr (DIM) {
    constexpr int VECTORS = (DIM + LANES<A> - 1) / LANES<A>;
    constexpr int SOME = larger(1, REGISTERS / 4 / VECTORS);
    i64 h = 0, lines = heads.template lines<S>();
    for (; h + SOME <= heads.heads; h += SOME)
      weighted_heads<S, DIM, SOME>(own, factor, weights, stride, heads, h, gather, low, high,
                                          h ? 0 : lines);
    for (; h < heads.heads; ++h)
      weighted_heads<S, DIM, 1>(own, factor, weights, stride, heads, h, gather, low, high,
                                       h ? 0 : lines);
  } else {
    constexpr int N = LANES<A>;
    for (i64 e = low; e < high; ++e) {
      const S* row = gather.template row<DIM != 0>(e);
      gather.template prefetch<DIM != 0>(e, heads.template lines<S>());
      for (i64 h = 0; h < heads.heads; ++h) {
        const A weight = factor * weights[h * stride + e - low];
        A* to = own + heads.own(h);
        const S* x = row + heads.at(h);
        i64 d = 0;
        for (; d + N <= heads.dim; d += N) store<N>(to + d, load<N>(to + d) + weight * load<N>(x + d));
        for (; d < heads.dim; ++d) to[d] += weight * number(x[d]);
      }
    }
  }
}

// Call `function<S, dim>(arguments)`: some numbers are known when it is compiled, 0 stands for all.
#define FOR_DIM(function, dim, ...)                       \
  if constexpr (sizeof(Real<S>) == 4)                     \
    switch (gather.wide ? 0 : dim) {                      \
      case 8: return function<S, 8>(__VA_ARGS__);         \
      case 16: return function<S, 16>(__VA_ARGS__);       \
      case 32: return function<S, 32>(__VA_ARGS__);       \
      case 64: return function<S, 64>(__VA_ARGS__);       \
      case 128: return function<S, 128>(__VA_ARGS__);     \
    }                                                     \
  return function<S, 0>(__VA_ARGS__);

template <class S>
void dots(Real<S>* out, i64 stride, Real<S> factor, const Real<S>* own, Heads heads,
          Gather<S> gather, i64 low, i64 high, bool adds = false) {
  FOR_DIM(dots_of, heads.dim, out, stride, factor, own, heads, gather, low, high, adds)
}

template <class S>
void add_weighted(Real<S>* own, Real<S> factor, const Real<S>* weights, i64 stride,
                  Heads heads, Gather<S> gather, i64 low, i64 high) {
  FOR_DIM(add_weighted_of, heads.dim, own, factor, weights, stride, heads, gather, low,
          high)
}

// `row(e)[h] += factor * weights[h * stride + e - low] * own[h]`; rows of edges, no two the same.
template <class A>
void add_to_edges(Gather<A> gather, A factor, const A* weights, i64 stride, const A* own, Heads heads, i64 low, i64 high) {
  constexpr int N = LANES<A>;
  for (i64 e = low; e < high; ++e)
    for (i64 h = 0; h < heads.heads; ++h) {
      A* to = const_cast<A*>(gather.row(e)) + heads.at(h);
      const A *x = own + heads.own(h), weight = factor * weights[h * stride + e - low];
      for (i64 d = 0; d < heads.dim; d += N) {
        const i64 left = heads.dim - d;
        store_some<N>(to + d, load_some<N>(to + d, left) + weight * load_some<N>(x + d, left), left);
      }
    }
}
