// Rows of numbers that a run of edges reads, and the three things done with them: dot products,
// weighted sums, and adding to the rows themselves. All heads go at once, so that a row is read in
// one piece. Rows of nodes that edges name are prefetched.
#pragma once
#include "interface.h"

constexpr int AHEAD = 16;            // edges between the prefetch of a row and its use
constexpr int PREFETCHED_LINES = 4;  // of a row; the hardware foresees the rest
constexpr int LINE = 64;             // bytes

// The row of the edge at e begins at `base + index[e] * step`.
template <class S> struct Gather {
  const S* base;
  i64 step;
  const void* index;  // int32, or int64 if wide
  bool wide;
  i64 last;  // place in the index that may be read

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

// Heads of `dim` numbers, `groups` times `members`: where a head begins in the row that attends or
// is attended to (own), and in the rows that are gathered. A step between members of 0: they share
// it.
struct Heads {
  i64 dim, groups, members;
  i64 own_group, own_member, group, member;

  INLINE i64 count() const { return groups * members; }
  INLINE i64 own(i64 h) const { return h / members * own_group + h % members * own_member; }
  INLINE i64 at(i64 h) const { return h / members * group + h % members * member; }
  // Cache lines of a row that are prefetched.
  template <class S> INLINE i64 lines() const {
    const i64 bytes = ((groups - 1) * group + (members - 1) * member + dim) * (i64)sizeof(S);
    return smaller((bytes + LINE - 1) / LINE, (i64)PREFETCHED_LINES);
  }
};

// Shuffles within pieces of four lanes, which cost one step.
#define SHUFFLE(name, p, q, r, s)                                                                  \
  template <int N> INLINE Vector<float, N> name(Vector<float, N> a, Vector<float, N> b) {          \
    if constexpr (N == 4) return __builtin_shufflevector(a, b, p, (q) + 4, r, (s) + 4);            \
    else if constexpr (N == 8)                                                                     \
      return __builtin_shufflevector(a, b, p, (q) + 8, r, (s) + 8, p + 4, (q) + 12, r + 4,         \
                                     (s) + 12);                                                    \
    else                                                                                           \
      return __builtin_shufflevector(a, b, p, (q) + 16, r, (s) + 16, p + 4, (q) + 20, r + 4,       \
                                     (s) + 20, p + 8, (q) + 24, r + 8, (s) + 24, p + 12, (q) + 28, \
                                     r + 12, (s) + 28);                                            \
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

// `to[j * to_step + i] = row i[j]`, 4 x 4 numbers.
INLINE void transpose_four(float* to, i64 to_step, const float* a, const float* b, const float* c,
                           const float* d) {
  auto ac = interleave_low<4>(load<4>(a), load<4>(c)),
       bd = interleave_low<4>(load<4>(b), load<4>(d));
  auto ac_high = interleave_high<4>(load<4>(a), load<4>(c)),
       bd_high = interleave_high<4>(load<4>(b), load<4>(d));
  store<4>(to, interleave_low<4>(ac, bd));
  store<4>(to + to_step, interleave_high<4>(ac, bd));
  store<4>(to + 2 * to_step, interleave_low<4>(ac_high, bd_high));
  store<4>(to + 3 * to_step, interleave_high<4>(ac_high, bd_high));
}

// Of any size: `to[j * to_step + i] = from[i * from_step + j]`.
template <class A>
SHARED void transpose(A* to, i64 to_step, const A* from, i64 from_step, i64 rows, i64 columns) {
  i64 done = 0;
  if constexpr (sizeof(A) == 4) {
    done = columns / 4 * 4;
    for (i64 i = 0; i + 4 <= rows; i += 4)
      for (i64 j = 0; j < done; j += 4) {
        const A* x = from + i * from_step + j;
        transpose_four(to + j * to_step + i, to_step, x, x + from_step, x + 2 * from_step,
                       x + 3 * from_step);
      }
    for (i64 i = rows / 4 * 4; i < rows; ++i)
      for (i64 j = 0; j < done; ++j) to[j * to_step + i] = from[i * from_step + j];
  }
  for (i64 i = 0; i < rows; ++i)
    for (i64 j = done; j < columns; ++j) to[j * to_step + i] = from[i * from_step + j];
}

// `out[h * stride + e] (+)= factor * <own[h], row(e)[h]>` for SOME edges from e on.
template <class S, int DIM, int SOME>
INLINE void dots_at(Real<S>* out, i64 stride, Real<S> factor, const Real<S>* own,
                    const Heads& heads, const S* const (&rows)[SOME], bool adds) {
  using A = Real<S>;
  constexpr int N = DIM && DIM < LANES<A> ? DIM : LANES<A>;
  const i64 dim = DIM ? DIM : heads.dim;
  for (i64 g = 0; g < heads.groups; ++g) {
    const A* x = own + g * heads.own_group;
    i64 at = g * heads.group;
    for (i64 m = 0; m < heads.members;
         ++m, x += heads.own_member, at += heads.member, out += stride) {
      Vector<A, N> sums[4] = {};
      for (i64 d = 0; d < dim; d += N) {
        const auto mine = part<N, DIM>(x, d, dim);
        for (int r = 0; r < SOME; ++r) sums[r] += mine * part<N, DIM>(rows[r] + at, d, dim);
      }
      if constexpr (SOME == 4) {
        const auto total = four_sums<A, N>(sums) * factor;
        store<4>(out, adds ? total + load<4>(out) : total);
      } else {
        const A total = sum<A, N>(sums[0]) * factor;
        *out = adds ? *out + total : total;
      }
    }
  }
}

// `out[h * stride + e - low] (+)= factor * <own[h], row(e)[h]>`.
template <class S, int DIM>
void dots_of(Real<S>* out, i64 stride, Real<S> factor, const Real<S>* own, const Heads& heads,
             const Gather<S>& gather, i64 low, i64 high, bool adds) {
  const i64 lines = heads.template lines<S>();
  i64 e = low;
  for (; e + 4 <= high; e += 4) {
    for (i64 r = 0; r < 4; ++r) gather.template prefetch<DIM != 0>(e + r, lines);
    const S* const rows[4] = {
        gather.template row<DIM != 0>(e), gather.template row<DIM != 0>(e + 1),
        gather.template row<DIM != 0>(e + 2), gather.template row<DIM != 0>(e + 3)};
    dots_at<S, DIM, 4>(out + e - low, stride, factor, own, heads, rows, adds);
  }
  for (; e < high; ++e) {
    gather.template prefetch<DIM != 0>(e, lines);
    const S* const rows[1] = {gather.template row<DIM != 0>(e)};
    dots_at<S, DIM, 1>(out + e - low, stride, factor, own, heads, rows, adds);
  }
}

// `own[h] += factor * sum_e weights[h * stride + e - low] * row(e)[h]` for SOME heads from h on and
// COUNT vectors from d on, which stay in registers while the edges go by.
template <class S, int DIM, int SOME, int COUNT>
INLINE void add_weighted_at(Real<S>* own, Real<S> factor, const Real<S>* weights, i64 stride,
                            const Heads& heads, i64 h, i64 d, const Gather<S>& gather, i64 low,
                            i64 high, i64 lines) {
  using A = Real<S>;
  constexpr int N = DIM && DIM < LANES<A> ? DIM : LANES<A>;
  const i64 dim = DIM ? DIM : heads.dim;
  i64 at[SOME];
  for (int s = 0; s < SOME; ++s) at[s] = heads.at(h + s) + d;
  Vector<A, N> sums[SOME][COUNT] = {};
  const A* weight = weights + h * stride;
  for (i64 e = low; e < high; ++e, ++weight) {
    gather.template prefetch<DIM != 0>(e, lines);
    const S* row = gather.template row<DIM != 0>(e);
    for (int s = 0; s < SOME; ++s)
      for (int n = 0; n < COUNT; ++n)
        sums[s][n] += weight[s * stride] * part<N, DIM>(row + at[s] + n * N, 0, dim - d - n * N);
  }
  for (int s = 0; s < SOME; ++s)
    for (int n = 0; n < COUNT; ++n) {
      A* to = own + heads.own(h + s) + d + n * N;
      const i64 left = dim - d - n * N;
      if constexpr (DIM) store<N>(to, load<N>(to) + factor * sums[s][n]);
      else store_some<N>(to, load_some<N>(to, left) + factor * sums[s][n], left);
    }
}

// The same for all heads.
template <class S, int DIM>
void add_weighted_of(Real<S>* own, Real<S> factor, const Real<S>* weights, i64 stride,
                     const Heads& heads, const Gather<S>& gather, i64 low, i64 high, bool fetches) {
  using A = Real<S>;
  constexpr int N = DIM && DIM < LANES<A> ? DIM : LANES<A>;
  constexpr int COUNT = DIM ? smaller(DIM / N, 8) : 1, SOME = larger(1, REGISTERS / 4 / COUNT);
  const i64 dim = DIM ? DIM : heads.dim;
  i64 lines = fetches ? heads.template lines<S>() : 0;
  for (i64 d = 0; d < dim; d += COUNT * N) {
    i64 h = 0;
    for (; h + SOME <= heads.count(); h += SOME, lines = 0)
      add_weighted_at<S, DIM, SOME, COUNT>(own, factor, weights, stride, heads, h, d, gather, low,
                                           high, lines);
    for (; h < heads.count(); ++h, lines = 0)
      add_weighted_at<S, DIM, 1, COUNT>(own, factor, weights, stride, heads, h, d, gather, low,
                                        high, lines);
  }
}

// Call `function<S, dim>(arguments)`: some numbers are known when it is compiled, 0 stands for all.
#define FOR_DIM(function, dim, ...)                                    \
  if constexpr (sizeof(Real<S>) == 4) switch (gather.wide ? 0 : dim) { \
      case 8:                                                          \
        return function<S, 8>(__VA_ARGS__);                            \
      case 16:                                                         \
        return function<S, 16>(__VA_ARGS__);                           \
      case 32:                                                         \
        return function<S, 32>(__VA_ARGS__);                           \
      case 64:                                                         \
        return function<S, 64>(__VA_ARGS__);                           \
      case 128:                                                        \
        return function<S, 128>(__VA_ARGS__);                          \
    }                                                                  \
  return function<S, 0>(__VA_ARGS__);

template <class S>
void dots(Real<S>* out, i64 stride, Real<S> factor, const Real<S>* own, const Heads& heads,
          const Gather<S>& gather, i64 low, i64 high, bool adds = false) {
  FOR_DIM(dots_of, heads.dim, out, stride, factor, own, heads, gather, low, high, adds)
}

// fetches: whether the rows are read for the first time.
template <class S>
void add_weighted(Real<S>* own, Real<S> factor, const Real<S>* weights, i64 stride,
                  const Heads& heads, const Gather<S>& gather, i64 low, i64 high,
                  bool fetches = false) {
  FOR_DIM(add_weighted_of, heads.dim, own, factor, weights, stride, heads, gather, low, high,
          fetches)
}

// `row(e)[h] += factor * weights[h * stride + e - low] * own[h]`; rows of edges, no two the same.
template <class A>
void add_to_edges(const Gather<A>& gather, A factor, const A* weights, i64 stride, const A* own,
                  const Heads& heads, i64 low, i64 high) {
  constexpr int N = LANES<A>;
  for (i64 e = low; e < high; ++e)
    for (i64 h = 0; h < heads.count(); ++h) {
      A* to = const_cast<A*>(gather.row(e)) + heads.at(h);
      const A *x = own + heads.own(h), weight = factor * weights[h * stride + e - low];
      for (i64 d = 0; d < heads.dim; d += N) {
        const i64 left = heads.dim - d;
        store_some<N>(to + d, load_some<N>(to + d, left) + weight * load_some<N>(x + d, left),
                      left);
      }
    }
}

// `to[k * stride + e - low] = row(e)[k]` for `length` numbers of each row.
template <class A>
void gather_columns(A* to, i64 stride, i64 length, const Gather<A>& gather, i64 low, i64 high) {
  const i64 lines = smaller((length * (i64)sizeof(A) + LINE - 1) / LINE, (i64)PREFETCHED_LINES);
  i64 e = low;
  if constexpr (sizeof(A) == 4)
    if (length % 4 == 0)
      for (; e + 4 <= high; e += 4) {
        for (i64 r = 0; r < 4; ++r) gather.prefetch(e + r, lines);
        const A *a = gather.row(e), *b = gather.row(e + 1), *c = gather.row(e + 2),
                *d = gather.row(e + 3);
        for (i64 k = 0; k < length; k += 4)
          transpose_four(to + k * stride + e - low, stride, a + k, b + k, c + k, d + k);
      }
  for (; e < high; ++e) {
    gather.prefetch(e, lines);
    const A* x = gather.row(e);
    for (i64 k = 0; k < length; ++k) to[k * stride + e - low] = x[k];
  }
}
