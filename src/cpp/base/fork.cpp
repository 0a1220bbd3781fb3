// The handlers of fork(), installed when the core is loaded.
#include "base/fork.h"

#include <new>
#include <shared_mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define SOMA_HAS_FORK 1
#endif

namespace soma {
namespace {

std::atomic<int> count{0};
std::thread::id survivor;  // of the last fork; written while there is one thread
std::shared_mutex updates;

#ifdef SOMA_HAS_FORK
void before() { updates.lock(); }
void in_parent() { updates.unlock(); }

void in_child() {
  new (&updates) std::shared_mutex;  // the old one counts waiting threads, which the child has not
  survivor = std::this_thread::get_id();
  count.fetch_add(1);
}

[[maybe_unused]] const int installed = pthread_atfork(before, in_parent, in_child);
#endif

}  // namespace

int forks() { return count.load(std::memory_order_relaxed); }

bool this_thread_forked() { return std::this_thread::get_id() == survivor; }

NoFork::NoFork() { updates.lock_shared(); }
NoFork::~NoFork() { updates.unlock_shared(); }

}  // namespace soma
