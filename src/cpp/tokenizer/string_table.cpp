// Open addressing with linear probing. The tag, a part of the hash, saves most comparisons of bytes.
#include "tokenizer/string_table.h"

#include <cstring>
#include <stdexcept>

namespace soma {
namespace {

uint64_t mix(uint64_t h) {
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93u;
  h ^= h >> 32;
  return h;
}

}  // namespace

uint64_t hash_bytes(std::string_view key) {
  const char* p = key.data();
  size_t left = key.size();
  uint64_t h = 0x9E3779B97F4A7C15u ^ left;
  for (; left >= 8; p += 8, left -= 8) {
    uint64_t eight;
    std::memcpy(&eight, p, 8);
    h = mix(h ^ eight) * 0x9FB21C651E98DF25u;
  }
  uint64_t rest = 0;
  for (size_t i = 0; i < left; ++i) rest |= static_cast<uint64_t>(static_cast<unsigned char>(p[i])) << (8 * i);
  return mix(mix(h ^ rest) * 0x9FB21C651E98DF25u);
}

StringTable::StringTable() : slots_(64), starts_{0} {}

const StringTable::Slot* StringTable::find_slot(std::string_view wanted, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots_[i];
    if (slot.number == kAbsent || (slot.tag == tag && key(slot.number) == wanted)) return &slot;
  }
}

uint32_t StringTable::find(std::string_view key) const { return find_slot(key, hash_bytes(key))->number; }

uint32_t StringTable::insert(std::string_view key) {
  const uint64_t hash = hash_bytes(key);
  auto* slot = const_cast<Slot*>(find_slot(key, hash));
  if (slot->number != kAbsent) return slot->number;
  const uint32_t number = size();
  if (number == kAbsent) throw std::length_error("more than 2^32 - 1 different tokens");
  slot->tag = static_cast<uint32_t>(hash >> 32);
  slot->number = number;
  arena_.insert(arena_.end(), key.begin(), key.end());
  starts_.push_back(arena_.size());
  if (size() * size_t{2} > slots_.size()) grow();
  return number;
}

void StringTable::grow() {
  std::vector<Slot> larger(slots_.size() * 2);
  const size_t mask = larger.size() - 1;
  for (uint32_t number = 0; number < size(); ++number) {
    const uint64_t hash = hash_bytes(key(number));
    size_t i = hash & mask;
    while (larger[i].number != kAbsent) i = (i + 1) & mask;
    larger[i] = {static_cast<uint32_t>(hash >> 32), number};
  }
  slots_.swap(larger);
}

}  // namespace soma
