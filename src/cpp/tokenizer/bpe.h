// Byte-level byte-pair encoding: the vocabulary as data, and the tokenizer made from it.
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
  BpePattern pattern = BpePattern::kGpt2;

  // Bytes of the ordinary tokens by id; nullopt where an id is a special token's or nobody's. No two are alike. Without
  // `merges`, all 256 bytes are tokens; with them, a text that needs a byte that is none cannot be encoded.
  std::vector<std::optional<std::string>> tokens;

  // Pairs of ids that merge, the first before all others; their bytes together are a token. Without: any pair whose
  // bytes together are a token merges, the one of lowest id first (tiktoken's ranks).
  std::optional<std::vector<std::pair<TokenId, TokenId>>> merges;

  // A chunk that is a token as a whole is taken so, whatever the merges give. Implied without merges.
  bool ignore_merges = false;

  // Texts and ids, which are not those of ordinary tokens.
  std::vector<std::pair<std::string, TokenId>> special_tokens;
};

// Encodes chunk by chunk (bpe_split.h): the bytes of a chunk are its first tokens; as long as some neighbours merge,
// the pair of lowest rank does, among equals the leftmost. Decodes exactly, special tokens as their text.
// Throws std::invalid_argument saying what is wrong with the vocabulary.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeVocabulary vocabulary);

// What a tokenizer of kind "bpe" was made from; throws std::invalid_argument for another kind.
BpeVocabulary bpe_vocabulary(const Tokenizer& tokenizer);

}  // namespace soma
