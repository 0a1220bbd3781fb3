// How far a backward pass is, for another thread that sends the gradients that are final already.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <mutex>

namespace soma {

// Gradients become final from the end of their arena to its start.
class Progress {
 public:
  // The gradients from float `first` of the arena on are final.
  void reach(int64_t first) {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      first_ = std::min(first_, first);
    }
    changed_.notify_all();
  }
  // The pass ended, whether it reached the start or not.
  void end() {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
  }
  // Returns when the gradients from `first` on are final. False: the pass ended before.
  bool wait(int64_t first) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return first_ <= first || ended_; });
    return first_ <= first;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t first_ = std::numeric_limits<int64_t>::max();
  bool ended_ = false;
};

}  // namespace soma
