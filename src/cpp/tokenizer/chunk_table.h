// Counts of chunks, for training. Nearly all chunks are short: one of up to 15 bytes is stored, compared and hashed as
// two words, without a pointer.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/string_table.h"

namespace soma {

// The bytes of a chunk, then zeros, then its length in the last byte. The length is not 0.
struct PackedChunk {
  static constexpr size_t kMostBytes = 15;

  uint64_t words[2] = {0, 0};

  PackedChunk() = default;

  // `readable`: the number of bytes that may be read from chunk.data() on.
  PackedChunk(std::string_view chunk, size_t readable) {
    static constexpr unsigned char kMask[32] = {255, 255, 255, 255, 255, 255, 255, 255,
                                                255, 255, 255, 255, 255, 255, 255, 255};
    if (readable >= sizeof(words)) {
      const unsigned char* const mask = kMask + sizeof(words) - chunk.size();
      words[0] = load(chunk.data()) & load(mask);
      words[1] = load(chunk.data() + 8) & load(mask + 8);
    } else {
      std::memcpy(words, chunk.data(), chunk.size());
    }
    constexpr int kLastByte = std::endian::native == std::endian::little ? 56 : 0;
    words[1] |= static_cast<uint64_t>(chunk.size()) << kLastByte;
  }

  static uint64_t load(const void* from) {
    uint64_t word;
    std::memcpy(&word, from, sizeof(word));
    return word;
  }

  bool operator==(const PackedChunk& other) const {
    return ((words[0] ^ other.words[0]) | (words[1] ^ other.words[1])) == 0;
  }

  std::string_view bytes() const {
    const char* const p = reinterpret_cast<const char*>(words);
    return {p, static_cast<size_t>(p[kMostBytes])};
  }

  // The upper bits are mixed best.
  uint64_t hash() const {
    uint64_t h = (words[0] ^ words[1] * 0x9FB21C651E98DF25u) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
  }
};

struct PackedChunkCount {
  PackedChunk chunk;
  uint64_t count = 0;  // 0: a free slot
};

// Counts of recent chunks. A new chunk displaces the chunk in its slot.
class CountCache {
 public:
  CountCache() : slots_(size_t{1} << kBits) {}

  // Calls spill(entry, hash) for a displaced chunk.
  template <typename Spill>
  void add(const PackedChunk& chunk, Spill&& spill) {
    const uint64_t hash = chunk.hash();
    PackedChunkCount& slot = slots_[hash >> (64 - kBits)];
    if (slot.chunk == chunk) {
      ++slot.count;
      return;
    }
    if (slot.count != 0) spill(slot, slot.chunk.hash());
    slot = {chunk, 1};
  }

  template <typename Spill>
  void clear(Spill&& spill) {
    for (PackedChunkCount& slot : slots_) {
      if (slot.count != 0) spill(slot, slot.chunk.hash());
      slot = {};
    }
  }

 private:
  static constexpr int kBits = 14;
  std::vector<PackedChunkCount> slots_;
};

// Counts of all chunks.
class ChunkTable {
 public:
  ChunkTable() : slots_(16) {}

  void add(const PackedChunkCount& more) {
    PackedChunkCount& slot = slots_[slot_of(more.chunk)];
    if (slot.count == 0) slot.chunk = more.chunk;
    const bool is_new = slot.count == 0;
    slot.count += more.count;
    if (is_new && 4 * ++size_ > 3 * slots_.size()) grow();
  }

  void add(std::string_view long_chunk) {
    const uint32_t number = long_chunks_.insert(long_chunk);
    if (number == long_counts_.size()) long_counts_.push_back(0);
    ++long_counts_[number];
  }

  // Calls visit(chunk, count) for every chunk. The views are valid until the next add().
  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (const PackedChunkCount& slot : slots_) {
      if (slot.count != 0) visit(slot.chunk.bytes(), slot.count);
    }
    for (uint32_t i = 0; i < long_chunks_.size(); ++i) visit(long_chunks_.key(i), long_counts_[i]);
  }

 private:
  // The slot of the chunk, or the free slot where it goes. The hash is scaled to any number of slots: the table grows
  // by half.
  size_t slot_of(const PackedChunk& chunk) const {
    size_t i = (chunk.hash() & 0xFFFFFFFFu) * slots_.size() >> 32;
    while (slots_[i].count != 0 && !(slots_[i].chunk == chunk)) i = i + 1 == slots_.size() ? 0 : i + 1;
    return i;
  }

  void grow() {
    std::vector<PackedChunkCount> old(slots_.size() + slots_.size() / 2);
    old.swap(slots_);
    for (const PackedChunkCount& slot : old) {
      if (slot.count != 0) slots_[slot_of(slot.chunk)] = slot;
    }
  }

  std::vector<PackedChunkCount> slots_;  // at most three quarters full
  size_t size_ = 0;
  StringTable long_chunks_;
  std::vector<uint64_t> long_counts_;
};

}  // namespace soma
