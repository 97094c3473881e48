// What is made of a list of edges before the first call: rows, and windows of rows.
#include "tiles.h"

// --- edges by row --------------------------------------------------------------------------------

struct Edge {
  i32 row, column, number;
};

constexpr int BUCKETS = 1024;  // streams that are written at once, at most

// Where edges of each row begin, `ptr` (rows + 1,), from how many there are.
template <class F> static void count_rows(i64* ptr, i64 rows, i64 edges, F row_of) {
  for (i64 row = 0; row <= rows; ++row) ptr[row] = 0;
  for (i64 e = 0; e < edges; ++e) ++ptr[row_of(e) + 1];
  for (i64 row = 0; row < rows; ++row) ptr[row + 1] += ptr[row];
}

// Group edges by row; edges of a row keep their order. Edges go to buckets of rows first, so that
// what is counted and written at random stays in the cache. Nodes and edges are less than 2^31, and
// rows were checked. The result is 1 if there is no memory left.
//
// ptr (rows + 1,), index (edges,): column of each, edge (edges,): its place in the list.
EXPORT i64 graphattn_group(const i64* row, const i64* column, i64 edges, i64 rows, i64* ptr,
                           i32* index, i32* edge) {
  int shift = 0;
  while ((rows >> shift) >= BUCKETS) ++shift;
  const i64 buckets = (rows >> shift) + 1, width = 1LL << shift;
  Scratch<Edge> sorted(edges);
  Scratch<i64> begin(buckets + 1), next(larger(buckets, width));
  if (!sorted.data || !begin.data || !next.data) return 1;
  count_rows(begin.data, buckets, edges, [&](i64 e) { return row[e] >> shift; });
  for (i64 k = 0; k < buckets; ++k) next.data[k] = begin.data[k];
  for (i64 e = 0; e < edges; ++e)
    sorted.data[next.data[row[e] >> shift]++] = {(i32)row[e], (i32)column[e], (i32)e};
  for (i64 k = 0; k < buckets; ++k) {
    const i64 first = k << shift, count = smaller(width, rows - first);
    if (count <= 0) break;
    i64* place = next.data;
    for (i64 r = 0; r < count; ++r) place[r] = 0;
    for (i64 e = begin.data[k]; e < begin.data[k + 1]; ++e) ++place[sorted.data[e].row - first];
    i64 so_far = begin.data[k];
    for (i64 r = 0; r < count; ++r) {
      const i64 here = place[r];
      ptr[first + r] = place[r] = so_far;
      so_far += here;
    }
    for (i64 e = begin.data[k]; e < begin.data[k + 1]; ++e) {
      const Edge& found = sorted.data[e];
      const i64 to = place[found.row - first]++;
      index[to] = found.column, edge[to] = found.number;
    }
  }
  ptr[rows] = edges;
  return 0;
}

// --- windows -------------------------------------------------------------------------------------

// List the distinct sources of every `step`-th window of rows in some order (null: as they are), in
// the order in which they are met, and which rows attend to each; a source is listed as often as a
// row has edges to it. The result is how many are listed; `window` says where those of each window
// begin.
//
// newest (sources,): 0 everywhere; then 1 + the last place where a source is listed. before,
// source, attends: as many as there are edges; before is 1 + the place where the source is listed
// before.
EXPORT i64 graphattn_windows(const i64* ptr, const i32* index, const i32* order, i64 rows, i64 step,
                             i64* newest, i64* before, i64* window, i32* source, u16* attends) {
  i64 count = 0, number = 0;
  for (i64 first = 0; first < rows; first += WINDOW * step, ++number) {
    const i64 begin = window[number] = count;
    for (i64 i = first; i < smaller(first + WINDOW, rows); ++i) {
      const i64 row = order ? order[i] : i;
      const u16 bit = (u16)(1 << (i - first));
      for (i64 e = ptr[row]; e < ptr[row + 1]; ++e) {
        i64 place = newest[index[e]] - 1;
        int hops = 0;  // few: a row may have any number of edges to one source
        while (place >= begin && attends[place] & bit && hops++ < WINDOW) place = before[place] - 1;
        if (place >= begin && !(attends[place] & bit)) {
          attends[place] |= bit;
        } else {
          before[count] = newest[index[e]];
          source[count] = index[e], attends[count] = bit;
          newest[index[e]] = ++count;
        }
      }
    }
  }
  window[number] = count;
  return count;
}
