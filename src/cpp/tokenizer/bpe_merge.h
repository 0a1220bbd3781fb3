// The merges of a byte-level BPE vocabulary turn the bytes of a chunk into its ids:
//
//   s = bytes of the chunk, as ids;  while some neighbours (s_i, s_i+1) have a rank: merge the pair of lowest rank,
//   among equals the leftmost                                              (Sennrich et al. 2016, arXiv:1508.07909)
//
// A chunk of up to 64 bytes keeps the ranks of all pairs in an array, which is searched for each merge. A longer chunk
// keeps its symbols in a linked list and its pairs in a queue per rank: O(n log n) at worst. It takes O(n) where merges
// of a rank come from left to right, as in a long run of one letter.
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
  // Adds a pair. Returns false where the table has the pair already.
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

// Working memory for merging a chunk. One thread uses it at a time.
struct MergeScratch {
  // Pairs of one rank, each as the position of its left symbol.
  struct Queue {
    std::vector<uint32_t> run;   // pending from `front` on; ascending if `sorted`
    std::vector<uint32_t> late;  // pushed out of order after the first pop: a heap
    size_t front = 0;
    bool sorted = true;
  };
  std::vector<uint32_t> next, previous;  // symbol, by position; a position is that of the first byte
  std::vector<TokenId> id;               // by position
  std::vector<Merge> merge;              // with the next symbol
  std::vector<uint32_t> queue_of;        // rank -> queue, kNoQueue where there is none
  std::vector<Queue> queues;
  std::vector<uint32_t> waiting;  // ranks whose queue is not empty: a heap
  static constexpr uint32_t kNoQueue = 0xFFFFFFFFu;
};

class Merger {
 public:
  // The ranks of `merges` are below `ranks`. `byte_ids` are the ids of the 256 single bytes, StringTable::kAbsent for a
  // byte that is not a token.
  Merger(MergeTable merges, const std::vector<TokenId>& byte_ids, uint32_t ranks);

  // Writes the ids of a chunk to `out`, which has room for one per byte, and returns their number.
  // Every byte must be a token: see first_missing().
  size_t merge(const unsigned char* bytes, size_t size, TokenId* out, MergeScratch& scratch) const;

  // The offset of the first byte that is not a token; `size` where all bytes are.
  size_t first_missing(const unsigned char* bytes, size_t size) const;

 private:
  size_t merge_short(const unsigned char* bytes, size_t size, TokenId* out) const;
  size_t merge_long(const unsigned char* bytes, size_t size, TokenId* out, MergeScratch& scratch) const;

  MergeTable merges_;
  std::vector<TokenId> byte_ids_;
  std::vector<Merge> byte_pairs_;  // merges of two bytes: [first << 8 | second]
  uint32_t ranks_;
  bool has_all_bytes_;
};

}  // namespace soma
