// Work is cut into tasks of UNIT steps, where a row takes one step and each of its edges one more:
// so no task is longer than another, whatever the degrees. Threads draw tasks from a counter. A row
// that a cut goes through is computed in parts, each in a place of its own, which are merged in
// order; so results do not depend on the threads.
#pragma once
#include "gather.h"
#include "runs.h"

constexpr i64 UNIT = 2048;

INLINE i64 num_tasks(const Rows& rows) {
  return (rows.ptr[rows.count] + rows.count + UNIT - 1) / UNIT;
}

// The row that a step belongs to.
INLINE i64 first_row(const Rows& rows, i64 step) {
  i64 low = 0, high = rows.count;
  while (low < high) {
    i64 middle = (low + high) / 2;
    if (rows.ptr[middle + 1] + middle + 1 > step) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The edges `low` to `high` of a row that are in a task.
struct Segment {
  i64 batch, row, low, high;
  i64 part;    // place among the parts, -1 if it is the whole row
  bool first;  // whether the row begins here
  i64 task;    // among those of the whole batch
  INLINE bool whole() const { return part < 0; }
};

INLINE Segment segment_of(const Rows& rows, i64 b, i64 row, i64 task) {
  i64 begin = task * UNIT, end = begin + UNIT, tasks = num_tasks(rows);
  i64 start = rows.ptr[row] + row, stop = rows.ptr[row + 1] + row + 1;
  Segment found = {b,
                   row,
                   larger(rows.ptr[row], begin - row - 1),
                   smaller(rows.ptr[row + 1], end - row - 1),
                   -1,
                   start >= begin,
                   b * tasks + task};
  if (!found.first) found.part = 2 * found.task;
  else if (stop > end) found.part = 2 * found.task + 1;
  return found;
}

// Call `work(segment)` for the rows of every task that this thread draws.
template <class F>
INLINE void for_segments(const Call& call, const Rows& rows, i64* counter, F work) {
  const i64 tasks = num_tasks(rows);
  for (;;) {
    i64 drawn = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    if (drawn >= call.batch * tasks) return;
    i64 b = drawn / tasks, task = drawn % tasks, end = (task + 1) * UNIT;
    for (i64 row = first_row(rows, task * UNIT); row < rows.count && rows.ptr[row] + row < end;
         ++row)
      work(segment_of(rows, b, row, task));
  }
}

// Call `merge(segment of the first part, first part, last)` for every row that was cut; part p of
// task t is `part_at(p)`.
template <class F> INLINE void for_cut_rows(i64 batch, const Rows& rows, F merge) {
  const i64 tasks = num_tasks(rows);
  for (i64 b = 0; b < batch; ++b)
    for (i64 task = 0; task < tasks; ++task) {
      i64 row = first_row(rows, (task + 1) * UNIT - 1);
      if (row >= rows.count) continue;
      Segment found = segment_of(rows, b, row, task);
      if (!found.first || found.whole()) continue;
      i64 last = b * tasks + (rows.ptr[row + 1] + row) / UNIT;
      merge(b * rows.count + row, found.task, last);
    }
}

INLINE i64 part_of(i64 first_task, i64 task) { return 2 * task + (task == first_task); }

// Memory of a thread, from a cache line's beginning; null if there is none left.
template <class T> struct Scratch {
  void* memory;
  T* data;
  explicit Scratch(i64 length) : memory(__builtin_malloc(length * sizeof(T) + 2 * LINE)) {
    const u64 aligned = ((u64)memory + LINE - 1) / LINE * LINE;
    data = memory ? (T*)aligned : nullptr;
  }
  ~Scratch() { __builtin_free(memory); }
  Scratch(const Scratch&) = delete;
};

// --- the tensors of a call -----------------------------------------------------------------------

template <class S> INLINE const S* at(const Numbers& x, i64 b, i64 node) {
  return (const S*)x.data + b * x.batch + node * x.node;
}

// Numbers of a node as they are computed with: as they lie there, or converted into a buffer.
template <class S> INLINE const Real<S>* real(const S* x, i64 length, Real<S>* buffer) {
  if constexpr (sizeof(S) == sizeof(Real<S>)) return x;
  else {
    copy(buffer, x, length);
    return buffer;
  }
}

// The neighbor at e of a row, and what is to be added to e to get it where rows are intervals.
INLINE i64 first_neighbor(const Rows& rows, i64 row) { return rows.index[row] - rows.ptr[row]; }
INLINE i64 neighbor(const Call& call, const Rows& rows, i64 row, i64 e) {
  return call.listed ? rows.index[e] : e + first_neighbor(rows, row);
}

// 0, 1, 2, ...: the index of rows that follow each other.
struct Ascending {
  i32 number[UNIT];
  constexpr Ascending() : number() {
    for (i64 i = 0; i < UNIT; ++i) number[i] = (i32)i;
  }
};
static constexpr Ascending ASCENDING;

template <class S> INLINE Gather<S> in_order(const Segment& segment, const S* first, i64 step) {
  return {first, step, ASCENDING.number - segment.low, false, segment.high - 1};
}

// What the edges of a segment read of nodes: of the row's neighbors.
template <class S>
INLINE Gather<S> of_nodes(const Call& call, const Rows& rows, const Segment& segment, const S* base,
                          i64 step) {
  if (call.listed) return {base, step, rows.index, false, call.num_edges - 1};
  return in_order(segment, base + (segment.low + first_neighbor(rows, segment.row)) * step, step);
}

// What they read of themselves, in edge order; its base is null if that is nothing.
template <class S>
INLINE Gather<S> of_edges(const Call& call, const Rows& rows, const Segment& segment, const S* base,
                          i64 step) {
  if (rows.edge || !base) return {base, step, rows.edge, (bool)call.wide, call.num_edges - 1};
  return in_order(segment, base + segment.low * step, step);
}

INLINE i64 edge_of(const Call& call, const Rows& rows, i64 e) {
  if (!rows.edge) return e;
  return call.wide ? ((const i64*)rows.edge)[e] : ((const i32*)rows.edge)[e];
}

// The place in edge order of the edge at e of the columns.
INLINE i64 edge_of_column(const Call& call, i64 e, i64 dst, i64 src) {
  if (call.listed) return edge_of(call, call.columns, e);
  return src - call.rows.index[dst] + call.rows.ptr[dst];
}

// The factor of a weight under dropout, from its number (the finalizer of SplitMix64).
template <class A> INLINE A kept(const Call& call, i64 number) {
  u64 x = call.seed + (u64)number * 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  x ^= x >> 31;
  return x >= call.drop ? (A)call.keep : A(0);
}

INLINE float logarithm(float x) { return __builtin_logf(x); }
INLINE double logarithm(double x) { return __builtin_log(x); }

template <class S> INLINE Real<S> product(const S* x, const S* y, i64 length) {
  constexpr int N = LANES<Real<S>>;
  Vector<Real<S>, N> total = {};
  for (i64 d = 0; d < length; d += N)
    total += load_some<N>(x + d, length - d) * load_some<N>(y + d, length - d);
  return sum<Real<S>, N>(total);
}
