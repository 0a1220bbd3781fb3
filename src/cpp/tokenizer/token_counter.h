// Counts the tokens of a corpus for the vocabulary of a word, char or byte tokenizer (bpe: chunk_counter.h). It counts
// pieces of the texts in parallel. The result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/string_table.h"
#include "tokenizer/tokenizer.h"

namespace soma {

struct TokenCount {
  std::string token;
  uint64_t count;
  uint64_t first;  // byte offset of its first appearance, counted over all texts in a row
};

class TokenCounter {
 public:
  explicit TokenCounter(TokenizerKind kind) : kind_(kind) {}

  // Adds the tokens of valid UTF-8 texts. Memory grows with the distinct tokens, not with the texts.
  void add(const std::vector<std::string_view>& texts);

  uint64_t total() const;  // tokens seen, repetitions included

  // The most frequent token first; among equals, the one that appeared first. Empty for kByte, which counts only bytes.
  std::vector<TokenCount> ranked() const;

 private:
  // The counts of one task. It gets pieces in the order of the corpus, so the first position it sees is the lowest.
  struct Shard {
    StringTable tokens;
    std::vector<uint64_t> counts;
    std::vector<uint64_t> firsts;
    void add(std::string_view token, uint64_t position);
  };

  TokenizerKind kind_;
  std::vector<Shard> shards_;
  uint64_t bytes_seen_ = 0;
};

}  // namespace soma
