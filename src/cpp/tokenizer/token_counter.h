// Counts the tokens of a corpus: what a vocabulary is made from. Parallel over pieces of the texts; what it finds does
// not depend on the number of threads.
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
  uint64_t first;  // where in the corpus it first appeared: bytes of all texts before it
};

class TokenCounter {
 public:
  explicit TokenCounter(TokenizerKind kind) : kind_(kind) {}

  // Adds the tokens of valid UTF-8 texts. Memory grows with the distinct tokens, not with the texts.
  void add(const std::vector<std::string_view>& texts);

  uint64_t total() const;  // tokens seen, repetitions included

  // The most frequent first, among equals the one that appeared first. Bytes are not told apart: none of them here.
  std::vector<TokenCount> ranked() const;

 private:
  // What one task counted. A task's pieces come in the order of the corpus, so that `first` is set once.
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
