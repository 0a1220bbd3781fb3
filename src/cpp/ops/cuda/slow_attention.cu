// Attention from its definition, one number of a result a thread.
#include <stdexcept>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/epilogue.h"

namespace soma::cuda {
namespace {

// q | k | v of one head of queries of one sequence.
struct Head {
  Source qkv;
  int64_t first, q, k, v, d;  // its first row and columns
  float scale;

  __device__ Head(const Source& x, const AttentionShape& s, int64_t b, int64_t h)
      : qkv(x),
        first(b * s.length),
        q(h * s.head_size),
        k((s.heads + h / (s.heads / s.kv_heads)) * s.head_size),
        v((s.heads + s.kv_heads + h / (s.heads / s.kv_heads)) * s.head_size),
        d(s.head_size),
        scale(s.scale) {}
  __device__ float at(int64_t t, int64_t col) const {
    const int64_t even = col / 2 * 2;
    if (!qkv.pairs) return qkv.data[(first + t) * qkv.ld + col];
    const float2 two = qkv.read(first + t, even, true);
    return col == even ? two.x : two.y;
  }
  __device__ float score(int64_t t, int64_t j) const {
    float sum = 0;
    for (int64_t i = 0; i < d; ++i) sum = fmaf(at(t, q + i), at(j, k + i), sum);
    return scale * sum;
  }
};

__global__ void __launch_bounds__(kThreads) attend(Rows out, float* lse, Source qkv, AttentionShape s, int64_t count) {
  const int64_t i = index_of_thread();
  if (i >= count) return;
  const int64_t col = i % s.head_size, t = i / s.head_size % s.length;
  const int64_t h = i / s.head_size / s.length % s.heads, b = i / s.head_size / s.length / s.heads;
  const Head head(qkv, s, b, h);
  float most = -3e38f, sum = 0, mixed = 0;
  for (int64_t j = 0; j <= t; ++j) most = larger(most, head.score(t, j));
  for (int64_t j = 0; j <= t; ++j) {
    const float p = exp_of(head.score(t, j) - most);
    sum += p;
    mixed = fmaf(p, head.at(j, head.v + col), mixed);
  }
  out.row(head.first + t)[head.q + col] = mixed / sum;
  if (col == 0) lse[(b * s.heads + h) * s.length + t] = most + log_of(sum);
}

struct Backward {
  Source qkv, dout, out;
  const float* lse;
  AttentionShape s;

  // The probability of key j for query t, and the gradient of the score.
  __device__ float2 of(const Head& head, int64_t b, int64_t h, int64_t t, int64_t j) const {
    const float p = exp_of(head.score(t, j) - lse[(b * s.heads + h) * s.length + t]);
    float dp = 0, mean = 0;
    for (int64_t i = 0; i < head.d; ++i) {
      const float g = dout.data[(head.first + t) * dout.ld + head.q + i];
      dp = fmaf(g, head.at(j, head.v + i), dp);
      mean = fmaf(g, out.data[(head.first + t) * out.ld + head.q + i], mean);
    }
    return {p, p * (dp - mean) * s.scale};
  }
  // The number in row t, column col of the gradient of q | k | v.
  __device__ float number(int64_t b, int64_t t, int64_t col) const {
    const int64_t d = s.head_size, which = col / d, i = col % d, shared = s.heads / s.kv_heads;
    float sum = 0;
    if (which < s.heads) {
      const Head head(qkv, s, b, which);
      for (int64_t j = 0; j <= t; ++j) sum = fmaf(of(head, b, which, t, j).y, head.at(j, head.k + i), sum);
      return sum;
    }
    const bool of_v = which >= s.heads + s.kv_heads;
    const int64_t first = (which - s.heads - (of_v ? s.kv_heads : 0)) * shared;
    for (int64_t h = first; h < first + shared; ++h) {
      const Head head(qkv, s, b, h);
      for (int64_t j = t; j < s.length; ++j) {
        const float2 g = of(head, b, h, j, t);
        sum = of_v ? fmaf(g.x, dout.data[(head.first + j) * dout.ld + head.q + i], sum)
                   : fmaf(g.y, head.at(j, head.q + i), sum);
      }
    }
    return sum;
  }
};

__global__ void __launch_bounds__(kThreads) attend_backward(Rows dqkv, Backward back, int64_t rows) {
  const int64_t i = index_of_thread(), half = (dqkv.cols + 1) / 2, r = i / half, col = i % half * 2;
  if (r >= rows) return;
  const int64_t b = r / back.s.length, t = r % back.s.length;
  const bool both = col + 1 < dqkv.cols;
  dqkv.write(r, col, {back.number(b, t, col), both ? back.number(b, t, col + 1) : 0.0f}, both);
}

__global__ void __launch_bounds__(kThreads) clear_behind(Rows y, int64_t rows) {
  const int64_t r = row_of_warp();
  if (r < rows) y.finish(r, threadIdx.x % 32, 32);
}

}  // namespace

void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& s, Precision, cudaStream_t stream) {
  const int64_t count = s.batch * s.heads * s.length * s.head_size;
  Kernel{attend, grid_of(count), kThreads, stream}(out, lse, qkv, s, count);
}

int64_t attention_backward_floats(const AttentionShape&, Precision, bool) { return 0; }

void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                        const AttentionShape& s, const RotationGradient* rotated, Precision, float*,
                        cudaStream_t stream) {
  if (rotated != nullptr) throw std::invalid_argument("CUDA: no gradient of rotary positions yet");
  const Backward back{qkv, dout, out, lse, s};
  const Rows y = dqkv;
  Kernel{attend_backward, grid_of(dqkv.rows * ((dqkv.cols + 1) / 2)), kThreads, stream}(y, back, dqkv.rows);
  if (y.pairs) Kernel{clear_behind, grid_of_rows(dqkv.rows), kThreads, stream}(y, dqkv.rows);
}

}  // namespace soma::cuda
