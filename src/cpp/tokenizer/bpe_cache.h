// A cache of chunks and their ids: natural text repeats its words. One thread uses a cache at a time. Its memory is
// bounded (13 MB). Its contents change the speed only, never the ids.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace soma {

// Loads a cache line that will be read soon.
inline void prefetch([[maybe_unused]] const void* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line);
#endif
}

// Sixteen bytes as two words.
struct WordPair {
  uint64_t low, high;
};
// Mask n keeps the first n of 16 bytes.
constexpr std::array<WordPair, 16> make_chunk_masks() {
  constexpr bool kLittle = std::endian::native == std::endian::little;
  const auto first = [](size_t n) {  // mask of the first n of eight bytes
    return n == 0 ? 0 : n >= 8 ? ~uint64_t{0} : kLittle ? ~uint64_t{0} >> (64 - 8 * n) : ~uint64_t{0} << (64 - 8 * n);
  };
  std::array<WordPair, 16> masks{};
  for (size_t n = 0; n < 16; ++n) masks[n] = {first(n), n > 8 ? first(n - 8) : 0};
  return masks;
}
inline constexpr std::array<WordPair, 16> kChunkMasks = make_chunk_masks();

// A chunk of 1 to 15 bytes as two words: its bytes, then zeros, then its length in the last byte. Never all zeros.
struct ShortChunk {
  static constexpr size_t kMaxBytes = 15;

  uint64_t low, high;

  // `readable`: the number of bytes that may be read from `p` on.
  static ShortChunk of(const char* p, size_t size, size_t readable) {
    WordPair words{};
    if (readable >= 16) {
      std::memcpy(&words.low, p, 8);
      std::memcpy(&words.high, p + 8, 8);
    } else {
      char padded[16] = {};
      std::memcpy(padded, p, size);
      std::memcpy(&words, padded, 16);
    }
    constexpr int kLastByte = std::endian::native == std::endian::little ? 56 : 0;
    return {words.low & kChunkMasks[size].low, (words.high & kChunkMasks[size].high) | uint64_t{size} << kLastByte};
  }
  bool operator==(const ShortChunk& other) const { return ((low ^ other.low) | (high ^ other.high)) == 0; }
  uint64_t hash() const {
    const uint64_t h = low * 0x9E3779B97F4A7C15u ^ high * 0xC2B2AE3D27D4EB4Fu;
    return (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
  }
};

class ChunkCache {
 public:
  static constexpr size_t kMaxShortIds = 3;
  static constexpr size_t kMaxLongBytes = 256;

  struct Entry {
    ShortChunk chunk;
    uint32_t ids[kMaxShortIds + 1];  // the last one holds the number of ids
    uint32_t count() const { return ids[kMaxShortIds]; }
  };

  ChunkCache() : sets_(kFirstSets) {}

  void prefetch(uint64_t hash) const { soma::prefetch(&sets_[hash >> shift_]); }

  // The entry of a chunk; null where the cache does not have it.
  const Entry* find(const ShortChunk& chunk, uint64_t hash) const {
    const Set& set = sets_[hash >> shift_];
    const bool second = set.ways[1].chunk == chunk;  // no branch: both ways are likely
    const Entry* const entry = &set.ways[second];
    return entry->chunk == chunk ? entry : nullptr;
  }
  // Adds a chunk that find() does not have; count <= kMaxShortIds.
  void insert(const ShortChunk& chunk, uint64_t hash, const TokenId* ids, size_t count);

  // For every other chunk of at most kMaxLongBytes. Copies its ids to `out` and returns their number; 0 where the cache
  // does not have the chunk.
  size_t find_long(std::string_view chunk, uint64_t hash, TokenId* out) const;
  // Adds a chunk that find_long() does not have.
  void insert_long(std::string_view chunk, uint64_t hash, const TokenId* ids, size_t count);

 private:
  // Two chunks whose hashes start with the same bits, the newer first. A new chunk displaces the older one.
  struct alignas(64) Set {
    Entry ways[2] = {};
  };
  struct LongSlot {
    uint32_t tag = 0;
    uint32_t at = 0;  // offset in long_ of: byte count, id count, ids, bytes; 0: the slot is free
  };
  static constexpr size_t kFirstSets = size_t{1} << 9;
  static constexpr size_t kMostSets = size_t{1} << 16;       // 4 MB
  static constexpr size_t kMostLongWords = size_t{1} << 21;  // 8 MB
  static constexpr size_t kFirstLongSlots = size_t{1} << 10;
  static constexpr size_t kMostLongSlots = size_t{1} << 17;  // 1 MB

  void grow();
  void place(const Entry& entry);
  void resize_long(size_t slots);
  void place_long(uint64_t hash, size_t at);

  std::vector<Set> sets_;
  int shift_ = 64 - 9;
  size_t inserted_ = 0;  // short chunks, since the cache was made
  std::vector<LongSlot> long_slots_;
  std::vector<uint32_t> long_;
  size_t long_count_ = 0;
};

}  // namespace soma
