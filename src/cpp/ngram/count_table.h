// How often n-grams are there: a hash table with 16 bytes a slot, three quarters of which are taken at most.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "ngram/ngram.h"

namespace soma {

class CountTable {
 public:
  static constexpr size_t kNone = ~size_t{0};

  size_t size() const { return size_; }
  size_t slots() const { return slots_.size(); }

  // Adds to the count of an n-gram, which is there from now on, be the amount zero.
  void add(const Ngram& ngram, uint64_t amount) {
    if ((size_ + 1) * 4 > slots_.size() * 3) resize(slots_.size() < 16 ? 16 : slots_.size() * 3 / 2);
    Slot& slot = slots_[place_of(ngram)];
    if (slot.low == 0) {
      slot = {ngram.low, ngram.high << kCountBits};
      ++size_;
    }
    const uint64_t sum = (slot.high_and_count & kCountMask) + amount;
    slot.high_and_count = (slot.high_and_count & ~kCountMask) | (sum & kCountMask);
    if (sum > kCountMask) carries_[{ngram.high, ngram.low}] += sum >> kCountBits;
  }

  // The slot of an n-gram, or kNone.
  size_t find(const Ngram& ngram) const {
    if (size_ == 0) return kNone;
    const size_t place = place_of(ngram);
    return slots_[place].low == 0 ? kNone : place;
  }

  uint64_t count(size_t slot) const {
    const uint64_t low_bits = slots_[slot].high_and_count & kCountMask;
    if (carries_.empty()) return low_bits;
    const Ngram ngram = ngram_at(slot);
    const auto carry = carries_.find({ngram.high, ngram.low});
    return low_bits + (carry == carries_.end() ? 0 : carry->second << kCountBits);
  }

  // Calls visit(n-gram, count) for each.
  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_[slot].low != 0) visit(ngram_at(slot), count(slot));
    }
  }

  // Gives back what stands empty beyond a quarter.
  void fit() { resize(size_ * 4 / 3 + 1); }

 private:
  static constexpr int kCountBits = 22;  // beside 42 of the n-gram; what a count has beyond them stands in carries_
  static constexpr uint64_t kCountMask = (uint64_t{1} << kCountBits) - 1;

  struct Slot {
    uint64_t low = 0;  // 0: empty, for an n-gram has a last symbol
    uint64_t high_and_count = 0;
  };

  Ngram ngram_at(size_t slot) const { return {slots_[slot].high_and_count >> kCountBits, slots_[slot].low}; }

  // Where the n-gram stands, or else the empty slot where it would.
  size_t place_of(const Ngram& ngram) const {
    uint64_t hash = (ngram.low ^ ngram.high * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u;
    size_t place = static_cast<size_t>((hash >> 32) * slots_.size() >> 32);
    while (slots_[place].low != 0 && !(ngram_at(place) == ngram)) {
      if (++place == slots_.size()) place = 0;
    }
    return place;
  }

  void resize(size_t slots) {
    std::vector<Slot> old(slots);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.low != 0) slots_[place_of({slot.high_and_count >> kCountBits, slot.low})] = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> carries_;  // of counts beyond 2^22: a few
};

}  // namespace soma
