// What a thread launches, looked at before it is launched: the same launches again can be replayed as a CUDA graph. A
// graph keeps the arguments of its kernels. What differs from step to step is Varying, and lies in memory meanwhile.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

namespace soma::cuda {

class Recording {
 public:
  static constexpr std::size_t kMostBytes = 256 * 1024;  // of what varies

  // `values` is device memory of kMostBytes; the capture takes place in `stream`.
  Recording(char* values, cudaStream_t stream) : values_(values), stream_(stream) {}

  // That of this thread, or null. Looking: launches are noted, and nothing is launched. Else they are captured.
  static Recording* current();
  static Recording* looking();
  static Recording* capturing();

  // Runs body(context) once. Throws what it throws.
  void look(void (*body)(void* context), void* context);
  // Again: it launches into the stream that is captured.
  void capture(void (*body)(void* context), void* context);

  cudaStream_t stream() const { return stream_; }
  // Of all launches with their arguments, without what varies.
  uint64_t key() const { return key_; }
  const std::vector<char>& kept() const { return kept_; }
  bool fits() const { return kept_.size() <= kMostBytes; }

  // Adds a part of a launch to the key.
  template <typename T>
  void note(T part) {
    __builtin_clear_padding(&part);
    mix(&part, sizeof part);
  }
  // Where numbers lie for the launches under way; null: they are not recorded.
  template <typename T>
  static const T* keep(const T* numbers, std::size_t count) {
    Recording* const r = current();
    return r != nullptr ? reinterpret_cast<const T*>(r->put(numbers, count * sizeof(T))) : nullptr;
  }

 private:
  void run(bool looks, void (*body)(void* context), void* context);
  void mix(const void* part, std::size_t bytes);
  const char* put(const void* numbers, std::size_t bytes);

  char* const values_;
  const cudaStream_t stream_;
  bool looks_ = true;
  uint64_t key_ = 0;
  std::size_t used_ = 0;
  std::vector<char> kept_;
};

// An argument of a kernel that differs from step to step.
template <typename T>
class Varying {
 public:
  Varying() = default;
  Varying(T x) : at_(Recording::keep(&x, 1)) {
    if (at_ == nullptr) value_ = x;
  }
  __device__ T get() const { return at_ != nullptr ? *at_ : value_; }

 private:
  T value_{};
  const T* at_ = nullptr;
};

// At most kMost of them.
template <typename T, int64_t kMost>
class VaryingList {
 public:
  VaryingList(const T* list, int64_t count) : at_(Recording::keep(list, static_cast<std::size_t>(count))) {
    for (int64_t i = 0; at_ == nullptr && i < count; ++i) values_[i] = list[i];
  }
  __device__ T operator[](int64_t i) const {
    if (at_ != nullptr) return at_[i];
    return values_[i];  // by no pointer: arguments have none
  }

 private:
  T values_[kMost]{};
  const T* at_;
};

}  // namespace soma::cuda
