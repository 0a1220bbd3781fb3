// Sums over rows, dropout and embeddings.
#include <numeric>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

constexpr int64_t kRowsOfBlock = 128;  // whose sums one block makes
constexpr int64_t kColumnsOfWarp = 128;

// partials (blocks, c): the sums over the block's rows of x, in floats or pairs
__global__ void __launch_bounds__(kThreads)
    sum_blocks(float* partials, const float* x, int64_t ld, bool pairs, int64_t rows, int64_t c) {
  const int64_t j = index_of_thread(), block = blockIdx.y;
  if (j >= c) return;
  const int64_t end = rows < (block + 1) * kRowsOfBlock ? rows : (block + 1) * kRowsOfBlock;
  float sum = 0.0f;
  for (int64_t r = block * kRowsOfBlock; r < end; ++r) {
    const float* const row = x + r * ld;
    if (pairs) {
      const uint32_t both = __float_as_uint(row[j / 2]);
      sum += j % 2 == 0 ? low_of(both) : high_of(both);
    } else {
      sum += row[j];
    }
  }
  partials[block * c + j] = sum;
}

__global__ void __launch_bounds__(kThreads) add_partials(float* out, const float* partials, int64_t blocks, int64_t c) {
  const int64_t j = index_of_thread();
  if (j >= c) return;
  float sum = out[j];
  for (int64_t b = 0; b < blocks; ++b) sum += partials[b * c + j];
  out[j] = sum;
}

__device__ inline float2 dropped(const Drop& drop, int64_t r, int64_t j, float2 v) {
  return {v.x * drop.factor(r, j), v.y * drop.factor(r, j + 1)};
}

__global__ void __launch_bounds__(kThreads) drop_rows(Rows y, const float* x, int64_t ld, Drop drop, int64_t rows) {
  const int64_t r = row_of_warp();
  if (r >= rows) return;
  const unsigned lane = threadIdx.x % 32;
  each_two(y.cols, lane, 32,
           [&](int64_t j, bool both) { y.write(r, j, dropped(drop, r, j, read_two(x + r * ld + j, both)), both); });
  y.finish(r, lane, 32);
}

// wpe may be null
__global__ void __launch_bounds__(kThreads)
    embed_rows(Rows out, const int32_t* ids, const float* wte, int64_t ld_wte, const float* wpe, int64_t ld_wpe,
               int64_t length, Drop drop, int64_t rows) {
  const int64_t r = row_of_warp();
  if (r >= rows) return;
  const int32_t id = ids[r];
  const float* const position = wpe != nullptr ? wpe + r % length * ld_wpe : nullptr;
  const unsigned lane = threadIdx.x % 32;
  each_two(out.cols, lane, 32, [&](int64_t j, bool both) {
    float2 v{0, 0};
    if (id != kMaskedToken) v = read_two(wte + id * ld_wte + j, both);
    if (position != nullptr) {
      const float2 p = read_two(position + j, both);
      v = {v.x + p.x, v.y + p.y};
    }
    out.write(r, j, drop.on ? dropped(drop, r, j, v) : v, both);
  });
  out.finish(r, lane, 32);
}

// One warp adds the rows of one id in order, kColumnsOfWarp columns of them.
__global__ void __launch_bounds__(kThreads) add_rows_of_ids(float* dwte, const float* dout, const int32_t* ids,
                                                            const int32_t* sorted, int64_t count, int64_t c) {
  const int64_t which = row_of_warp(), first = blockIdx.y * kColumnsOfWarp;
  if (which >= sorted[0]) return;
  const int32_t *const rows = sorted + 1, *const starts = rows + count;
  const int32_t begin = starts[which], end = starts[which + 1];
  const int64_t width = c - first < kColumnsOfWarp ? c - first : kColumnsOfWarp;
  float* const to = dwte + ids[rows[begin]] * c + first;
  each_two(width, threadIdx.x % 32, 32, [&](int64_t j, bool both) {
    float2 sum = read_two(to + j, both);
    for (int32_t i = begin; i < end; ++i) {
      const float2 d = read_two(dout + rows[i] * c + first + j, both);
      sum = {sum.x + d.x, sum.y + d.y};
    }
    write_two(to + j, sum, both);
  });
}

// dwpe[t] += the rows of position t, in order
__global__ void __launch_bounds__(kThreads)
    add_rows_of_positions(float* dwpe, int64_t ld, const float* dout, int64_t length, int64_t rows, int64_t c) {
  const int64_t i = index_of_thread(), t = i / c, j = i % c;
  if (t >= length || t >= rows) return;
  float sum = dwpe[t * ld + j];
  for (int64_t r = t; r < rows; r += length) sum += dout[r * c + j];
  dwpe[t * ld + j] = sum;
}

}  // namespace

int64_t sum_rows_floats(int64_t rows, int64_t cols) { return ceil_div(rows, kRowsOfBlock) * cols; }

void sum_rows(float* out, ConstMatrix x, float* partials, cudaStream_t stream) {
  if (x.rows == 0) return;
  const int64_t blocks = ceil_div(x.rows, kRowsOfBlock);
  const unsigned across = grid_of(x.cols).x;
  Kernel{sum_blocks, dim3(across, static_cast<unsigned>(blocks)), kThreads, stream}(partials, x.data, x.ld, x.pairs,
                                                                                    x.rows, x.cols);
  Kernel{add_partials, dim3(across), kThreads, stream}(out, partials, blocks, x.cols);
}

void dropout(Matrix y, ConstMatrix x, const Dropout& dropout, cudaStream_t stream) {
  if (x.rows == 0) return;
  Kernel{drop_rows, grid_of_rows(x.rows), kThreads, stream}(y, x.data, x.ld, drop_of(dropout), x.rows);
}

void embed(Matrix out, const int32_t* ids, ConstMatrix wte, const ConstMatrix* wpe, int64_t length,
           const Dropout& dropout, cudaStream_t stream) {
  if (out.rows == 0) return;
  Kernel{embed_rows, grid_of_rows(out.rows), kThreads, stream}(
      out, ids, wte.data, wte.ld, wpe != nullptr ? wpe->data : nullptr, wpe != nullptr ? wpe->ld : 0, length,
      drop_of(dropout), out.rows);
}

std::vector<int32_t> sort_ids(const int32_t* ids, int64_t count) {
  std::vector<int32_t> sorted(static_cast<std::size_t>(sorted_ids(count)));
  int32_t *const rows = sorted.data() + 1, *const starts = rows + count;
  int32_t *end = rows, *start = starts;
  for (int32_t r = 0; r < count; ++r) {
    if (ids[r] != kMaskedToken) *end++ = r;
  }
  std::stable_sort(rows, end, [&](int32_t a, int32_t b) { return ids[a] < ids[b]; });
  for (const int32_t* r = rows; r < end; ++r) {
    if (r == rows || ids[r[0]] != ids[r[-1]]) *start++ = static_cast<int32_t>(r - rows);
  }
  *start = static_cast<int32_t>(end - rows);
  sorted[0] = static_cast<int32_t>(start - starts);
  return sorted;
}

void embed_backward(Matrix dwte, const Matrix* dwpe, ConstMatrix dout, const int32_t* ids, const int32_t* sorted,
                    int64_t length, cudaStream_t stream) {
  const int64_t c = dout.cols, most = std::min(dout.rows, dwte.rows);  // distinct ids: how many there are, is varying
  if (most > 0) {
    const dim3 grid(grid_of_rows(most).x, static_cast<unsigned>(ceil_div(c, kColumnsOfWarp)));
    Kernel{add_rows_of_ids, grid, kThreads, stream}(dwte.data, dout.data, ids, sorted, dout.rows, c);
  }
  if (dwpe != nullptr && dout.rows > 0) {
    Kernel{add_rows_of_positions, grid_of(length * c), kThreads, stream}(dwpe->data, dwpe->ld, dout.data, length,
                                                                         dout.rows, c);
  }
}

}  // namespace soma::cuda
