// Short chunks: a hash table with two chunks per cache line, which grows up to its bound. Long chunks: open addressing
// over one arena, which is emptied when it is full.
#include "tokenizer/bpe_cache.h"

#include <algorithm>

namespace soma {

void ChunkCache::place(const Entry& entry) {
  Set& set = sets_[entry.chunk.hash() >> shift_];
  set.ways[1] = set.ways[0];
  set.ways[0] = entry;
}

void ChunkCache::insert(const ShortChunk& chunk, uint64_t hash, const TokenId* ids, size_t count) {
  if (++inserted_ > sets_.size() && sets_.size() < kMostSets) grow();
  Set& set = sets_[hash >> shift_];
  set.ways[1] = set.ways[0];
  set.ways[0].chunk = chunk;
  std::copy(ids, ids + count, set.ways[0].ids);
  set.ways[0].ids[kMaxShortIds] = static_cast<uint32_t>(count);
}

void ChunkCache::grow() {
  std::vector<Set> old(sets_.size() * 4);
  old.swap(sets_);
  shift_ -= 2;
  for (const Set& set : old) {
    for (const Entry& entry : {set.ways[1], set.ways[0]}) {
      if (entry.count() != 0) place(entry);
    }
  }
}

size_t ChunkCache::find_long(std::string_view chunk, uint64_t hash, TokenId* out) const {
  if (long_slots_.empty()) return 0;
  const size_t mask = long_slots_.size() - 1;
  const auto tag = static_cast<uint32_t>(hash >> 32);
  for (size_t i = hash & mask; long_slots_[i].at != 0; i = (i + 1) & mask) {
    const LongSlot& slot = long_slots_[i];
    if (slot.tag != tag) continue;
    const uint32_t* const entry = long_.data() + slot.at;
    const size_t count = entry[1];
    if (entry[0] != chunk.size() || std::memcmp(entry + 2 + count, chunk.data(), chunk.size()) != 0) continue;
    std::copy(entry + 2, entry + 2 + count, out);
    return count;
  }
  return 0;
}

void ChunkCache::place_long(uint64_t hash, size_t at) {
  const size_t mask = long_slots_.size() - 1;
  size_t i = hash & mask;
  while (long_slots_[i].at != 0) i = (i + 1) & mask;
  long_slots_[i] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(at)};
}

void ChunkCache::resize_long(size_t slots) {
  std::vector<LongSlot> old(slots);
  old.swap(long_slots_);
  for (const LongSlot& slot : old) {
    if (slot.at == 0) continue;
    const uint32_t* const entry = long_.data() + slot.at;
    place_long(hash_bytes({reinterpret_cast<const char*>(entry + 2 + entry[1]), entry[0]}), slot.at);
  }
}

void ChunkCache::insert_long(std::string_view chunk, uint64_t hash, const TokenId* ids, size_t count) {
  const size_t words = 2 + count + (chunk.size() + 3) / 4;
  const bool full = long_count_ * 2 >= long_slots_.size();
  if (long_.size() + words > kMostLongWords || (full && long_slots_.size() == kMostLongSlots) || long_slots_.empty()) {
    long_slots_.assign(std::max(long_slots_.size(), kFirstLongSlots), LongSlot{});
    long_.assign(1, 0);  // offset 0 means a free slot
    long_count_ = 0;
  } else if (full) {
    resize_long(long_slots_.size() * 2);
  }
  ++long_count_;
  const size_t at = long_.size();
  place_long(hash, at);
  long_.resize(at + words);
  long_[at] = static_cast<uint32_t>(chunk.size());
  long_[at + 1] = static_cast<uint32_t>(count);
  std::copy(ids, ids + count, long_.begin() + static_cast<std::ptrdiff_t>(at + 2));
  std::memcpy(long_.data() + at + 2 + count, chunk.data(), chunk.size());
}

}  // namespace soma
