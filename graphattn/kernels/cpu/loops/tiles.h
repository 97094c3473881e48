// Tiles: WINDOW rows against the sources that they share, some at a time, in registers.
//
// Rows are lanes. What a window has of its own is transposed, `own[d][row]`; sources go by as they
// are, and each of their numbers is multiplied with a vector of rows. So maxima, exponentials and
// sums of a row need no other lane, and all products are of two forms:
//     scores[c][row]  = sum_d source[c][d] * own[d][row]        (products)
//     result[d][row] += sum_c source[c][d] * weights[c][row]    (accumulate)
#pragma once
#include "tasks.h"

constexpr int WINDOW = 16;   // rows, as many as `Rows.attends` has bits
constexpr int TILE = 64;     // sources at a time
constexpr int WIDEST = 128;  // numbers of a head, at most

template <class A> constexpr int WIDTH = smaller(LANES<A>, WINDOW);
template <class A> constexpr int VECTORS = WINDOW / WIDTH<A>;
template <class A> using Lanes = Vector<A, WIDTH<A>>;
template <class A> using Marks = Vector<Integer<A>, WIDTH<A>>;  // -1 where an edge is, else 0

// Call `function(v, first row)` for every vector of rows.
template <class A, class F> INLINE void over_rows(F function) {
  for (int v = 0; v < VECTORS<A>; ++v) function(v, v * WIDTH<A>);
}

// One number for each row of a window.
template <class A> struct PerRow {
  Lanes<A> part[VECTORS<A>];
  static INLINE PerRow all_of(A x) {
    PerRow result;
    for (auto& part : result.part) part = all<WIDTH<A>>(x);
    return result;
  }
  INLINE A row(int r) const { return part[r / WIDTH<A>][r % WIDTH<A>]; }
  INLINE void set(int r, A x) { part[r / WIDTH<A>][r % WIDTH<A>] = x; }
};

// --- products ------------------------------------------------------------------------------------

// Rows of the result whose sums stay in registers, beside what they are computed from.
template <class A> constexpr int AT_ONCE = smaller(16, (REGISTERS - 4) / VECTORS<A>);

// `to[m][row] (+)= sum_k x[m * M_STEP + k * K_STEP] * own[k][row]` for COUNT values of m.
template <class A, int COUNT, int M_STEP, int K_STEP, bool ADDS>
INLINE void block(A* to, const A* x, const A* own, i64 length) {
  Lanes<A> sums[COUNT][VECTORS<A>];
  for (int m = 0; m < COUNT; ++m)
    over_rows<A>([&](int v, int r) {
      sums[m][v] = ADDS ? load<WIDTH<A>>(to + m * WINDOW + r) : Lanes<A>{};
    });
  for (i64 k = 0; k < length; ++k, x += K_STEP, own += WINDOW)
    over_rows<A>([&](int v, int r) {
      const auto mine = load<WIDTH<A>>(own + r);
      for (int m = 0; m < COUNT; ++m) sums[m][v] += x[m * M_STEP] * mine;
    });
  for (int m = 0; m < COUNT; ++m)
    over_rows<A>([&](int v, int r) { store<WIDTH<A>>(to + m * WINDOW + r, sums[m][v]); });
}

template <class A, int M_STEP, int K_STEP, bool ADDS>
SHARED void blocks(A* to, const A* x, const A* own, i64 count, i64 length) {
  constexpr int SOME = AT_ONCE<A>;
  i64 m = 0;
  for (; m + SOME <= count; m += SOME)
    block<A, SOME, M_STEP, K_STEP, ADDS>(to + m * WINDOW, x + m * M_STEP, own, length);
  for (; m + 4 <= count; m += 4)
    block<A, 4, M_STEP, K_STEP, ADDS>(to + m * WINDOW, x + m * M_STEP, own, length);
  for (; m < count; ++m)
    block<A, 1, M_STEP, K_STEP, ADDS>(to + m * WINDOW, x + m * M_STEP, own, length);
}

// --- what is loaded ------------------------------------------------------------------------------

// The rows of a window and the sources that some of them attend to.
template <class A> struct Window {
  i64 batch, first, count;  // where its rows begin, and how many there are
  i64 low, sources;         // of an interval its first source; of a list where it begins
  const Rows* rows;
  bool listed;
  PerRow<Integer<A>> start, stop;  // of intervals
  i64 all_from, all_to;            // sources that every row attends to

  INLINE i64 row(i64 r) const { return rows->row ? rows->row[first + r] : first + r; }
  INLINE i64 source(i64 c) const { return listed ? rows->source[low + c] : low + c; }
  INLINE bool is_full(i64 c) const {
    return listed ? rows->attends[low + c] == 0xffff : low + c >= all_from && low + c < all_to;
  }
  INLINE Marks<A> marks(i64 c, int v) const {
    using I = Integer<A>;
    Marks<A> result;
    if (listed) {
      for (int r = 0; r < WIDTH<A>; ++r) result[r] = I(1) << (v * WIDTH<A> + r);
      return (all<WIDTH<A>>(I(rows->attends[low + c])) & result) != 0;
    }
    const auto node = all<WIDTH<A>>(I(low + c));
    return (node >= start.part[v]) & (node < stop.part[v]);
  }
};

template <class A> SHARED Window<A> window_of(const Call& call, const Rows& rows, i64 b, i64 w) {
  Window<A> found;
  found.batch = b, found.first = w * WINDOW, found.rows = &rows, found.listed = call.listed;
  found.count = smaller((i64)WINDOW, rows.count - found.first);
  if (found.listed) {
    found.low = rows.window[w], found.sources = rows.window[w + 1] - found.low;
    return found;
  }
  i64 high = 0;
  found.low = found.all_to = call.num_dst + call.num_src, found.all_from = 0;
  found.start = found.stop = PerRow<Integer<A>>::all_of(0);
  for (i64 r = 0; r < WINDOW; ++r) {
    const i64 row = found.first + r;
    const i64 degree = r < found.count ? rows.ptr[row + 1] - rows.ptr[row] : 0,
              start = degree ? rows.index[row] : 0;
    found.start.set(r, start), found.stop.set(r, start + degree);
    found.all_from = larger(found.all_from, start),
    found.all_to = smaller(found.all_to, start + degree);
    if (degree) found.low = smaller(found.low, start), high = larger(high, start + degree);
  }
  found.sources = larger(high - found.low, (i64)0);
  return found;
}

// Numbers of some sources, STEP apart.
template <class A, int STEP> struct Tile {
  A number[TILE * STEP];

  // Load a head of `count` sources of a window, from `from` on.
  template <class S>
  SHARED void load_sources(const S* x, i64 step, i64 dim, const Window<A>& window, i64 from,
                           i64 count) {
    constexpr int N = LANES<A>, SOON = 8;
    for (i64 c = 0; c < count; ++c) {
      const S* here = x + window.source(from + c) * step;
      const S* soon = x + window.source(from + smaller(c + SOON, count - 1)) * step;
      for (i64 d = 0; d < dim; d += N) {
        __builtin_prefetch(soon + d);
        store<N>(number + c * STEP + d, load_some<N>(here + d, dim - d));
      }
    }
  }
};

// `result[d][row] += sum_c tile[c][d] * weights[c][row]`. A number that is not finite makes NaN of
// a weight of 0: if `careful`, only rows that attend to a source see its numbers.
template <class A, int STEP>
SHARED void accumulate(A* result, const Tile<A, STEP>& tile, const A* weights, i64 dim,
                       const Window<A>& window, i64 from, i64 count, bool careful) {
  if (!careful) return blocks<A, 1, STEP, true>(result, tile.number, weights, dim, count);
  for (i64 c = 0; c < count; ++c)
    over_rows<A>([&](int v, int r) {
      const auto marks = window.marks(from + c, v);
      for (i64 d = 0; d < dim; ++d) {
        const auto before = load<WIDTH<A>>(result + d * WINDOW + r);
        const auto after =
            before + tile.number[c * STEP + d] * load<WIDTH<A>>(weights + c * WINDOW + r);
        store<WIDTH<A>>(result + d * WINDOW + r, marks ? after : before);
      }
    });
}

// Put a value where a row does not attend to a source.
template <class A>
SHARED void mask(A* scores, const Window<A>& window, i64 from, i64 count, A value) {
  for (i64 c = 0; c < count; ++c)
    if (!window.is_full(from + c))
      over_rows<A>([&](int v, int r) {
        A* x = scores + c * WINDOW + r;
        store<WIDTH<A>>(x, window.marks(from + c, v) ? load<WIDTH<A>>(x) : all<WIDTH<A>>(value));
      });
}

// Call `work(window, head)` for all that this thread draws, `heads` of every window.
template <class A, class F>
INLINE void for_windows(const Call& call, const Rows& rows, i64 heads, i64* counter, F work) {
  const i64 windows = (rows.count + WINDOW - 1) / WINDOW;
  for (;;) {
    const i64 drawn = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    if (drawn >= call.batch * windows * heads) return;
    work(window_of<A>(call, rows, drawn / heads / windows, drawn / heads % windows), drawn % heads);
  }
}
