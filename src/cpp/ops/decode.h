// Operations on the few rows that generation feeds: weights are streamed once, in the format they are kept in, and
// every thread of a region runs the same calls and does its share (base/parallel.h). Glossary as in ops/ops.h, R rows.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "kernels/activation.h"
#include "ops/ops.h"

namespace soma {

// What weights are read in. Products are of float32 rows and of weights widened to float32, summed in float32 in the
// order of the inner dimension on every instruction set. bfloat16 rounds each weight to nearest even once. int8 keeps
// round(w / scale) with one scale = max|w| / 127 an output, by which the whole sum is multiplied.
enum class WeightFormat { kFloat32, kBfloat16, kInt8 };

// How they lie: packed by pack_weights into panels of 64 outputs, or float32 where the model has them and live, as
// (inner, outer) or transposed.
enum class WeightLayout { kPanels, kLive, kLiveTransposed };

// W(inner, outer) as decoding reads it.
struct DecodeMatrix {
  WeightFormat format = WeightFormat::kFloat32;
  WeightLayout layout = WeightLayout::kLive;
  int64_t inner = 0, outer = 0;
  const char* data = nullptr;
  const float* scales = nullptr;  // (outer), int8
  bool fetch = false;             // panels: from memory, since a token's weights are more than caches hold

  int64_t bytes() const;  // read for a product
};

DecodeMatrix live_weights(ConstMatrix w);

// The floats of memory that w takes when packed, scales apart.
int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer);
// w into `packed` (and `scales` for int8), on all threads. A weight that is not finite makes its output not finite.
DecodeMatrix pack_weights(float* packed, float* scales, WeightFormat format, ConstMatrix w);

// The distance between the rows that decoding makes: rows a multiple of 4 KB apart would share their cache sets.
inline int64_t padded_ld(int64_t cols) { return (cols + 15) / 16 * 16 + 16; }

struct RowEpilogue {
  const float* bias = nullptr;
  const Matrix* residual = nullptr;
  Activation activation = Activation::kNone;
};

// One row's keys and values in one layer: `length` positions filled of `capacity`, a multiple of 16. Head h begins at
// h * capacity * D; keys are in blocks of 16 positions, (D, 16) each, values (position, D).
struct CacheRow {
  float* keys;
  float* values;
  int64_t length, capacity;
};

// As AttentionShape has them.
struct HeadShape {
  int64_t heads, head_size, kv_heads;
  float scale;  // as in AttentionShape
  int64_t q_dim() const { return heads * head_size; }
  int64_t kv_dim() const { return kv_heads * head_size; }
};

// Memory that makes decode_linear a product of many rows, at the speed of training's. Before bfloat16 and int8 weights
// rows are rounded to bfloat16, as in training's bfloat16 products. `panels` holds W as that product wants it, a piece
// of kPromptPanels floats for each thread; `rows` the rounded rows, prompt_floats(R, inner) floats, null with float32
// weights.
struct PromptMemory {
  float *panels, *rows;
};
constexpr int64_t kPromptRows = 16;  // from so many on it pays
constexpr int64_t kPromptPanels = 64 * 1024;
int64_t prompt_floats(int64_t rows, int64_t inner);

// out(C) = row `output` of a table kept as the weights of a head: W(C, V).
void decode_embed(float* out, const DecodeMatrix& table, int64_t output);

// y = activation(x W + bias + residual). This thread's outputs only: others' are there after region.wait(). With
// `memory`, which no thread may still be reading, as PromptMemory says; float32 weights give the same bits either way.
void decode_linear(const ParallelRegion& region, const Matrix& y, const Matrix& x, const DecodeMatrix& w,
                   const RowEpilogue& e = {}, const PromptMemory* memory = nullptr);

// y = silu(gate) up, where x W = gate | up goes to hidden(R, 2 cols). This thread's columns of y only.
void decode_swiglu(const ParallelRegion& region, const Matrix& y, const Matrix& hidden, const Matrix& x,
                   const DecodeMatrix& w, const PromptMemory* memory = nullptr);

// decode_linear for qkv = q | k | v, cut so that a thread makes what its decode_attention reads; waits where it cannot.
void decode_qkv(const ParallelRegion& region, const Matrix& qkv, const Matrix& x, const DecodeMatrix& w,
                const float* bias, const HeadShape& shape, const PromptMemory* memory = nullptr);

// Appends k and v of every row to its cache at position `length`, then out(R, H*D) = attention of q over length + 1
// positions. Rows may share a cache at different lengths: a prompt is so many rows. This thread's heads and rows only.
// scores: (region.size, capacity + 16) floats. With `rotation`, q and k are rotated first, in place.
void decode_attention(const ParallelRegion& region, const Matrix& out, const Matrix& qkv, const CacheRow* cache,
                      const HeadShape& shape, float* scores, const Rotation* rotation = nullptr);

// norm(x), row by row, complete for this thread when it returns. Few rows: each thread makes its own, and none waits.
// Many: all make one together. `buffer` has norm_rows(R, threads) rows of x.ld floats.
int64_t norm_rows(int64_t rows, int64_t threads);
Matrix decode_norm(const ParallelRegion& region, float* buffer, const Matrix& x, const NormWeights& w, float eps);

}  // namespace soma
