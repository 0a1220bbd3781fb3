// The ops of one precision: those of the whole batch, which split their work among the threads, and one for each slice
// of it, which a thread carries through op after op alone.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "base/parallel.h"
#include "ops/ops.h"
#include "ops/profiled_ops.h"

namespace soma {

class SlicedOps {
 public:
  explicit SlicedOps(Precision precision) : precision_(precision), whole_(make_cpu_ops(precision)) {}

  Ops& whole() { return profiled_.empty() ? *whole_ : *profiled_[0]; }

  // f(ops, begin, end) for [0, count) cut into `slices` parts: one call with whole() where that is 1, else side by
  // side.
  template <typename F>
  void run(int64_t slices, int64_t count, F&& f) {
    if (slices == 1) return f(whole(), int64_t{0}, count);
    make(slices);
    std::mutex lock;
    std::exception_ptr error;
    parallel_for(slices, [&](int64_t i) {
      try {
        f(slice(i), count * i / slices, count * (i + 1) / slices);
      } catch (...) {
        const std::lock_guard<std::mutex> guard(lock);
        error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  }

  // Whether the ops measure themselves from now on. Turning it off forgets what was not taken.
  void profile(bool on);
  // What was measured since the last call; empty while profiling is off. Slices run side by side, so an op's time there
  // is their mean.
  std::vector<OpRecord> take_profile();

 private:
  void make(int64_t slices);
  Ops& slice(int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    return profiled_.empty() ? *slices_[at] : *profiled_[at + 1];
  }

  Precision precision_;
  std::unique_ptr<Ops> whole_;
  std::vector<std::unique_ptr<Ops>> slices_;
  std::vector<std::unique_ptr<ProfiledOps>> profiled_;  // while they measure themselves: of the whole, then the slices
};

}  // namespace soma
