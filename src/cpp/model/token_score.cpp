// Sums the exponentials of all logits in double precision, and sorts the best of them.
#include "model/token_score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace soma {

TokenScore score_token(std::span<const float> logits, int32_t id, int64_t top) {
  const auto size = static_cast<int64_t>(logits.size());
  check(id >= 0 && id < size, "id must be from 0 to ", size - 1, ", got ", id);
  check(top >= 0, "top must be >= 0, got ", top);
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  const double total = most + std::log(sum);
  TokenScore score{logits[static_cast<std::size_t>(id)] - total, {}};
  if (top == 0) return score;
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(top, size));
  std::partial_sort(ids.begin(), end, ids.end(),
                    [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  for (auto i = ids.begin(); i < end; ++i) score.top.emplace_back(*i, logits[*i] - total);
  return score;
}

}  // namespace soma
