// Waits of a thread for others that compute.
#pragma once

#include <thread>

namespace soma {

// Tells the core that this thread only waits.
inline void pause() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("isb");  // yield takes no time on most processors
#endif
}

constexpr int kPatience = 20000;  // rounds, some 200 us on x86

// Waits until ready() is true. A long wait means that this thread or the other one lost its core: then it yields.
template <typename F>
void wait_until(F&& ready) {
  for (int waited = 0; !ready(); ++waited) {
    if (waited < kPatience) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace soma
