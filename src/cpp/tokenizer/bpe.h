// Byte-level byte-pair encoding: the vocabulary, and the tokenizer made from it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/bpe_split.h"
#include "tokenizer/tokenizer.h"

namespace soma {

struct BpeVocabulary {
  BpePattern pattern = kBpePatterns[0].pattern;

  // Bytes of the ordinary tokens by id; nullopt for the id of a special token and for an unused id. All tokens differ.
  // Without `merges`, each of the 256 bytes must be a token. With `merges`, a text that needs a missing byte cannot be
  // encoded.
  std::vector<std::optional<std::string>> tokens;

  // Pairs of ids that merge, highest priority first. The bytes of a pair together are a token. Without a list, every
  // pair whose bytes together are a token merges, the token of lowest id first (tiktoken's ranks).
  std::optional<std::vector<std::pair<TokenId, TokenId>>> merges;

  // A chunk that is a token becomes that token without merging. Always so without `merges`.
  bool ignore_merges = false;

  // Texts and ids. No ordinary token has one of these ids.
  std::vector<std::pair<std::string, TokenId>> special_tokens;
};

// Encodes chunk by chunk (bpe_split.h). The bytes of a chunk are its first tokens. Then the pair of lowest rank merges,
// the leftmost among equals, until no pair has a rank. Decodes exactly, special tokens as their text.
// Throws std::invalid_argument that names the fault of the vocabulary.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeVocabulary vocabulary);

// The vocabulary of a tokenizer of kind "bpe". Throws std::invalid_argument for another kind.
BpeVocabulary bpe_vocabulary(const Tokenizer& tokenizer);

}  // namespace soma
