// What Python hands over, as `interface.py` has it: every field takes 8 bytes.
#pragma once
#include "vector.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum Dtype : i64 { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum Score : i64 { DOT, LEAKY_RELU, TANH };
enum Normalizer : i64 { SOFTMAX, SIGMOID, NONE };

// Numbers that lie together for each node or edge; strides in numbers, of the batch 0 if it is
// shared.
struct Numbers {
  const void* data;
  i64 batch, node;
  explicit operator bool() const { return data; }
};

// The edges by destination or by source, as `Edges` has them, and the windows of rows, if any.
struct Rows {
  const i64* ptr;      // (rows + 1,)
  const i32* index;    // (E,) nodes at the other end; of intervals (rows,), the first such node
  const void* edge;    // (E,) places in edge order, int32, or int64 if wide; null if in this order
  const i64* window;   // (windows + 1,) where the sources of each window begin; null: no tiles
  const i32* source;   // of lists: distinct nodes that the rows of a window attend to
  const u16* attends;  // bit r: row r of the window attends to that node
  const i32* row;      // (rows,) the rows of each window in turn, or null: 0, 1, 2, ...
  i64 count;           // rows
};

struct Call {
  i64 dtype, score, normalizer, listed, wide;
  i64 batch, num_dst, num_src, heads, kv_heads;
  i64 group;  // heads that share a key head
  i64 head_dim, value_dim, edge_dim, num_edges;
  Numbers query, key, value;           // (batch, nodes, heads, dim)
  Numbers bias;                        // (…, E, heads), Real
  Numbers edge_key, edge_value, edge;  // (…, E, kv_heads, dim) twice, (…, E, edge_dim)
  const void *weight, *sink;           // (heads, head_dim), (heads,), Real
  double slope, scale, softcap, keep;  // softcap 0: none; keep: 1 / (1 - dropout)
  u64 seed, drop;                      // a weight is dropped if its 64 random bits are below this
  Rows rows, columns;
  // Forward: (batch, num_dst, heads, value_dim + edge_dim), and statistics (batch, num_dst, 2,
  // heads): the maximum of the logits and 1 / the sum of their exponentials; the same of parts of
  // rows.
  void *out, *out_parts, *stats, *stats_parts;
  void* weights;  // (batch, E, heads), Real
  // Backward. grad_weights (batch, E, heads) stands instead of grad_out for gradients of weights.
  const void *grad_out, *grad_weights;
  // (batch, num_dst, 3, heads): maximum, log of the sum, sum_j of each weight times its gradient.
  void* known;
  // (batch, E, 2, heads): weights and gradients of scores, handed to the pass by source, or null.
  void* handed;
  void *grad_query, *grad_key, *grad_value;                       // as the tensors, contiguous
  void *query_parts, *key_parts, *value_parts;                    // of parts of rows, Real
  void *grad_bias, *grad_edge_key, *grad_edge_value, *grad_edge;  // (batch, E, …), Real, or null
  void* grad_weight;  // (batch * tasks, heads, head_dim), Real, or null

  i64 query_dim() const { return head_dim + edge_dim; }
  i64 out_dim() const { return value_dim + edge_dim; }
  // Whether edges have neither numbers of their own nor dropout.
  bool plain() const { return !(bias || edge_key || edge_value || edge || drop); }
};

// Export `graphattn_<name>(call, counter)`, which calls `function<S>` for the dtype of the call.
// The counter is of the tasks that threads began. The result is 1 if there is no memory left, else
// 0.
#define ENTRY(name, function)                                             \
  EXPORT i64 graphattn_##name(const Call* call, i64* counter) {           \
    return call->dtype == FLOAT32    ? function<float>(*call, counter)    \
           : call->dtype == FLOAT64  ? function<double>(*call, counter)   \
           : call->dtype == BFLOAT16 ? function<bfloat16>(*call, counter) \
                                     : function<float16>(*call, counter); \
  }
