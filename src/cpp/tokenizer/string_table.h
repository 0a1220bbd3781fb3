// A set of byte strings, numbered 0, 1, 2, ... in order of insertion. Vocabularies map tokens to ids with it, counters
// map words to counts. Open addressing over one arena of bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace soma {

// The value depends on the byte order of the machine: never store or print it, or let a result depend on it.
uint64_t hash_bytes(std::string_view key);

class StringTable {
 public:
  static constexpr uint32_t kAbsent = 0xFFFFFFFFu;

  StringTable();

  // The number of `key`, or kAbsent.
  uint32_t find(std::string_view key) const;

  // The number of `key`. Adds an absent key; throws std::length_error if there are 2^32 - 1 keys already.
  uint32_t insert(std::string_view key);

  // The key with this number. The view is valid until the next insert.
  std::string_view key(uint32_t number) const {
    return {arena_.data() + starts_[number], static_cast<size_t>(starts_[number + 1] - starts_[number])};
  }

  uint32_t size() const { return static_cast<uint32_t>(starts_.size() - 1); }

 private:
  struct Slot {
    uint32_t tag = 0;  // upper half of the hash
    uint32_t number = kAbsent;
  };

  const Slot* find_slot(std::string_view key, uint64_t hash) const;
  void grow();

  std::vector<Slot> slots_;  // their number is a power of two; at most half are full
  std::vector<char> arena_;
  std::vector<uint64_t> starts_;
};

}  // namespace soma
