// The ops of one precision. The ops of the whole batch divide their work among the threads. Each batch split has ops of
// its own, with which one thread runs op after op alone.
#pragma once

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/parallel.h"
#include "ops/device.h"
#include "ops/profiled_ops.h"

namespace soma {

class SplitOps {
 public:
  SplitOps(Device& device, Precision precision)
      : device_(device), precision_(precision), whole_(device.make_ops(precision)) {}

  Ops& whole() { return profiled_.empty() ? *whole_ : *profiled_[0]; }

  // Calls f(ops, begin, end) for [0, count) cut into `splits` parts, side by side. A single part runs with whole().
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

  // f(ops, number, i) for every i of [0, count), side by side. Ops and their number, which is below splits(),
  // serve one call at a time.
  template <typename F>
  void each(int64_t count, F&& f) {
    std::vector<int64_t> idle;
    for (int64_t i = std::min(count, device_.splits()); i-- > 0;) idle.push_back(i);
    make(static_cast<int64_t>(idle.size()));
    std::mutex lock;
    std::exception_ptr error;
    const auto take = [&] {  // there may be more threads than numbers, where other calls have ended meanwhile
      for (;; std::this_thread::yield()) {
        const std::lock_guard<std::mutex> guard(lock);
        if (idle.empty()) continue;
        const int64_t number = idle.back();
        idle.pop_back();
        return number;
      }
    };
    parallel_for(count, [&](int64_t i) {
      const int64_t number = take();
      std::exception_ptr thrown;
      try {
        f(split(number), number, i);
      } catch (...) {
        thrown = std::current_exception();
      }
      const std::lock_guard<std::mutex> guard(lock);
      idle.push_back(number);
      if (thrown) error = thrown;
    });
    if (error) std::rethrow_exception(error);
  }

  bool profiled() const { return !profiled_.empty(); }
  // Turns profiling of the ops on or off. Turning it off drops the records that were not taken.
  void profile(bool on);
  // The records since the last call; empty while profiling is off. Splits run side by side, so the time of an op is the
  // mean over the splits.
  std::vector<OpRecord> take_profile();

 private:
  void make(int64_t splits);
  Ops& split(int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    return profiled_.empty() ? *splits_[at] : *profiled_[at + 1];
  }

  Device& device_;
  const Precision precision_;
  std::unique_ptr<Ops> whole_;
  std::vector<std::unique_ptr<Ops>> splits_;
  std::vector<std::unique_ptr<ProfiledOps>> profiled_;  // while profiling: of the whole batch, then of the splits
};

}  // namespace soma
