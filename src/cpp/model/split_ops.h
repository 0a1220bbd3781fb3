// The ops of one precision: those of the whole batch, which split their work among the threads, and one for each split
// of the batch, which a thread carries through op after op alone.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "base/parallel.h"
#include "ops/ops.h"
#include "ops/profiled_ops.h"

namespace soma {

class SplitOps {
 public:
  explicit SplitOps(Precision precision) : precision_(precision), whole_(make_cpu_ops(precision)) {}

  Ops& whole() { return profiled_.empty() ? *whole_ : *profiled_[0]; }

  // f(ops, begin, end) for [0, count) cut into `splits` parts: one call with whole() where that is 1, else side by
  // side.
  template <typename F>
  void run(int64_t splits, int64_t count, F&& f) {
    if (splits == 1) return f(whole(), int64_t{0}, count);
    make(splits);
    std::mutex lock;
    std::exception_ptr error;
    parallel_for(splits, [&](int64_t i) {
      try {
        f(split(i), count * i / splits, count * (i + 1) / splits);
      } catch (...) {
        const std::lock_guard<std::mutex> guard(lock);
        error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  }

  // Whether the ops measure themselves from now on. Turning it off forgets what was not taken.
  void profile(bool on);
  // What was measured since the last call; empty while profiling is off. Splits run side by side, so an op's time there
  // is their mean.
  std::vector<OpRecord> take_profile();

 private:
  void make(int64_t splits);
  Ops& split(int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    return profiled_.empty() ? *splits_[at] : *profiled_[at + 1];
  }

  Precision precision_;
  std::unique_ptr<Ops> whole_;
  std::vector<std::unique_ptr<Ops>> splits_;
  std::vector<std::unique_ptr<ProfiledOps>> profiled_;  // while they measure themselves: of the whole, then the splits
};

}  // namespace soma
