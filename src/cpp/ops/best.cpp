// Few logits exceed the worst that is kept, so runs without one pass at the speed of reading.
#include "ops/best.h"

#include <algorithm>

namespace soma {
namespace {

constexpr int64_t kRun = 16;  // logits that are looked at together

}  // namespace

int64_t room_for_best(int64_t count, int64_t n) { return std::min(n, 2 * count + 2 * kRun); }

int32_t* find_best(int32_t* ids, int64_t count, const float* x, int64_t n, float least) {
  int32_t* end = ids;
  const auto drop = [&] {
    std::nth_element(ids, ids + count - 1, end, [x](int32_t a, int32_t b) { return better(x, a, b); });
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
    if (end - ids >= 2 * count + kRun) drop();
  }
  if (end - ids > count) drop();
  return end;
}

}  // namespace soma
