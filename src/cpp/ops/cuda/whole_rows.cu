// Steps of an epilogue that need whole rows of C, after the product: SwiGLU and rotary positions. A lane writes where
// it alone has read, so that the result may be C itself.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

// y = silu(gate) up of c = gate | up
__global__ void __launch_bounds__(kThreads) swiglu_rows(Rows y, const float* c, int64_t ld, int64_t rows) {
  const int64_t r = row_of_warp();
  if (r >= rows) return;
  const unsigned lane = threadIdx.x % 32;
  each_two(y.cols, lane, 32, [&](int64_t j, bool both) {
    const float2 gate = read_two(c + r * ld + j, both), up = read_two(c + r * ld + y.cols + j, both);
    y.write(r, j, {silu(gate.x).y * up.x, silu(gate.y).y * up.y}, both);
  });
  y.finish(r, lane, 32);
}

// Number j of a row.
__device__ inline void write_one(float* row, bool pairs, int64_t j, float x) {
  if (pairs) {
    reinterpret_cast<uint16_t*>(row)[j] = static_cast<uint16_t>(pair_of(x, 0.0f));
  } else {
    row[j] = x;
  }
}

// One warp a head of a row, of `heads` in q and `kv` in k; the heads of v are copied.
__global__ void __launch_bounds__(kThreads)
    rotate_rows(Rows y, const float* c, int64_t ld, Rotation rotation, int64_t heads, int64_t kv, int64_t d,
                int64_t length, int64_t rows) {
  const int64_t all = heads + 2 * kv, r = row_of_warp() / all, head = row_of_warp() % all;
  if (r >= rows) return;
  const float *const turn = rotation.turns + r % length * d, *const x = c + r * ld + head * d;
  float* const row = y.row(r);
  const int64_t first = head * d;
  if (head >= heads + kv) {
    for (int64_t i = threadIdx.x % 32; i < d; i += 32) write_one(row, y.pairs, first + i, x[i]);
    return;
  }
  turn_head(x, head < heads ? rotation.q_gain : rotation.k_gain, turn, d, rotation.eps,
            [&](int i, float v) { write_one(row, y.pairs, first + i, v); });
}

}  // namespace

void swiglu(Matrix y, ConstMatrix c, cudaStream_t stream) {
  if (c.rows > 0) Kernel{swiglu_rows, grid_of_rows(c.rows), kThreads, stream}(y, c.data, c.ld, c.rows);
}

void rotate(const RotatedHeads& to, ConstMatrix c, cudaStream_t stream) {
  const AttentionShape& s = to.shape;
  if (c.rows == 0) return;
  Kernel{rotate_rows, grid_of_rows(c.rows * (s.heads + 2 * s.kv_heads)), kThreads, stream}(
      to.qkv, c.data, c.ld, to.rotation, s.heads, s.kv_heads, s.head_size, s.length, c.rows);
}

}  // namespace soma::cuda
