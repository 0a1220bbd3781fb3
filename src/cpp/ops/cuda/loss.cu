// Softmax, cross entropy and scores: one block a row. The first pass makes maximum and sum of exponentials at once
// (Milakov and Gimelshein 2018), the second one writes the gradient.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

constexpr float kLowest = -3.402823466e38f;

// Of numbers x: their maximum, and the sums of e^(x - max), of q (ln q - x) and of q.
struct Stats {
  float max = kLowest, sum = 0.0f, divergence = 0.0f, taught = 0.0f;
};

__device__ inline Stats joined(Stats a, Stats b) {
  const float max = larger(a.max, b.max);
  return {max, a.sum * exp_of(a.max - max) + b.sum * exp_of(b.max - max), a.divergence + b.divergence,
          a.taught + b.taught};
}

__device__ inline Stats of_other_lane(Stats s, int lanes) {
  return {__shfl_xor_sync(kAllLanes, s.max, lanes), __shfl_xor_sync(kAllLanes, s.sum, lanes),
          __shfl_xor_sync(kAllLanes, s.divergence, lanes), __shfl_xor_sync(kAllLanes, s.taught, lanes)};
}

// Of the row of a block, for all its threads. q may be null. An infinite sum or a NaN stays one.
__device__ inline Stats row_stats(const float* x, const float* q, int64_t n) {
  Stats s;
  const auto take = [&](float v) {
    const float max = larger(v, s.max);
    s.sum = v > s.max ? s.sum * exp_of(s.max - max) + 1.0f : s.sum + exp_of(v - max);
    s.max = max;
  };
  const auto teach = [&](float p, float v) {
    s.divergence += p * (log_of(p) - v);
    s.taught += p;
  };
  each_two(n, threadIdx.x, kThreads, [&](int64_t j, bool both) {
    const float2 v = read_two(x + j, both);
    take(v.x);
    if (both) take(v.y);
    if (q == nullptr) return;
    const float2 p = read_two(q + j, both);
    teach(p.x, v.x);
    if (both) teach(p.y, v.y);
  });
  // Both lanes of a pair join the lower lane's first, so that all lanes have the same bits.
  const unsigned lane = threadIdx.x % 32;
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const Stats other = of_other_lane(s, lanes);
    s = (lane & static_cast<unsigned>(lanes)) == 0 ? joined(s, other) : joined(other, s);
  }
  SOMA_SHARED(float, of_warps, 4 * kWarps);
  if (lane == 0) {
    float* const mine = of_warps + threadIdx.x / 32 * 4;
    mine[0] = s.max, mine[1] = s.sum, mine[2] = s.divergence, mine[3] = s.taught;
  }
  __syncthreads();
  Stats all;
  for (const float* w = of_warps; w < of_warps + 4 * kWarps; w += 4) all = joined(all, {w[0], w[1], w[2], w[3]});
  return all;
}

// What a row loses, and grad_scale (softmax - (1 - share) onehot - share q) as its gradient, if grad_scale is not 0.
__global__ void __launch_bounds__(kThreads)
    cross_entropy_rows(float* losses, const float* logits, int64_t ld, int64_t n, const float* q, int64_t ld_q,
                       const int32_t* targets, float share, Varying<float> gradient_scale, Rows gradient) {
  const int64_t r = blockIdx.x;
  const float *const row = logits + r * ld, *const taught = q != nullptr ? q + r * ld_q : nullptr;
  const int32_t target = targets[r];
  const bool ignored = target == kIgnoredTarget;
  Stats s;
  if (!ignored) s = row_stats(row, taught, n);
  if (threadIdx.x == 0) {
    float loss = 0.0f;
    if (!ignored) {
      loss = (1.0f - share) * (s.max - row[target]) + log_of(s.sum);
      if (taught != nullptr) loss += share * (s.divergence + s.max * s.taught);
    }
    losses[r] = loss;
  }
  const float grad_scale = gradient_scale.get();
  if (grad_scale == 0.0f) return;
  __syncthreads();  // row[target] is read
  const float factor = grad_scale / s.sum, hard = grad_scale * (1.0f - share), soft = -grad_scale * share;
  each_two(n, threadIdx.x, kThreads, [&](int64_t j, bool both) {
    float2 g{0, 0};
    if (!ignored) {
      const float2 v = read_two(row + j, both);
      g = {exp_of(v.x - s.max) * factor, exp_of(v.y - s.max) * factor};
      if (taught != nullptr) {
        const float2 p = read_two(taught + j, both);
        g = {fmaf(soft, p.x, g.x), fmaf(soft, p.y, g.y)};
      }
      if (j == target) g.x -= hard;
      if (j + 1 == target) g.y -= hard;
    }
    gradient.write(r, j, g, both);
  });
  gradient.finish(r, threadIdx.x, kThreads);
}

__global__ void __launch_bounds__(kThreads)
    add_softmax_rows(float* q, int64_t ld_q, const float* logits, int64_t ld, int64_t n, float share, bool onto) {
  float* const to = q + blockIdx.x * ld_q;
  const float* const row = logits + blockIdx.x * ld;
  const Stats s = row_stats(row, nullptr, n);
  const float factor = share / s.sum;
  each_two(n, threadIdx.x, kThreads, [&](int64_t j, bool both) {
    const float2 v = read_two(row + j, both);
    float2 p{exp_of(v.x - s.max) * factor, exp_of(v.y - s.max) * factor};
    if (onto) {
      const float2 before = read_two(to + j, both);
      p = {before.x + p.x, before.y + p.y};
    }
    write_two(to + j, p, both);
  });
}

// A logit and its id. A NaN is not better than any.
struct Choice {
  float logit;
  int32_t id;
};

__device__ inline bool better(Choice a, Choice b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

// The best ids are found one after the other: few are asked for.
__global__ void __launch_bounds__(kThreads)
    score_rows(RowScores scores, const float* logits, int64_t ld, int64_t n, const int32_t* targets) {
  const int64_t r = blockIdx.x;
  const float* const row = logits + r * ld;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Stats s = row_stats(row, nullptr, n);
  const float log_sum = log_of(s.sum);
  const Choice target{row[targets[r]], targets[r]};
  const auto each = [&](auto take) {
    for (int64_t j = threadIdx.x; j < n; j += kThreads) take(Choice{row[j], static_cast<int32_t>(j)});
  };
  float count = 0.0f;  // exact
  each([&](Choice c) { count += better(c, target) ? 1.0f : 0.0f; });
  count = warp_sum(count);
  SOMA_SHARED(float, counts, kWarps);
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t rank = 1;
    for (const float of_warp : counts) rank += static_cast<int32_t>(of_warp);
    scores.ranks[r] = rank;
    scores.logprobs[r] = (target.logit - s.max) - log_sum;
  }
  SOMA_SHARED(Choice, choices, kWarps);
  Choice last{INFINITY, -1};
  for (int64_t i = r * scores.top; i < (r + 1) * scores.top; ++i) {
    Choice best{-INFINITY, 0x7fffffff};  // no logit is worse
    const auto join = [&](Choice c) { best = better(c, best) ? c : best; };
    each([&](Choice c) {
      if (better(last, c)) join(c);
    });
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      join({__shfl_xor_sync(kAllLanes, best.logit, lanes), __shfl_xor_sync(kAllLanes, best.id, lanes)});
    }
    if (lane == 0) choices[warp] = best;
    __syncthreads();
    for (const Choice& of_warp : choices) join(of_warp);
    last = best;
    if (threadIdx.x == 0) {
      scores.top_ids[i] = best.id;
      scores.top_logprobs[i] = (best.logit - s.max) - log_sum;
    }
    __syncthreads();  // all have read `choices`
  }
}

dim3 one_block_a_row(int64_t rows) { return dim3(static_cast<unsigned>(rows)); }

}  // namespace

void cross_entropy(float* losses, Matrix logits, const int32_t* targets, float grad_scale, Matrix gradient,
                   cudaStream_t stream) {
  if (logits.rows == 0) return;
  Kernel{cross_entropy_rows, one_block_a_row(logits.rows), kThreads, stream}(
      losses, logits.data, logits.ld, logits.cols, nullptr, 0, targets, 0.0f, grad_scale, gradient);
}

void soft_cross_entropy(float* losses, Matrix logits, ConstMatrix q, const int32_t* targets, float share,
                        float grad_scale, Matrix gradient, cudaStream_t stream) {
  if (logits.rows == 0) return;
  Kernel{cross_entropy_rows, one_block_a_row(logits.rows), kThreads, stream}(
      losses, logits.data, logits.ld, logits.cols, q.data, q.ld, targets, share, grad_scale, gradient);
}

void add_softmax(Matrix q, Matrix logits, float share, bool onto, cudaStream_t stream) {
  if (logits.rows == 0) return;
  Kernel{add_softmax_rows, one_block_a_row(logits.rows), kThreads, stream}(q.data, q.ld, logits.data, logits.ld,
                                                                           logits.cols, share, onto);
}

void score(const RowScores& scores, ConstMatrix logits, const int32_t* targets, cudaStream_t stream) {
  if (logits.rows == 0) return;
  Kernel{score_rows, one_block_a_row(logits.rows), kThreads, stream}(scores, logits.data, logits.ld, logits.cols,
                                                                     targets);
}

}  // namespace soma::cuda
