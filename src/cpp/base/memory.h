// The memory of a device. The host reads and writes memory of the processor alone; of other memory it knows addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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
  // `rows` times `bytes`, `stride` bytes apart on the device and side by side on the host.
  virtual void download(void* host, const void* from, std::size_t bytes, std::size_t rows = 1,
                        std::size_t stride = 0) = 0;
  // Within the device.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void clear(void* at, std::size_t bytes) = 0;
  virtual void exchange(void* a, void* b, std::size_t bytes) = 0;

  // Whether the host may read and write its addresses.
  virtual bool on_host() const = 0;
};

// The memory of the processor.
Memory& host_memory();

// Sets `count` floats at `to`, which write(floats) makes: in place if the host may write there, else in a buffer.
template <typename F>
void write_floats(Memory& memory, float* to, int64_t count, F&& write) {
  if (memory.on_host()) return write(to);
  std::vector<float> floats(static_cast<std::size_t>(count));
  write(floats.data());
  memory.upload(to, floats.data(), floats.size() * sizeof(float));
}

}  // namespace soma
