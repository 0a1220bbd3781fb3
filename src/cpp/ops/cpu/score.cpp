// Scores of targets: every row of logits belongs to one thread.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/ranges.h"

namespace soma {
namespace {

constexpr int64_t kRun = 16;  // logits that are looked at together

// The most ids that find_best keeps at a time.
int64_t most_kept(int64_t count) { return 2 * count + 2 * kRun; }

// ids(count) = the best of the row x, which has no NaN. Few logits exceed the worst that is kept, so runs without one
// pass at the speed of reading.
void find_best(int32_t* ids, int64_t count, const float* x, int64_t n) {
  const auto better = [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
  float least = std::numeric_limits<float>::quiet_NaN();  // which every logit exceeds
  int32_t* end = ids;
  const auto drop = [&] {
    std::nth_element(ids, ids + count - 1, end, better);
    end = ids + count;
    least = x[end[-1]];
  };
  for (int64_t run = 0; run < n; run += kRun) {
    const int64_t stop = std::min(n, run + kRun);
    int above = 0;
    for (int64_t i = run; i < stop; ++i) above |= static_cast<int>(!(x[i] <= least));
    if (above == 0) continue;
    for (int64_t i = run; i < stop; ++i) {
      if (!(x[i] <= least)) *end++ = static_cast<int32_t>(i);
    }
    if (end - ids >= most_kept(count) - kRun) drop();
  }
  if (end - ids > count) drop();
  std::sort(ids, end, better);
}

}  // namespace

void CpuOps::score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) {
  const auto& t = active_kernels();
  const int64_t v = logits.cols, top = scores.top, ranges = range_count(logits.rows, 6 * v, 1);
  if (top > 0) reserve_scratch(ranges, most_kept(top));
  for_numbered_ranges(logits.rows, ranges, 1, [&](int64_t range, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const row = logits.at(r, 0);
      const RowScores out = scores.from(r);
      float max = 0.0f, sum = 0.0f;
      t.max_sum_exp(row, v, &max, &sum);
      const double log_sum = std::log(static_cast<double>(sum));
      const auto logprob = [&](float logit) {
        return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - log_sum);
      };
      *out.logprobs = logprob(row[targets[r]]);
      *out.ranks = 1 + static_cast<int32_t>(t.count_better(row, v, targets[r]));
      if (top == 0 || !std::isfinite(sum)) continue;
      auto* const best = reinterpret_cast<int32_t*>(scratch(range));
      find_best(best, top, row, v);
      for (int64_t i = 0; i < top; ++i) {
        out.top_ids[i] = best[i];
        out.top_logprobs[i] = logprob(row[best[i]]);
      }
    }
  });
}

}  // namespace soma
