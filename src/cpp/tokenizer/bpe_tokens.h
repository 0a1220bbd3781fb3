// Tables of a byte-level BPE vocabulary. TokenBytes maps the id of any token to its bytes, for decoding. TokenIds maps
// the bytes of an ordinary token to its id, for encoding. Tokens of at most 15 bytes are stored in the tables
// themselves: finding one reads one cache line.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/bpe_cache.h"
#include "tokenizer/string_table.h"

namespace soma {

// Id to bytes.
class TokenBytes {
 public:
  TokenBytes(const BpeVocabulary& vocabulary, uint32_t vocab_size);

  bool has(TokenId id) const { return entries_[id].size != 0; }
  uint32_t size(TokenId id) const {
    const Entry& entry = entries_[id];
    return entry.size <= kInline ? entry.size : entry.far().size;
  }
  std::string_view view(TokenId id) const {
    const Entry& entry = entries_[id];
    if (entry.size <= kInline) return {entry.bytes, entry.size};
    const auto [start, size] = entry.far();
    return {far_.data() + start, size};
  }
  // Copies the token and returns its end. Writes 16 bytes for a shorter token.
  char* copy(TokenId id, char* to) const {
    const Entry& entry = entries_[id];
    if (entry.size <= kInline) {
      std::memcpy(to, &entry, sizeof entry);
      return to + entry.size;
    }
    const auto [start, size] = entry.far();
    std::memcpy(to, far_.data() + start, size);
    return to + size;
  }

 private:
  static constexpr unsigned char kInline = 15;
  struct Far {  // place of a longer token in far_
    uint32_t start, size;
  };
  struct alignas(16) Entry {
    char bytes[kInline] = {};  // the token, or a Far
    unsigned char size = 0;    // 0: no token; more than kInline: `bytes` is a Far
    Far far() const {
      Far far;
      std::memcpy(&far, bytes, sizeof far);
      return far;
    }
  };
  static_assert(sizeof(Entry) == 16);

  void set(TokenId id, std::string_view token);

  std::vector<Entry> entries_;
  std::string far_;
};

// Bytes to id, of ordinary tokens.
class TokenIds {
 public:
  static constexpr TokenId kAbsent = StringTable::kAbsent;

  // Throws std::invalid_argument for an empty or repeated token.
  explicit TokenIds(const BpeVocabulary& vocabulary);

  // The id of a token; kAbsent where the vocabulary does not have it.
  TokenId find(std::string_view bytes) const {
    if (bytes.size() > ShortChunk::kMaxBytes) {
      const uint32_t number = long_.find(bytes);
      return number == StringTable::kAbsent ? kAbsent : long_ids_[number];
    }
    const ShortChunk key = ShortChunk::of(bytes.data(), bytes.size(), bytes.size());
    return short_[slot_of(key, key.hash())].id;
  }
  // Loads the cache line that find() reads for a short chunk of this hash.
  void prefetch(uint64_t hash) const { soma::prefetch(&short_[hash >> 32 & (short_.size() - 1)]); }

 private:
  struct Slot {
    ShortChunk key{};
    TokenId id = kAbsent;
  };
  // The slot of the token, or the free slot where it would go.
  size_t slot_of(const ShortChunk& key, uint64_t hash) const {
    size_t i = hash >> 32 & (short_.size() - 1);
    while (short_[i].id != kAbsent && !(short_[i].key == key)) i = (i + 1) & (short_.size() - 1);
    return i;
  }

  std::vector<Slot> short_;  // open addressing, at most half full
  StringTable long_;
  std::vector<TokenId> long_ids_;  // by number in long_
};

// At most 50 bytes as a literal b'...', for an error message.
std::string quote_bytes(std::string_view bytes);

}  // namespace soma
