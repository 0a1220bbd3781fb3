// Takes the memory of an arena.
#include "base/arena.h"

#include <limits>
#include <new>

namespace soma {

void Arena::reserve(int64_t count, bool dense) {
  if (count <= size_) return;
  if (static_cast<std::uint64_t>(count) > std::numeric_limits<std::size_t>::max() / sizeof(float)) {
    throw std::bad_alloc();
  }
  data_.reset();  // first: the old and the new block never exist together
  size_ = 0;
  data_.reset(static_cast<float*>(
      data_.get_deleter().memory->allocate(static_cast<std::size_t>(count) * sizeof(float), dense)));
  size_ = count;
}

}  // namespace soma
