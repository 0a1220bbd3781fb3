// Chunks met before and their ids: natural text repeats its words. A cache belongs to one thread at a time; its memory is
// bounded (some 8 MB), and what it holds changes the speed only.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace soma {

using ChunkRows = std::array<std::array<unsigned char, 16>, 16>;

constexpr ChunkRows make_chunk_rows(bool masks) {
  ChunkRows rows{};
  for (size_t size = 0; size < 16; ++size) {
    for (size_t i = 0; masks && i < size; ++i) rows[size][i] = 0xFF;
    if (!masks) rows[size][15] = static_cast<unsigned char>(size);
  }
  return rows;
}
alignas(16) inline constexpr ChunkRows kChunkMasks = make_chunk_rows(true);
alignas(16) inline constexpr ChunkRows kChunkLengths = make_chunk_rows(false);

// A chunk of at most 15 bytes as two words: the bytes, zeros, and in the last byte the length. No chunk is all zeros.
struct ShortChunk {
  static constexpr size_t kMaxBytes = 15;

  uint64_t words[2] = {};

  ShortChunk() = default;
  // From `p` on, `readable` bytes may be read.
  ShortChunk(const char* p, size_t size, size_t readable) {
    if (readable >= 16) {
      std::memcpy(words, p, 16);
    } else {
      std::memcpy(words, p, size);
    }
    uint64_t mask[2], length[2];
    std::memcpy(mask, kChunkMasks[size].data(), 16);
    std::memcpy(length, kChunkLengths[size].data(), 16);
    words[0] = (words[0] & mask[0]) | length[0];
    words[1] = (words[1] & mask[1]) | length[1];
  }
  bool operator==(const ShortChunk& other) const {
    return ((words[0] ^ other.words[0]) | (words[1] ^ other.words[1])) == 0;
  }
  uint64_t hash() const {
    const uint64_t h = words[0] * 0x9E3779B97F4A7C15u ^ words[1] * 0xC2B2AE3D27D4EB4Fu;
    return (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
  }
};

class ChunkCache {
 public:
  static constexpr size_t kMaxShortIds = 3;
  static constexpr size_t kMaxLongBytes = 256;

  struct Entry {
    ShortChunk chunk;
    TokenId ids[kMaxShortIds];
    uint32_t count;
  };

  ChunkCache() : sets_(kFirstSets) {}

  void prefetch(uint64_t hash) const {
#if defined(__GNUC__)
    __builtin_prefetch(&sets_[hash >> shift_]);
#else
    (void)hash;
#endif
  }

  // nullptr where it is not known.
  const Entry* find(const ShortChunk& chunk, uint64_t hash) const {
    const Set& set = sets_[hash >> shift_];
    if (set.ways[0].chunk == chunk) return &set.ways[0];
    if (set.ways[1].chunk == chunk) return &set.ways[1];
    return nullptr;
  }
  // Of a chunk that find() does not know; count <= kMaxShortIds.
  void insert(const ShortChunk& chunk, uint64_t hash, const TokenId* ids, size_t count);

  // Any other chunk of at most kMaxLongBytes: copies its ids to `out` and returns their number, 0 where it is not known.
  size_t find_long(std::string_view chunk, uint64_t hash, TokenId* out) const;
  // Of a chunk that find_long() does not know.
  void insert_long(std::string_view chunk, uint64_t hash, const TokenId* ids, size_t count);

 private:
  // Two chunks whose hashes begin alike, the newer first: what falls out is the older one.
  struct alignas(64) Set {
    Entry ways[2] = {};
  };
  struct LongSlot {
    uint32_t tag = 0;
    uint32_t at = 0;  // in long_, of: bytes, ids, the ids, the bytes; 0 where the slot is free
  };
  static constexpr size_t kFirstSets = size_t{1} << 9;
  static constexpr size_t kMostSets = size_t{1} << 16;        // 4 MB
  static constexpr size_t kMostLongWords = size_t{1} << 19;   // 2 MB
  static constexpr size_t kMostLongSlots = size_t{1} << 15;   // 256 KB

  void grow();
  void place(const Entry& entry);

  std::vector<Set> sets_;
  int shift_ = 64 - 9;
  size_t inserted_ = 0;  // since the table has its size
  std::vector<LongSlot> long_slots_;
  std::vector<uint32_t> long_;
  size_t long_count_ = 0;
};

}  // namespace soma
