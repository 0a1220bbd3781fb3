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

// The helpers of one thread. Nobody joins them: Windows ends a thread, with its thread_local variables, under a lock
// that the end of another needs too. Each helper holds this object, and ends by itself when it is told to.
class Helpers : public std::enable_shared_from_this<Helpers> {
 public:
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

  void end() {
    over_ = true;
    for (auto& helper : helpers_) helper->call();
  }

 private:
  struct alignas(64) Helper {
    std::atomic<uint32_t> calls{0};

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
        std::thread([all = shared_from_this(), rank, self = helper.get()] { all->serve(*self, rank); }).detach();
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

// A child of fork() has none of its parent's helpers, so it leaves theirs as they are: what these hold is never freed.
struct Own {
  std::shared_ptr<Helpers> helpers;
  int made = 0;  // forks() then

  ~Own() {
    if (helpers != nullptr && made == forks()) helpers->end();
  }
};
thread_local Own own;

}  // namespace

void run_workers(int threads, Task task, void* context) {
  if (own.helpers == nullptr || own.made != forks()) {
    own.helpers = std::make_shared<Helpers>();
    own.made = forks();
  }
  own.helpers->run(threads, task, context);
}

bool inside_workers() { return inside; }

}  // namespace soma
