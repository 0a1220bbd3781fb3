// Passes of optimizers over parameters: one thread a number. Sums of squares are in double, in one order.
#include <cmath>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

constexpr int64_t kRun = 16 * 1024;  // numbers whose squares one block sums
constexpr int64_t kOfThread = 4;     // numbers of a thread of adamw
constexpr int kMostRanges = 64;      // of a launch: arguments of a kernel have 4 KB

// The sum over a block, for its first thread.
__device__ inline double block_sum(double x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  SOMA_SHARED(double, of_warps, kWarps);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (unsigned w = 0; w < kWarps; ++w) sum += of_warps[w];
  return sum;
}

__global__ void __launch_bounds__(kThreads) sum_squares_of_run(double* partials, const float* x, int64_t n) {
  const int64_t first = blockIdx.x * kRun, end = first + kRun < n ? first + kRun : n;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) sum += static_cast<double>(x[i]) * x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_doubles(double* out, const double* x, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

// The factor of the gradient beyond a norm of `most` (<= 0: none); 0 where the norm is not finite.
__global__ void clip_norm(Clip* clip, const double* squares, double most) {
  const double norm = sqrt(*squares);
  const bool finite = norm - norm == 0;
  const double factor = most > 0 ? most / (norm + 1e-6) : 1;
  *clip = {norm, finite ? static_cast<float>(factor < 1 ? factor : 1) : 0.0f};
}

struct AdamWStep {
  float beta1, beta2, eps, grad_scale;
  float decay, rate, correction;  // lr weight_decay; lr / (1 - beta1^t); 1 / sqrt(1 - beta2^t)
  bool cautious;
};

// Ranges of parameters, and the first block of each; a block has numbers of one range.
struct Ranges {
  int count;
  int64_t offset[kMostRanges], size[kMostRanges], before[kMostRanges];  // before: second moments of earlier ranges
  unsigned first_block[kMostRanges];
  bool decays[kMostRanges];
};

__device__ inline float not_negative(float x, float a) { return x < 0.0f ? 0.0f : a; }

__global__ void __launch_bounds__(kThreads)
    adamw_ranges(float* p, float* g, float* m, float* v, Ranges ranges, AdamWStep s, const Clip* clip) {
  if (clip != nullptr) {
    if (!(clip->norm - clip->norm == 0)) return;
    s.grad_scale = clip->scale;
  }
  int k = 0;
  for (int step = kMostRanges / 2; step > 0; step /= 2) {
    if (k + step < ranges.count && ranges.first_block[k + step] <= blockIdx.x) k += step;
  }
  const int64_t first = static_cast<int64_t>(blockIdx.x - ranges.first_block[k]) * kThreads * kOfThread + threadIdx.x;
  const float decay = ranges.decays[k] ? s.decay : 0.0f, kept = 1.0f - decay;
  for (int64_t j = 0; j < kOfThread; ++j) {
    const int64_t at = first + j * kThreads;
    if (at >= ranges.size[k]) return;
    const int64_t i = ranges.offset[k] + at, iv = ranges.before[k] + at;
    const float grad = g[i] * s.grad_scale, before = p[i];
    const float mean = flushed(fmaf(1.0f - s.beta1, grad, s.beta1 * m[i]));
    const float square = flushed(fmaf(1.0f - s.beta2, grad * grad, s.beta2 * v[iv]));
    const float rest = s.cautious ? before - not_negative(mean * before, decay * before) : before * kept;
    p[i] = rest - s.rate * (mean / fmaf(sqrtf(square), s.correction, s.eps));
    m[i] = mean;
    v[iv] = square;
    g[i] = 0.0f;
  }
}

// One block a row.
__global__ void __launch_bounds__(kThreads)
    muon_momentum_rows(double* partials, Rows g, Rows m, Varying<float> by, Varying<float> grad_scale) {
  const float momentum = by.get(), scale = grad_scale.get();
  float *const grads = g.row(blockIdx.x), *const moments = m.row(blockIdx.x);
  double sum = 0;
  for (int64_t j = threadIdx.x; j < g.cols; j += kThreads) {
    const float grad = (1.0f - momentum) * (grads[j] * scale);
    const float first = flushed(fmaf(momentum, moments[j], grad)), made = fmaf(momentum, first, grad);
    moments[j] = first;
    grads[j] = made;
    sum += static_cast<double>(made) * made;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// With `squares`: by their factor in Ops::muon_direction.
__global__ void __launch_bounds__(kThreads)
    scale_rows(Rows y, const float* x, int64_t ld, float s, const double* squares, int64_t rows) {
  const int64_t r = row_of_warp();
  if (r >= rows) return;
  if (squares != nullptr) s = static_cast<float>(1.0 / (1.01 * sqrt(*squares) + 1e-6));
  const unsigned lane = threadIdx.x % 32;
  each_two(y.cols, lane, 32, [&](int64_t j, bool both) {
    const float2 v = read_two(x + r * ld + j, both);
    y.write(r, j, {v.x * s, v.y * s}, both);
  });
  y.finish(r, lane, 32);
}

// decay = lr weight_decay, rate = lr scale
__global__ void __launch_bounds__(kThreads)
    muon_rows(Rows p, Rows o, Varying<float> of_p, Varying<float> of_o, bool cautious) {
  const float decay = of_p.get(), rate = of_o.get();
  const int64_t r = blockIdx.x;
  for (int64_t j = threadIdx.x; j < p.cols; j += kThreads) {
    const float before = p.row(r)[j], factor = o.row(r)[j];
    const float rest = cautious ? before - not_negative(factor * before, decay * before) : before * (1.0f - decay);
    p.row(r)[j] = rest - rate * factor;
    o.row(r)[j] = 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads) exchange_numbers(float* a, float* b, int64_t n) {
  const int64_t i = index_of_thread();
  if (i >= n) return;
  const float kept = a[i];
  a[i] = b[i];
  b[i] = kept;
}

__global__ void __launch_bounds__(kThreads) average_numbers(float* y, const float* x, float rate, int64_t n) {
  const int64_t i = index_of_thread();
  if (i < n) y[i] = rate == 1.0f ? x[i] : fmaf(rate, x[i] - y[i], y[i]);
}

dim3 one_block_a_row(int64_t rows) { return dim3(static_cast<unsigned>(rows)); }

}  // namespace

int64_t sum_squares_doubles(int64_t n) { return ceil_div(n, kRun); }

void sum_squares(double* sum, const float* x, int64_t n, double* partials, cudaStream_t stream) {
  const int64_t runs = ceil_div(n, kRun);
  if (runs > 0) Kernel{sum_squares_of_run, one_block_a_row(runs), kThreads, stream}(partials, x, n);
  Kernel{add_doubles, dim3(1), kThreads, stream}(sum, partials, runs);
}

void clip(Clip* clip, const double* squares, double most, cudaStream_t stream) {
  Kernel{clip_norm, dim3(1), 1, stream}(clip, squares, most);
}

void adamw(float* p, float* g, float* m, float* v, const AdamWRange* list, int64_t count, const AdamWOptions& o,
           const Clip* clip, cudaStream_t stream) {
  const auto rest = [&](float beta) { return 1.0 - std::pow(static_cast<double>(beta), static_cast<double>(o.step)); };
  const AdamWStep step{.beta1 = o.beta1,
                       .beta2 = o.beta2,
                       .eps = o.eps,
                       .grad_scale = o.grad_scale,
                       .decay = o.lr * o.weight_decay,
                       .rate = o.lr / static_cast<float>(rest(o.beta1)),
                       .correction = 1.0f / static_cast<float>(std::sqrt(rest(o.beta2))),
                       .cautious = o.cautious};
  Ranges ranges{};
  int64_t before = 0, blocks = 0;
  const auto launch = [&] {
    if (blocks > 0) Kernel{adamw_ranges, one_block_a_row(blocks), kThreads, stream}(p, g, m, v, ranges, step, clip);
    ranges.count = 0;
    blocks = 0;
  };
  for (const AdamWRange* r = list; r < list + count; before += r->size, ++r) {
    if (r->size == 0) continue;
    if (ranges.count == kMostRanges) launch();
    const int k = ranges.count++;
    ranges.offset[k] = r->offset;
    ranges.size[k] = r->size;
    ranges.before[k] = before;
    ranges.decays[k] = r->decays;
    ranges.first_block[k] = static_cast<unsigned>(blocks);
    blocks += ceil_div(r->size, kThreads * kOfThread);
  }
  launch();
}

void muon_momentum(double* sum, Matrix g, Matrix m, float momentum, float scale, double* partials,
                   cudaStream_t stream) {
  if (g.rows > 0) {
    Kernel{muon_momentum_rows, one_block_a_row(g.rows), kThreads, stream}(partials, g, m, momentum, scale);
  }
  Kernel{add_doubles, dim3(1), kThreads, stream}(sum, partials, g.rows);
}

void scale(Matrix y, ConstMatrix x, float s, cudaStream_t stream) {
  if (x.rows > 0) Kernel{scale_rows, grid_of_rows(x.rows), kThreads, stream}(y, x.data, x.ld, s, nullptr, x.rows);
}

void muon_direction(Matrix x, ConstMatrix g, const double* squares, cudaStream_t stream) {
  if (g.rows > 0) Kernel{scale_rows, grid_of_rows(g.rows), kThreads, stream}(x, g.data, g.ld, 0, squares, g.rows);
}

void muon(Matrix p, Matrix o, const MuonOptions& options, cudaStream_t stream) {
  if (p.rows == 0) return;
  Kernel{muon_rows, one_block_a_row(p.rows), kThreads, stream}(p, o, options.lr * options.weight_decay,
                                                               options.lr * options.scale, options.cautious);
}

void exchange(float* a, float* b, int64_t n, cudaStream_t stream) {
  if (n > 0) Kernel{exchange_numbers, grid_of(n), kThreads, stream}(a, b, n);
}

void average(float* y, const float* x, float rate, int64_t n, cudaStream_t stream) {
  if (n > 0) Kernel{average_numbers, grid_of(n), kThreads, stream}(y, x, rate, n);
}

}  // namespace soma::cuda
