// Safety after fork(). A child has one thread, and the other threads' locks stay locked in it. So a lock that outlives
// a call is made anew in the child by its first user.
#pragma once

#include <atomic>
#include <memory>

namespace soma {

// The number of forks between the process that loaded the core and this one.
int forks();

// Whether this is the thread that the last fork left. False where there was no fork.
bool this_thread_forked();

// fork() waits while one of these exists. For short updates that a child must see whole or not at all. Such an update
// must not wait for Python, whose fork() holds the GIL.
class NoFork {
 public:
  NoFork();
  ~NoFork();
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;
};

// A value that is made at first use and never destroyed. It has no lock, which a fork could leave locked: two threads
// that come first both make one.
template <typename T>
class MadeOnce {
 public:
  template <typename F>
  const T& get(F&& make) {
    const T* made = made_.load(std::memory_order_acquire);
    if (made != nullptr) return *made;
    auto mine = std::make_unique<const T>(make());
    if (made_.compare_exchange_strong(made, mine.get(), std::memory_order_acq_rel)) return *mine.release();
    return *made;
  }

 private:
  std::atomic<const T*> made_{nullptr};
};

}  // namespace soma
