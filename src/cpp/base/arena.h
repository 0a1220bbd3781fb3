// One aligned, zeroed block of floats. A plan measures it first and then carves it. It is freed as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/memory.h"

namespace soma {

class Arena {
 public:
  static constexpr int64_t kGranule = Memory::kAlignment / sizeof(float);

  explicit Arena(Memory& memory) : data_(nullptr, Release{&memory}) {}

  // The number of floats a tensor of `count` floats takes, so that the next one starts aligned.
  static int64_t padded(int64_t count) { return (count + kGranule - 1) / kGranule * kGranule; }

  // Makes room for `count` floats. Keeps what is there when it already suffices, else replaces it by a zeroed block.
  void reserve(int64_t count) { reserve(count, false); }
  // The same, in pages of 2 MB, from which memory streams a fifth faster: for weights, which are read from end to end.
  // Not for a plan that a run touches in part: all of such a block becomes resident.
  void reserve_dense(int64_t count) { reserve(count, true); }

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(float); }

 private:
  void reserve(int64_t count, bool dense);
  struct Release {
    Memory* memory;
    void operator()(float* block) const { memory->release(block); }
  };
  std::unique_ptr<float, Release> data_;
  int64_t size_ = 0;
};

// Hands out consecutive aligned pieces of memory; a piece of no floats is null. With a null base it only measures.
class Carver {
 public:
  explicit Carver(float* base) : base_(base) {}

  float* take(int64_t count) {
    float* piece = base_ == nullptr || count == 0 ? nullptr : base_ + used_;
    used_ += Arena::padded(count);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

}  // namespace soma
