// The memory of the processor. calloc hands large blocks out as untouched pages, so a plan larger than what a run
// touches costs address space only.
#include "base/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace soma {
namespace {

// The system may have no such pages. Then it gives ordinary ones.
void advise_large_pages(void* block, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t kLarge = std::uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<std::uintptr_t>(block) + kLarge - 1) / kLarge * kLarge;
  const auto end = (reinterpret_cast<std::uintptr_t>(block) + bytes) / kLarge * kLarge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)block;
  (void)bytes;
#endif
}

class HostMemory final : public Memory {
 public:
  // The pointer calloc returned is kept just below the aligned block.
  void* allocate(std::size_t bytes, bool dense) override {
    if (bytes > std::numeric_limits<std::size_t>::max() - 2 * kAlignment) throw std::bad_alloc();
    void* raw = std::calloc(1, bytes + 2 * kAlignment);
    if (raw == nullptr) throw std::bad_alloc();
    if (dense) advise_large_pages(raw, bytes);
    auto address = reinterpret_cast<std::uintptr_t>(raw) + sizeof(void*);
    address = (address + kAlignment - 1) / kAlignment * kAlignment;
    reinterpret_cast<void**>(address)[-1] = raw;
    return reinterpret_cast<void*>(address);
  }
  void release(void* block) noexcept override { std::free(static_cast<void**>(block)[-1]); }

  void upload(void* to, const void* host, std::size_t bytes) override { std::memcpy(to, host, bytes); }
  void download(void* host, const void* from, std::size_t bytes, std::size_t rows, std::size_t stride) override {
    for (std::size_t r = 0; r < rows; ++r) {
      std::memcpy(static_cast<char*>(host) + r * bytes, static_cast<const char*>(from) + r * stride, bytes);
    }
  }
  void copy(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void clear(void* at, std::size_t bytes) override { std::memset(at, 0, bytes); }
  void exchange(void* a, void* b, std::size_t bytes) override {
    std::swap_ranges(static_cast<char*>(a), static_cast<char*>(a) + bytes, static_cast<char*>(b));
  }
  bool on_host() const override { return true; }
};

HostMemory host;  // no local static, whose lock a fork could leave locked

}  // namespace

Memory& host_memory() { return host; }

}  // namespace soma
