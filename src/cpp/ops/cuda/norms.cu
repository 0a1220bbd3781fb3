// LayerNorm and RMSNorm with their gradients: one warp a row. Gradients of gains and shifts are sums over rows, first
// over the rows of a block, then over the blocks, both in order.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

// y = (x - mean) rstd gamma + beta; RMSNorm has neither mean nor beta
__global__ void __launch_bounds__(kThreads)
    norm_rows(Rows y, NormStats saved, const float* x, int64_t ld, NormWeights w, float eps, int64_t rows) {
  const int64_t r = row_of_warp(), c = y.cols;
  if (r >= rows) return;
  const float *const row = x + r * ld, count = static_cast<float>(c);
  const bool centred = w.kind == NormKind::kLayerNorm;
  float mean = 0.0f;
  if (centred) {
    mean = row_sum(c,
                   [&](int64_t j, bool both) {
                     const float2 v = read_two(row + j, both);
                     return v.x + v.y;
                   }) /
           count;
  }
  const float variance = row_sum(c,
                                 [&](int64_t j, bool both) {
                                   const float2 v = read_two(row + j, both);
                                   const float first = v.x - mean, second = both ? v.y - mean : 0.0f;
                                   return first * first + second * second;
                                 }) /
                         count;
  const float rstd = 1.0f / sqrtf(variance + eps);
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) {
    if (saved.mean != nullptr && centred) saved.mean[r] = mean;
    if (saved.rstd != nullptr) saved.rstd[r] = rstd;
  }
  each_two(c, lane, 32, [&](int64_t j, bool both) {
    const float2 v = read_two(row + j, both);
    float2 normed{(v.x - mean) * rstd, (v.y - mean) * rstd};
    if (w.gamma != nullptr) {
      const float2 gamma = read_two(w.gamma + j, both), beta = centred ? read_two(w.beta + j, both) : float2{0, 0};
      normed = centred ? float2{fmaf(normed.x, gamma.x, beta.x), fmaf(normed.y, gamma.y, beta.y)}
                       : float2{normed.x * gamma.x, normed.y * gamma.y};
    }
    y.write(r, j, normed, both);
  });
  y.finish(r, lane, 32);
}

// g = dy gamma; dx = residual + rstd (g - mean(g) - xhat mean(g xhat)); y = xhat gamma + beta again. RMSNorm: without
// mean(g) and beta.
__global__ void __launch_bounds__(kThreads)
    norm_rows_backward(Rows dx, Rows y, const float* dy, const float* x, NormStats saved, NormWeights w,
                       const float* residual, int64_t rows) {
  const int64_t r = row_of_warp(), c = dx.cols;
  if (r >= rows) return;
  const bool centred = w.kind == NormKind::kLayerNorm;
  const float rstd = saved.rstd[r], mean = saved.mean != nullptr && centred ? saved.mean[r] : 0.0f;
  const float unit = centred && saved.mean == nullptr ? 1.0f : rstd;  // without means, x is normalised
  const float per_element = 1.0f / static_cast<float>(c);
  const auto xhat = [&](int64_t j, bool both) {
    const float2 v = read_two(x + r * c + j, both);
    return float2{(v.x - mean) * unit, (v.y - mean) * unit};
  };
  const auto g = [&](int64_t j, bool both) {
    float2 v = read_two(dy + r * c + j, both);
    if (w.gamma == nullptr) return v;
    const float2 gamma = read_two(w.gamma + j, both);
    return float2{v.x * gamma.x, v.y * gamma.y};
  };
  float mean_g = 0.0f;
  if (centred) {
    mean_g = row_sum(c,
                     [&](int64_t j, bool both) {
                       const float2 v = g(j, both);
                       return v.x + v.y;
                     }) *
             per_element;
  }
  const float mean_gx = row_sum(c,
                                [&](int64_t j, bool both) {
                                  const float2 a = g(j, both), b = xhat(j, both);
                                  return a.x * b.x + (both ? a.y * b.y : 0.0f);
                                }) *
                        per_element;
  const unsigned lane = threadIdx.x % 32;
  each_two(c, lane, 32, [&](int64_t j, bool both) {
    const float2 normed = xhat(j, both), d = g(j, both);
    float2 v{rstd * ((d.x - mean_g) - normed.x * mean_gx), rstd * ((d.y - mean_g) - normed.y * mean_gx)};
    if (residual != nullptr) {
      const float2 more = read_two(residual + r * c + j, both);
      v = {v.x + more.x, v.y + more.y};
    }
    dx.write(r, j, v, both);
    if (y.data == nullptr) return;
    float2 again = normed;
    if (w.gamma != nullptr) {
      const float2 gamma = read_two(w.gamma + j, both);
      const float2 beta = centred && w.beta != nullptr ? read_two(w.beta + j, both) : float2{0, 0};
      again = centred ? float2{fmaf(normed.x, gamma.x, beta.x), fmaf(normed.y, gamma.y, beta.y)}
                      : float2{normed.x * gamma.x, normed.y * gamma.y};
    }
    y.write(r, j, again, both);
  });
  if (y.data != nullptr) y.finish(r, lane, 32);
}

constexpr int64_t kRowsOfBlock = 128;  // whose sums one block makes

// partials (blocks, 2, c): the sums over the block's rows of dy xhat and of dy. A thread has one column.
__global__ void __launch_bounds__(kThreads)
    norm_grad_blocks(float* partials, const float* dy, const float* x, NormStats saved, bool centred, int64_t rows,
                     int64_t c, int64_t ld) {
  const int64_t j = index_of_thread(), block = blockIdx.y;
  if (j >= c) return;
  const int64_t end = rows < (block + 1) * kRowsOfBlock ? rows : (block + 1) * kRowsOfBlock;
  float dgamma = 0.0f, dbeta = 0.0f;
  for (int64_t r = block * kRowsOfBlock; r < end; ++r) {
    const float d = dy[r * ld + j], v = x[r * ld + j];
    dgamma = fmaf(d, (centred ? v - saved.mean[r] : v) * saved.rstd[r], dgamma);
    dbeta += d;
  }
  partials[block * 2 * c + j] = dgamma;
  partials[block * 2 * c + c + j] = dbeta;
}

__global__ void __launch_bounds__(kThreads)
    norm_grad_sums(float* dgamma, float* dbeta, const float* partials, int64_t blocks, int64_t c) {
  const int64_t j = index_of_thread();
  if (j >= c) return;
  float gamma = dgamma[j], beta = dbeta != nullptr ? dbeta[j] : 0.0f;
  for (int64_t b = 0; b < blocks; ++b) {
    gamma += partials[b * 2 * c + j];
    beta += partials[b * 2 * c + c + j];
  }
  dgamma[j] = gamma;
  if (dbeta != nullptr) dbeta[j] = beta;
}

}  // namespace

void norm(Matrix y, NormStats saved, ConstMatrix x, const NormWeights& w, float eps, cudaStream_t stream) {
  if (x.rows == 0) return;
  Kernel{norm_rows, grid_of_rows(x.rows), kThreads, stream}(y, saved, x.data, x.ld, w, eps, x.rows);
}

void norm_backward(Matrix dx, ConstMatrix dy, ConstMatrix x, NormStats saved, const NormWeights& w,
                   const float* residual, const Matrix* again, cudaStream_t stream) {
  if (x.rows == 0) return;
  Kernel{norm_rows_backward, grid_of_rows(x.rows), kThreads, stream}(dx, again != nullptr ? Rows(*again) : Rows(),
                                                                     dy.data, x.data, saved, w, residual, x.rows);
}

int64_t norm_grad_floats(int64_t rows, int64_t cols) { return 2 * ceil_div(rows, kRowsOfBlock) * cols; }

void norm_grad(float* dgamma, float* dbeta, ConstMatrix dy, ConstMatrix x, NormStats saved, NormKind kind,
               float* partials, cudaStream_t stream) {
  if (x.rows == 0) return;
  const bool centred = kind == NormKind::kLayerNorm;
  const int64_t blocks = ceil_div(x.rows, kRowsOfBlock);
  const unsigned across = grid_of(x.cols).x;
  Kernel{norm_grad_blocks, dim3(across, static_cast<unsigned>(blocks)), kThreads, stream}(
      partials, dy.data, x.data, saved, centred, x.rows, x.cols, x.ld);
  Kernel{norm_grad_sums, dim3(across), kThreads, stream}(dgamma, centred ? dbeta : nullptr, partials, blocks, x.cols);
}

}  // namespace soma::cuda
