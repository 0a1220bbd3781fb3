// The key of a recording, and the numbers that it keeps.
#include "ops/cuda/recording.h"

#include <cstring>
#include <utility>

#include "base/random.h"

namespace soma::cuda {
namespace {

thread_local Recording* of_thread = nullptr;

constexpr std::size_t kAlignment = 16;

}  // namespace

Recording* Recording::current() { return of_thread; }
Recording* Recording::looking() { return of_thread != nullptr && of_thread->looks_ ? of_thread : nullptr; }
Recording* Recording::capturing() { return of_thread != nullptr && !of_thread->looks_ ? of_thread : nullptr; }

void Recording::run(bool looks, void (*body)(void* context), void* context) {
  struct Current {
    explicit Current(Recording* r) { of_thread = r; }
    ~Current() { of_thread = nullptr; }
  } const scope(this);
  looks_ = looks;
  used_ = 0;
  body(context);
}

void Recording::look(void (*body)(void* context), void* context) { run(true, body, context); }
void Recording::capture(void (*body)(void* context), void* context) { run(false, body, context); }

void Recording::mix(const void* part, std::size_t bytes) {
  const auto* from = static_cast<const char*>(part);
  for (std::size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, from + i, bytes - i < sizeof word ? bytes - i : sizeof word);
    key_ = mix_bits(key_ ^ word);
  }
}

const char* Recording::put(const void* numbers, std::size_t bytes) {
  const std::size_t at = used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (looks_) {
    kept_.resize(used_);
    std::memcpy(kept_.data() + at, numbers, bytes);
  }
  return values_ + at;
}

}  // namespace soma::cuda
