// Cutting work into one range per thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"

namespace soma {

constexpr int64_t kWorthAThread =
    16 * 1024;  // floats touched, or multiply-adds / 8: about 5 us of work, what waking costs

// Calls f(begin, end) over [0, count) cut into equal ranges, multiples of `grain`, one per thread; in one piece where
// the whole job, `cost` per item, is too small to share.
template <typename F>
void for_ranges(int64_t count, int64_t cost, int64_t grain, F&& f) {
  if (count <= 0) return;
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t wanted = std::min<int64_t>(num_threads(), std::max<int64_t>(1, count * cost / kWorthAThread));
  const int64_t ranges = std::min(grains, wanted);
  parallel_for(ranges, [&](int64_t i) {
    const int64_t begin = grains * i / ranges * grain, end = std::min(count, grains * (i + 1) / ranges * grain);
    if (begin < end) f(begin, end);
  });
}

}  // namespace soma
