// Operations of generation, on few rows. Each streams its weights once, in their stored format. All threads of a region
// make the same calls, and each does its share (base/parallel.h). Glossary as in ops/ops.h; R rows.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "kernels/activation.h"
#include "ops/ops.h"

namespace soma {

// The format of stored weights. A product widens them to float32 and sums in float32, in the order of the inner
// dimension on every instruction set. bfloat16 rounds each weight to nearest even once. int8 stores round(w / scale)
// with scale = max|w| / 127 for each output; the whole sum is multiplied by the scale.
enum class WeightFormat { kFloat32, kBfloat16, kInt8 };

// The layout of weights: packed by the device, on the processor in panels of 64 outputs; or the live float32 weights of
// the model in place, as (inner, outer) or transposed.
enum class WeightLayout { kPanels, kLive, kLiveTransposed };

// W(inner, outer) as decoding reads it.
struct DecodeMatrix {
  WeightFormat format = WeightFormat::kFloat32;
  WeightLayout layout = WeightLayout::kLive;
  int64_t inner = 0, outer = 0;
  const char* data = nullptr;
  const float* scales = nullptr;  // (outer), int8
  bool fetch = false;             // prefetch panels: the weights of a token exceed the caches

  int64_t bytes() const;  // bytes that a product reads
};

DecodeMatrix live_weights(ConstMatrix w);

// The number of floats that packed weights take, without the scales.
int64_t packed_size(WeightFormat format, int64_t inner, int64_t outer);
// Packs w into `packed` (and `scales` for int8) on all threads. A weight that is not finite makes its output not
// finite.
DecodeMatrix pack_weights(float* packed, float* scales, WeightFormat format, ConstMatrix w);

// The distance between rows of results. Rows a multiple of 4 KB apart would share their cache sets.
inline int64_t padded_ld(int64_t cols) { return (cols + 15) / 16 * 16 + 16; }

struct RowEpilogue {
  const float* bias = nullptr;
  const Matrix* residual = nullptr;
  Activation activation = Activation::kNone;
};

// How keys and values are kept. bfloat16 rounds each to nearest even once; attention widens them to float32.
enum class CacheFormat { kFloat32, kBfloat16 };
// The positions whose keys lie together. A block of keys of a head takes 16 D floats in either format.
inline int64_t cache_block(CacheFormat format) { return format == CacheFormat::kBfloat16 ? 32 : 16; }
// The floats of so many positions of a head, in blocks.
inline int64_t cache_floats(CacheFormat format, int64_t positions, int64_t head_size) {
  const int64_t block = cache_block(format);
  return (positions + block - 1) / block * 16 * head_size;
}

// The keys and values of one row in one layer. `length` positions of `capacity`, a multiple of cache_block, are filled.
// Head h begins at cache_floats(format, h * capacity, D). kernels::CachedHead has the layout.
struct CacheRow {
  float* keys;
  float* values;
  int64_t length, capacity;
  CacheFormat format = CacheFormat::kFloat32;
};

// The heads of one position; fields as in AttentionShape.
struct HeadShape {
  int64_t heads, head_size, kv_heads;
  float scale;
  int64_t q_dim() const { return heads * head_size; }
  int64_t kv_dim() const { return kv_heads * head_size; }
};

// Memory with which decode_linear multiplies many rows at the speed of training. With bfloat16 and int8 weights, rows
// are rounded to bfloat16, as in the bfloat16 products of training. `panels`: kPromptPanels floats for each thread, for
// packed W. `rows`: prompt_floats(R, inner) floats for the rounded rows; null with float32 weights.
struct PromptMemory {
  float *panels, *rows;
};
constexpr int64_t kPromptRows = 16;  // fewer rows are faster without this memory
constexpr int64_t kPromptPanels = 64 * 1024;
int64_t prompt_floats(int64_t rows, int64_t inner);

// out(C) = W[:, output] for a table stored as the weights of a head, W(C, V).
void decode_embed(float* out, const DecodeMatrix& table, int64_t output);

// y = activation(x W + bias + residual). Computes the outputs of this thread; those of others are ready after
// region.wait(). For `memory` see PromptMemory; no thread may still read it. float32 weights give the same bits with
// it.
void decode_linear(const ParallelRegion& region, const Matrix& y, const Matrix& x, const DecodeMatrix& w,
                   const RowEpilogue& e = {}, const PromptMemory* memory = nullptr);

// hidden(R, 2 cols) = x W = gate | up, then y = silu(gate) up. Computes the columns of this thread.
void decode_swiglu(const ParallelRegion& region, const Matrix& y, const Matrix& hidden, const Matrix& x,
                   const DecodeMatrix& w, const PromptMemory* memory = nullptr);

// decode_linear for qkv = q | k | v. Cut so that decode_attention reads outputs of its own thread; else it waits.
void decode_qkv(const ParallelRegion& region, const Matrix& qkv, const Matrix& x, const DecodeMatrix& w,
                const float* bias, const HeadShape& shape, const PromptMemory* memory = nullptr);

// Appends k and v of every row to its cache at position `length`. Then out(R, H*D) = attention of q over length + 1
// positions. The rows of a prompt share a cache at different lengths. Computes the heads and rows of this thread.
// scores: (region.size, capacity + 16) floats. With `rotation`, q and k are rotated first, in place.
void decode_attention(const ParallelRegion& region, const Matrix& out, const Matrix& qkv, const CacheRow* cache,
                      const HeadShape& shape, float* scores, const Rotation* rotation = nullptr);

// norm(x), row by row. On return the result is complete for this thread. Each thread norms few rows by itself, without
// waiting; all threads norm many rows together. `buffer` has norm_rows(R, threads) rows of x.ld floats.
int64_t norm_rows(int64_t rows, int64_t threads);
Matrix decode_norm(const ParallelRegion& region, float* buffer, const Matrix& x, const NormWeights& w, float eps);

}  // namespace soma
