// Aligned, zeroed allocation for arenas. calloc hands large blocks out as untouched pages, so a plan larger than what a
// run touches costs address space only.
#include "base/arena.h"

#include <cstdlib>
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

// The pointer calloc returned is kept just below the aligned block.
float* allocate_zeroed(std::size_t bytes, bool dense) {
  if (bytes > std::numeric_limits<std::size_t>::max() - 2 * Arena::kAlignment) throw std::bad_alloc();
  void* raw = std::calloc(1, bytes + 2 * Arena::kAlignment);
  if (raw == nullptr) throw std::bad_alloc();
  if (dense) advise_large_pages(raw, bytes);
  auto address = reinterpret_cast<std::uintptr_t>(raw) + sizeof(void*);
  address = (address + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  reinterpret_cast<void**>(address)[-1] = raw;
  return reinterpret_cast<float*>(address);
}

}  // namespace

void Arena::Free::operator()(float* block) const { std::free(reinterpret_cast<void**>(block)[-1]); }

void Arena::reserve(int64_t count, bool dense) {
  if (count <= size_) return;
  if (static_cast<std::uint64_t>(count) > std::numeric_limits<std::size_t>::max() / sizeof(float)) {
    throw std::bad_alloc();
  }
  data_.reset();  // first: the old and the new block never exist together
  size_ = 0;
  data_.reset(allocate_zeroed(static_cast<std::size_t>(count) * sizeof(float), dense));
  size_ = count;
}

}  // namespace soma
