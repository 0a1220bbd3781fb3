// Cuts work into ranges: one for each thread, or several in a large job.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"

namespace soma {

constexpr int64_t kWorthAThread =
    16 * 1024;  // floats touched, or multiply-adds / 8: about 5 us of work, the cost of waking a thread

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Threads for a job of `cost`, in the unit above. A small job gets fewer than there are.
inline int64_t threads_for(int64_t cost) {
  return std::min<int64_t>(call_threads(), std::max<int64_t>(1, cost / kWorthAThread));
}

// Parts of a job for each thread. A large job has several, so that a thread on a busy core does fewer.
inline int64_t parts_a_thread(int64_t cost, int64_t threads) {
  constexpr int64_t kMost = 4, kWorthAPart = 20 * kWorthAThread;
  return threads == 1 ? 1 : std::clamp<int64_t>(cost / threads / kWorthAPart, 1, kMost);
}

// How many ranges for_ranges makes of `count` items of `cost` each.
inline int64_t range_count(int64_t count, int64_t cost, int64_t grain) {
  const int64_t threads = threads_for(count * cost);
  return std::min(ceil_div(count, grain), threads * parts_a_thread(count * cost, threads));
}

// Calls f(range, begin, end) for [0, count) cut into `ranges` equal parts, multiples of `grain`. `range` is a slot for
// scratch: two calls with the same `range` never run at the same time.
template <typename F>
void for_numbered_ranges(int64_t count, int64_t ranges, int64_t grain, F&& f) {
  const int64_t grains = ceil_div(count, grain);
  parallel_for(ranges, [&](int64_t i) {
    const int64_t begin = grains * i / ranges * grain, end = std::min(count, grains * (i + 1) / ranges * grain);
    if (begin < end) f(i, begin, end);
  });
}

// Calls f(begin, end) for the ranges of range_count.
template <typename F>
void for_ranges(int64_t count, int64_t cost, int64_t grain, F&& f) {
  for_numbered_ranges(count, range_count(count, cost, grain), grain,
                      [&](int64_t, int64_t begin, int64_t end) { f(begin, end); });
}

}  // namespace soma
