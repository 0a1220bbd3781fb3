// Sums the exponentials of all logits in double precision, and sorts the best of them.
#include "model/token_score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "ops/best.h"

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
  top = std::min(top, size);
  std::vector<int32_t> ids(static_cast<std::size_t>(room_for_best(top, size)));
  int32_t* const end = find_best(ids.data(), top, logits.data(), size, std::numeric_limits<float>::quiet_NaN());
  std::sort(ids.data(), end, [&](int32_t a, int32_t b) { return better(logits.data(), a, b); });
  for (const int32_t* i = ids.data(); i < end; ++i) score.top.emplace_back(*i, logits[*i] - total);
  return score;
}

}  // namespace soma
