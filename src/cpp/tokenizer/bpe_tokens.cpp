// Fills the tables of a vocabulary's tokens.
#include "tokenizer/bpe_tokens.h"

#include <bit>

#include "base/check.h"

namespace soma {

TokenBytes::TokenBytes(const BpeVocabulary& vocabulary, uint32_t vocab_size) : entries_(vocab_size) {
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.tokens[id]) set(static_cast<TokenId>(id), *vocabulary.tokens[id]);
  }
  for (const auto& [token, id] : vocabulary.special_tokens) set(id, token);
}

void TokenBytes::set(TokenId id, std::string_view token) {
  Entry& entry = entries_[id];
  if (token.size() <= kInline) {
    std::memcpy(entry.bytes, token.data(), token.size());
    entry.size = static_cast<unsigned char>(token.size());
  } else {
    const Far far = {static_cast<uint32_t>(far_.size()), static_cast<uint32_t>(token.size())};
    std::memcpy(entry.bytes, &far, sizeof far);
    entry.size = kInline + 1;
    far_ += token;
  }
}

TokenIds::TokenIds(const BpeVocabulary& vocabulary) : short_(std::bit_ceil(vocabulary.tokens.size() * 2 + 2)) {
  for (TokenId id = 0; id < vocabulary.tokens.size(); ++id) {
    const auto& token = vocabulary.tokens[id];
    if (!token) continue;
    if (token->empty()) fail("token ", id, " is empty");
    if (const TokenId other = find(*token); other != kAbsent) {
      fail("token ", quote_bytes(*token), " is in the vocabulary twice, with the ids ", other, " and ", id);
    }
    if (token->size() > ShortChunk::kMaxBytes) {
      long_.insert(*token);
      long_ids_.push_back(id);
    } else {
      const ShortChunk key = ShortChunk::of(token->data(), token->size(), token->size());
      short_[slot_of(key, key.hash())] = {key, id};
    }
  }
}

std::string quote_bytes(std::string_view bytes) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "b'";
  for (const char c : bytes.substr(0, 50)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F && byte != '\\' && byte != '\'') {
      out.push_back(c);
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (bytes.size() > 50 ? "...'" : "'");
}

}  // namespace soma
