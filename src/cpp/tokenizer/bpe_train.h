// Learns the merges of byte-level BPE from counted chunks of text. Step by step: the most frequent pair of neighbouring
// tokens becomes a new token, everywhere at once; among equally frequent pairs the one with the smaller left id, then
// the smaller right id, where ids are the 256 bytes and then the new tokens in order. That is the rule of rustbpe, and
// of Hugging Face tokenizers but for its order of the bytes.
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

// Memory: 4 bytes for every byte of the distinct chunks, about as much for where each pair stands, and the pairs.
class BpeTrainer {
 public:
  // Pairs that stand fewer than `min_frequency` (at least 1) times are not merged, nor are those that would spell one
  // of `reserved`. The chunks are needed during the call only.
  BpeTrainer(std::vector<CountedChunk> chunks, uint64_t min_frequency, std::vector<std::string> reserved);

  // Makes up to `most` more merges, and returns how many it made: fewer where no pair is left. May throw Interrupted,
  // and can go on after that.
  size_t merge(size_t most);

  // The two ids that each merge joined, in order: merge i made token 256 + i.
  const std::vector<std::pair<uint32_t, uint32_t>>& merges() const { return merges_; }

  // The bytes of every token by id: the 256 bytes, then the merged ones.
  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  // Chunks of equal count stand side by side, from `begin` to the next stretch.
  struct Stretch {
    uint32_t begin;
    uint64_t count;
  };

  // What a merge finds on one side of the new token, by the id of the neighbour.
  struct Neighbour {
    uint64_t count = 0;
    uint32_t places = 0;
    uint32_t next_posting = 0;
  };
  struct Side {
    std::vector<Neighbour> by_id;
    std::vector<uint32_t> ids;                          // those that have a neighbour
    std::vector<std::pair<uint32_t, uint32_t>> places;  // id, where the pair starts
    void add(uint32_t id, uint32_t place, uint64_t count);
    void take_back(uint64_t count);  // the last that was added
  };

  template <typename Visit>
  void for_each_pair(Visit&& visit) const;
  void index();
  bool is_reserved(uint64_t pair) const;

  // A merge: what stands around its places, the counts it takes from known pairs, the pairs it makes.
  void apply(const PairEntry& entry);
  void settle(Side& side, uint32_t old, uint32_t merged, bool before);
  void take(uint32_t left, uint32_t right, uint64_t count);
  uint32_t* create(uint32_t left, uint32_t right, uint64_t count, uint32_t places);

  uint64_t min_frequency_;
  std::vector<std::string> reserved_;
  std::vector<std::string> tokens_;
  std::vector<std::pair<uint32_t, uint32_t>> merges_;

  // The chunks, a cell for each byte and kEnd around each chunk. A token holds its id in its first and its last cell,
  // so that both neighbours of a token are one step away whatever its length; kInside marks first cells that no longer
  // are.
  std::vector<uint32_t> cells_;
  std::vector<uint32_t> lengths_;  // of tokens, by id
  std::vector<Stretch> stretches_;

  // What is known of pairs that stand at least floor_ times: the counts, the ascending first cells of their places
  // (some out of date), and a heap of (count, pair) in which counts may be too high. The count of a pair never grows
  // once both its tokens exist, so that a pair below the floor need not be known until the floor is lowered.
  uint64_t floor_ = 0;
  PairTable pairs_;
  std::vector<uint32_t> postings_;
  std::vector<PairCount> heap_;
  Side before_, after_;
};

}  // namespace soma
