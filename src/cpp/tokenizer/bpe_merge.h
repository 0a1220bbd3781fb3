// The merges of a byte-level BPE vocabulary, and the way from the bytes of a chunk to its ids:
//
//   s = bytes of the chunk, as ids;  while some neighbours (s_i, s_i+1) have a rank: merge the pair of lowest rank,
//   among equals the leftmost                                              (Sennrich et al. 2016, arXiv:1508.07909)
//
// Up to 64 bytes, the ranks of all neighbours stand in an array that is searched for each merge. Longer chunks keep the
// pairs in one queue per rank, with the symbols in a linked list: O(n log n) at worst, O(n) where merges of one rank
// come from left to right, as in a long run of one letter.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace soma {

constexpr uint32_t kMostRanks = kMostTokenIds;
constexpr uint32_t kNoRank = 0xFFFFFFFFu;

struct Merge {
  uint32_t rank;  // kNoRank where the pair does not merge
  TokenId id;     // of the merged token
};

// (left id, right id) -> Merge: open addressing, at most half full.
class MergeTable {
 public:
  // Room for `count` pairs.
  void reserve(size_t count);
  // Adds a pair; false where it is there already.
  bool insert(TokenId left, TokenId right, Merge merge);

  Merge find(TokenId left, TokenId right) const {
    for (size_t i = slot_of(left, right);; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.left == left && slot.right == right) return slot.merge;
      if (slot.merge.rank == kNoRank) return {kNoRank, 0};
    }
  }

 private:
  struct Slot {
    TokenId left = 0, right = 0;
    Merge merge{kNoRank, 0};
  };
  size_t slot_of(TokenId left, TokenId right) const {
    const uint64_t key = (uint64_t{left} << 32 | right) * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>((key ^ key >> 32) * 0xD6E8FEB86659FD93u >> shift_);
  }
  std::vector<Slot> slots_;
  size_t mask_ = 0;
  int shift_ = 63;
};

// What merging a chunk needs besides the vocabulary: one per thread at a time.
struct MergeScratch {
  // Neighbours of one rank, by the position of the left one.
  struct Queue {
    std::vector<uint32_t> run;   // from `front` on: those known before the first was taken, ascending once `sorted`
    std::vector<uint32_t> late;  // those that came out of order after that: a heap
    size_t front = 0;
    bool sorted = true;
  };
  std::vector<uint32_t> next, previous;  // of the symbol that starts at a byte
  std::vector<TokenId> id;
  std::vector<Merge> merge;        // with the next symbol
  std::vector<uint32_t> queue_of;  // rank -> queue, kNoQueue where there is none
  std::vector<Queue> queues;
  std::vector<uint32_t> waiting;  // ranks whose queue holds something: a heap
  static constexpr uint32_t kNoQueue = 0xFFFFFFFFu;
};

class Merger {
 public:
  // `merges` with ranks below `ranks`; `byte_ids` of the 256 single bytes, StringTable::kAbsent where one is no token.
  Merger(MergeTable merges, const std::vector<TokenId>& byte_ids, uint32_t ranks);

  // Appends the ids of a chunk to `out`, which has room for one per byte; returns their number.
  // All bytes are tokens: see first_missing().
  size_t merge(const unsigned char* bytes, size_t size, TokenId* out, MergeScratch& scratch) const;

  // The place of the first byte that is no token; `size` where there is none.
  size_t first_missing(const unsigned char* bytes, size_t size) const;

 private:
  size_t merge_short(const unsigned char* bytes, size_t size, TokenId* out) const;
  size_t merge_long(const unsigned char* bytes, size_t size, TokenId* out, MergeScratch& scratch) const;

  MergeTable merges_;
  std::vector<TokenId> byte_ids_;
  std::vector<Merge> byte_pairs_;  // of two bytes: [first << 8 | second]
  uint32_t ranks_;
  bool has_all_bytes_;
};

}  // namespace soma
