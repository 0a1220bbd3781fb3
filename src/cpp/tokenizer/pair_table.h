// A table of pairs of token ids and their counts, for training BPE. Open addressing, no removal.
#pragma once

#include <cstdint>
#include <vector>

namespace soma {

constexpr uint64_t make_pair_key(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

struct PairEntry {
  uint64_t pair = kNoPair;  // make_pair_key
  uint64_t count = 0;
  uint32_t begin = 0;   // index of its first place in the postings
  uint32_t places = 0;  // number of places

  static constexpr uint64_t kNoPair = ~uint64_t{0};
};

class PairTable {
 public:
  PairTable() : slots_(64) {}

  // The entry of a pair, or null. Valid until the next insert().
  PairEntry* find(uint64_t pair) {
    PairEntry& entry = slots_[slot_of(pair)];
    return entry.pair == pair ? &entry : nullptr;
  }

  // The entry of a pair, which is added with count 0 if it is absent. Valid until the next insert().
  PairEntry& insert(uint64_t pair) {
    PairEntry* entry = &slots_[slot_of(pair)];
    if (entry->pair == pair) return *entry;
    if (2 * ++size_ > slots_.size()) {
      grow();
      entry = &slots_[slot_of(pair)];
    }
    entry->pair = pair;
    return *entry;
  }

  template <typename Visit>
  void for_each(Visit&& visit) {
    for (PairEntry& entry : slots_) {
      if (entry.pair != PairEntry::kNoPair) visit(entry);
    }
  }

 private:
  size_t slot_of(uint64_t pair) const {
    const size_t mask = slots_.size() - 1;
    uint64_t hash = pair * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u;
    size_t i = (hash ^ hash >> 32) & mask;
    while (slots_[i].pair != pair && slots_[i].pair != PairEntry::kNoPair) i = (i + 1) & mask;
    return i;
  }

  void grow() {
    std::vector<PairEntry> old(slots_.size() * 2);
    old.swap(slots_);
    for (const PairEntry& entry : old) {
      if (entry.pair != PairEntry::kNoPair) slots_[slot_of(entry.pair)] = entry;
    }
  }

  std::vector<PairEntry> slots_;  // a power of two, at most half full
  size_t size_ = 0;
};

// An element of the heap of pairs: the most frequent pair first, then the smaller ids.
struct PairCount {
  uint64_t count;
  uint64_t pair;
  friend bool operator<(const PairCount& a, const PairCount& b) {
    return a.count != b.count ? a.count < b.count : a.pair > b.pair;
  }
};

}  // namespace soma
