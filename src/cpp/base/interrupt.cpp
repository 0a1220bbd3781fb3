// Rate-limited polling behind check_interrupt.
#include "base/interrupt.h"

#include <atomic>
#include <chrono>

#include "base/parallel.h"

namespace soma {
namespace {
std::atomic<bool (*)()> installed_poll{nullptr};
thread_local int whole_updates = 0;  // under way on this thread
}  // namespace

Uninterrupted::Uninterrupted() { ++whole_updates; }
Uninterrupted::~Uninterrupted() { --whole_updates; }

void set_interrupt_poll(bool (*poll)()) { installed_poll.store(poll); }

void check_interrupt() {
  bool (*poll)() = installed_poll.load(std::memory_order_relaxed);
  if (poll == nullptr || whole_updates > 0 || inside_a_part()) return;
  using Clock = std::chrono::steady_clock;
  thread_local Clock::time_point last = Clock::now();
  const Clock::time_point now = Clock::now();
  if (now - last < std::chrono::milliseconds(50)) return;
  last = now;
  if (poll()) throw Interrupted{};
}

}  // namespace soma
