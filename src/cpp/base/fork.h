// What fork() leaves in a child: one thread, and whatever the others had half written. Locks that they held stay locked
// there, so a lock that outlives a call is renewed in the child by whoever meets it first.
#pragma once

#include <atomic>
#include <memory>

namespace soma {

// Forks between the process that loaded the core and this one.
int forks();

// Whether this thread is the one that the last fork left; false where there was none.
bool this_thread_forked();

// While one lives, fork() waits: for updates that must not be seen by halves, and are short. What is done meanwhile
// must not wait for Python, whose fork() holds the GIL.
class NoFork {
 public:
  NoFork();
  ~NoFork();
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;
};

// A value that is made at first use and never destroyed. Without a lock, which a fork could leave locked: where two
// threads come first, both make one.
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
