// Helpers of each thread that computes. They spin for a while after a task and then sleep, so that tasks in close
// succession wake nobody.
#include "base/workers.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "base/fork.h"
#include "base/wait_until.h"

namespace soma {
namespace {

using Task = void (*)(void* context, int rank, int size);

thread_local bool inside = false;

class Helpers {
 public:
  ~Helpers() {
    over_ = true;
    for (auto& helper : helpers_) helper->call();
    for (auto& helper : helpers_) helper->thread.join();
  }

  void run(int threads, Task task, void* context) {
    grow(threads - 1);
    const int others = std::min(threads - 1, static_cast<int>(helpers_.size()));
    task_ = task;
    context_ = context;
    size_ = others + 1;
    working_.store(others, std::memory_order_relaxed);
    for (int i = 0; i < others; ++i) helpers_[static_cast<std::size_t>(i)]->call();
    inside = true;
    [&]() noexcept { task(context, 0, others + 1); }();  // the others use the memory of the caller
    inside = false;
    wait_until([&] { return working_.load(std::memory_order_acquire) == 0; });
  }

 private:
  struct alignas(64) Helper {
    std::atomic<uint32_t> calls{0};
    std::thread thread;

    void call() {
      calls.fetch_add(1, std::memory_order_release);
      calls.notify_one();
    }
  };

  void grow(int wanted) {
    helpers_.reserve(static_cast<std::size_t>(std::max(wanted, 0)));  // then no thread is made and lost
    while (static_cast<int>(helpers_.size()) < wanted) {
      auto helper = std::make_unique<Helper>();
      const int rank = static_cast<int>(helpers_.size()) + 1;
      try {
        helper->thread = std::thread([this, rank, self = helper.get()] { serve(*self, rank); });
      } catch (const std::system_error&) {
        return;
      }
      helpers_.push_back(std::move(helper));
    }
  }

  // A helper reads the task only when it was called, so run() may change it while others sleep.
  void serve(Helper& self, int rank) {
    inside = true;
    for (uint32_t seen = 0;; ++seen) {
      for (int waited = 0; waited < kPatience && self.calls.load(std::memory_order_acquire) == seen; ++waited) pause();
      self.calls.wait(seen, std::memory_order_acquire);
      if (over_) return;
      task_(context_, rank, size_);
      working_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::unique_ptr<Helper>> helpers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  int size_ = 0;
  bool over_ = false;
  alignas(64) std::atomic<int> working_{0};
};

// The helpers of a thread. A child of fork() has none of its parent's, so it leaves them as they are.
struct Own {
  std::unique_ptr<Helpers> helpers;
  int made = 0;  // forks() then

  ~Own() {
    if (made != forks()) (void)helpers.release();
  }
};
thread_local Own own;

}  // namespace

void run_workers(int threads, Task task, void* context) {
  if (own.made != forks()) (void)own.helpers.release();
  if (own.helpers == nullptr) {
    own.helpers = std::make_unique<Helpers>();
    own.made = forks();
  }
  own.helpers->run(threads, task, context);
}

bool inside_workers() { return inside; }

}  // namespace soma
