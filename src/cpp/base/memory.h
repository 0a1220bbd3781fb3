// The memory of a device. The host reads and writes memory of the processor alone; of other memory it knows addresses.
#pragma once

#include <cstddef>

namespace soma {

class Memory {
 public:
  static constexpr std::size_t kAlignment = 64;  // bytes: a cache line, and the widest vector

  virtual ~Memory() = default;

  // A zeroed block, aligned to kAlignment. `dense`: in large pages, see Arena::reserve_dense. Throws std::bad_alloc.
  virtual void* allocate(std::size_t bytes, bool dense) = 0;
  virtual void release(void* block) noexcept = 0;

  // Each waits for what the device was asked to do before, and returns when the bytes are there.
  virtual void upload(void* to, const void* host, std::size_t bytes) = 0;
  virtual void download(void* host, const void* from, std::size_t bytes) = 0;
  // Within the device.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void clear(void* at, std::size_t bytes) = 0;
  virtual void exchange(void* a, void* b, std::size_t bytes) = 0;

  // Whether the host may read and write its addresses.
  virtual bool on_host() const = 0;
};

// The memory of the processor.
Memory& host_memory();

}  // namespace soma
