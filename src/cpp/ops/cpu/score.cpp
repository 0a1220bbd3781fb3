// Scores of targets: every row of logits belongs to one thread.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/best.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/ranges.h"

namespace soma {

void CpuOps::score(const RowScores& scores, ConstMatrix logits, const int32_t* targets) {
  const auto& t = active_kernels();
  const int64_t v = logits.cols, top = scores.top, ranges = range_count(logits.rows, 6 * v, 1);
  if (top > 0) reserve_scratch(ranges, room_for_best(top, v));
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
      int32_t* const end = find_best(best, top, row, v, std::numeric_limits<float>::quiet_NaN());
      std::sort(best, end, [row](int32_t a, int32_t b) { return better(row, a, b); });
      for (int64_t i = 0; i < top; ++i) {
        out.top_ids[i] = best[i];
        out.top_logprobs[i] = logprob(row[best[i]]);
      }
    }
  });
}

}  // namespace soma
