// Numbers below 2^-126 as zero, on this thread and for a while: moments of parameters without gradients shrink to such
// numbers and stay there, and a processor takes ten times as long for them.
#pragma once

#include <cstdint>

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace soma {

// What the thread did before is restored at the end. Where the processor is another one than these, nothing is done.
class FlushDenormals {
 public:
  FlushDenormals() : before_(get()) { set(before_ | kFlush); }
  ~FlushDenormals() { set(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE__) || defined(_M_X64)
  static constexpr uint64_t kFlush = 0x8040;  // of results, and of operands
  static uint64_t get() { return _mm_getcsr(); }
  static void set(uint64_t control) { _mm_setcsr(static_cast<unsigned>(control)); }
#elif defined(__aarch64__) && defined(__GNUC__)
  static constexpr uint64_t kFlush = uint64_t{1} << 24;
  static uint64_t get() {
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t get() { return 0; }
  static void set(uint64_t) {}
#endif

  const uint64_t before_;
};

}  // namespace soma
