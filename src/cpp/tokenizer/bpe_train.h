// Learns the merges of byte-level BPE from counted chunks of text. Each step turns the most frequent pair of
// neighbouring tokens into a new token, in all chunks. Among equally frequent pairs, the smaller left id wins, then the
// smaller right id. Ids are the 256 bytes, then the new tokens in order. This is the rule of rustbpe; Hugging Face
// tokenizers order the bytes differently.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/pair_table.h"

namespace soma {

struct CountedChunk {
  std::string_view bytes;
  uint64_t count;
};

// Memory: 4 bytes per byte of the distinct chunks, about as much for the places of pairs, and the table of pairs.
class BpeTrainer {
 public:
  // Two kinds of pairs are never merged: those with a count below `min_frequency` (at least 1), and those that spell a
  // text of `reserved`. The chunks are read during the call only.
  BpeTrainer(std::vector<CountedChunk> chunks, uint64_t min_frequency, std::vector<std::string> reserved);

  // Makes up to `most` more merges and returns their number: fewer where no pair is left. May throw Interrupted; the
  // next call then continues.
  size_t merge(size_t most);

  // The two ids of each merge, in order: merge i made token 256 + i.
  const std::vector<std::pair<uint32_t, uint32_t>>& merges() const { return merges_; }

  // The bytes of every token by id: the 256 bytes, then the merged ones.
  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  // Chunks of equal count are stored side by side, from `begin` to the next stretch.
  struct Stretch {
    uint32_t begin;
    uint64_t count;
  };

  // The neighbours that a merge finds on one side of the new token.
  struct Neighbour {
    uint64_t count = 0;
    uint32_t places = 0;
    uint32_t next_posting = 0;
  };
  struct Side {
    std::vector<Neighbour> by_id;
    std::vector<uint32_t> ids;                          // that are in use in by_id
    std::vector<std::pair<uint32_t, uint32_t>> places;  // id, first cell of the pair
    void add(uint32_t id, uint32_t place, uint64_t count);
    void take_back(uint64_t count);  // undoes the last add()
  };

  template <typename Visit>
  void for_each_pair(Visit&& visit) const;
  void index();
  bool is_reserved(uint64_t pair) const;

  // apply() makes a merge. settle() updates the pairs on one side of it, with take() for old and create() for new
  // pairs.
  void apply(const PairEntry& entry);
  void settle(Side& side, uint32_t old, uint32_t merged, bool before);
  void take(uint32_t left, uint32_t right, uint64_t count);
  uint32_t* create(uint32_t left, uint32_t right, uint64_t count, uint32_t places);

  uint64_t min_frequency_;
  std::vector<std::string> reserved_;
  std::vector<std::string> tokens_;
  std::vector<std::pair<uint32_t, uint32_t>> merges_;

  // The chunks: a cell per byte, and kEnd around each chunk. The first and the last cell of a token hold its id, so
  // that both its neighbours are found in one step. kInside marks a cell that was the first of a token before a merge.
  std::vector<uint32_t> cells_;
  std::vector<uint32_t> lengths_;  // of tokens, by id
  std::vector<Stretch> stretches_;

  // The index of pairs with a count of at least floor_: their counts, the ascending first cells of their places (some
  // out of date), and a heap of (count, pair) whose counts may be too high. The count of a pair never grows once both
  // its tokens exist. So a pair below the floor is not needed until the floor falls.
  uint64_t floor_ = 0;
  PairTable pairs_;
  std::vector<uint32_t> postings_;
  std::vector<PairCount> heap_;
  Side before_, after_;
};

}  // namespace soma
