// kind "bpe": chunks (bpe_split.h), each looked up among those met before (bpe_cache.h), else taken whole where it is a
// token, else merged (bpe_merge.h).
#include "tokenizer/bpe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "base/check.h"
#include "tokenizer/bpe_cache.h"
#include "tokenizer/bpe_merge.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/string_table.h"

namespace soma {
namespace {

constexpr uint32_t kAbsent = StringTable::kAbsent;

// Bytes for an error message.
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

// What a thread needs to encode, kept between calls: taken from the tokenizer and put back.
struct Workspace {
  ChunkCache cache;
  MergeScratch scratch;
  std::vector<TokenId> ids;
  size_t misses = 0;  // chunks that the cache did not have
};

class WorkspacePool {
 public:
  ~WorkspacePool() {
    for (auto& slot : slots_) delete slot.load();
  }
  std::unique_ptr<Workspace> take() {
    for (auto& slot : slots_) {
      if (slot.load(std::memory_order_relaxed) == nullptr) continue;
      if (Workspace* const workspace = slot.exchange(nullptr)) return std::unique_ptr<Workspace>(workspace);
    }
    return std::make_unique<Workspace>();
  }
  void put(std::unique_ptr<Workspace> workspace) {
    for (auto& slot : slots_) {
      Workspace* expected = nullptr;
      if (slot.compare_exchange_strong(expected, workspace.get())) {
        static_cast<void>(workspace.release());
        return;
      }
    }
  }

 private:
  std::array<std::atomic<Workspace*>, 64> slots_{};
};

// The bytes of each token: those of at most 15 bytes in the table itself, so that most are one cache line away.
class TokenBytes {
 public:
  explicit TokenBytes(const BpeVocabulary& vocabulary, uint32_t vocab_size) : entries_(vocab_size) {
    for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
      if (vocabulary.tokens[id]) set(static_cast<TokenId>(id), *vocabulary.tokens[id]);
    }
    for (const auto& [token, id] : vocabulary.special_tokens) set(id, token);
  }

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
  // Copies the token and maybe more, 16 bytes in all where it is shorter, and returns its end.
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
  struct Far {
    uint32_t start, size;
  };
  struct alignas(16) Entry {
    char bytes[kInline] = {};  // or a Far
    unsigned char size = 0;    // 0: no token; more than kInline: see far()
    Far far() const {
      Far far;
      std::memcpy(&far, bytes, sizeof far);
      return far;
    }
  };
  static_assert(sizeof(Entry) == 16);

  void set(TokenId id, std::string_view token) {
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

  std::vector<Entry> entries_;
  std::string far_;
};

uint32_t checked_vocab_size(const BpeVocabulary& vocabulary) {
  size_t size = 0;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.tokens[id]) size = id + 1;
  }
  for (const auto& [text, id] : vocabulary.special_tokens) {
    check(!text.empty(), "special token ", id, " is empty");
    check(id >= vocabulary.tokens.size() || !vocabulary.tokens[id], "special token ", quote_bytes(text), " has the id ",
          id, ", which is that of an ordinary token");
    size = std::max<size_t>(size, size_t{id} + 1);
  }
  std::unordered_map<TokenId, std::string_view> owner;
  for (const auto& [text, id] : vocabulary.special_tokens) {
    const auto [other, fresh] = owner.emplace(id, text);
    check(fresh, "special tokens ", quote_bytes(other->second), " and ", quote_bytes(text), " have the same id ", id);
  }
  check(size <= kMostRanks, "the highest id is ", size - 1, "; ids up to ", kMostRanks - 1, " can be used");
  check(!vocabulary.merges || vocabulary.merges->size() <= kMostRanks, "there are more than ", kMostRanks, " merges");
  return static_cast<uint32_t>(size);
}

std::vector<TokenId> ids_of_specials(const BpeVocabulary& vocabulary) {
  std::vector<TokenId> ids;
  for (const auto& special : vocabulary.special_tokens) ids.push_back(special.second);
  return ids;
}

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeVocabulary vocabulary)
      : Tokenizer(checked_vocab_size(vocabulary), ids_of_specials(vocabulary)),
        bytes_(vocabulary, vocab_size()),
        whole_first_(vocabulary.ignore_merges || !vocabulary.merges),
        vocabulary_(std::move(vocabulary)) {
    index_tokens();
    std::vector<TokenId> byte_ids(256);
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      byte_ids[byte] = ordinary({&text, 1});
      check(byte_ids[byte] != kAbsent, "the vocabulary has no token for the single byte ", byte,
            "; byte-level BPE needs all 256");
    }
    merger_.emplace(vocabulary_.merges ? listed_merges() : merges_of_ranks(), byte_ids, ranks_);
    vocabulary_.tokens.clear();
    vocabulary_.tokens.shrink_to_fit();
  }

  TokenizerKind kind() const override { return TokenizerKind::kBpe; }

  bool has(TokenId id) const override { return bytes_.has(id); }

  bool has_all(const TokenId* ids, size_t count) const override {
    return std::all_of(ids, ids + count, [this](TokenId id) { return bytes_.has(id); });
  }

  std::string token(TokenId id) const override {
    if (is_special(id)) return std::string(bytes_.view(id));
    std::string out;
    for (const char byte : bytes_.view(id)) out += kAlphabet[static_cast<unsigned char>(byte)];
    return out;
  }

  std::optional<TokenId> find(std::string_view token) const override {
    for (const auto& [text, id] : vocabulary_.special_tokens) {
      if (text == token) return id;
    }
    std::string bytes;
    for (size_t i = 0; i < token.size(); i += utf8_length(static_cast<unsigned char>(token[i]))) {
      const auto character = token.substr(i, utf8_length(static_cast<unsigned char>(token[i])));
      const auto at = std::find(kAlphabet.begin(), kAlphabet.end(), character);
      if (at == kAlphabet.end()) return std::nullopt;
      bytes.push_back(static_cast<char>(at - kAlphabet.begin()));
    }
    const TokenId id = ordinary(bytes);
    return id == kAbsent ? std::nullopt : std::optional<TokenId>(id);
  }

  void append_decoded(const TokenId* ids, size_t count, std::string& out) const override {
    size_t total = 0;
    for (size_t i = 0; i < count; ++i) total += bytes_.size(ids[i]);
    const size_t before = out.size();
    out.resize(before + total + 16);
    char* at = out.data() + before;
    for (size_t i = 0; i < count; ++i) at = bytes_.copy(ids[i], at);
    out.resize(before + total);
  }

  BpeVocabulary vocabulary() const {
    BpeVocabulary copy = vocabulary_;
    for (TokenId id = 0; id < vocab_size(); ++id) {
      copy.tokens.emplace_back();
      if (has(id) && !is_special(id)) copy.tokens.back() = std::string(bytes_.view(id));
    }
    return copy;
  }

 protected:
  void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const override {
    auto workspace = pool_.take();
    const char* const begin = text.data() + span.begin;
    const char* const end = text.data() + span.end;
    const size_t before = out.ids.size();
    out.ids.resize(before + (span.end - span.begin) + ChunkCache::kMaxShortIds + 1);  // a token has at least one byte
    TokenId* id = out.ids.data() + before;
    BpeSplitter splitter(vocabulary_.pattern, {begin, static_cast<size_t>(end - begin)});
    size_t ends[kBatch];
    Lookup lookups[kBatch];
    size_t from = 0;
    bool cold = true;  // is the cache new to this text: then the vocabulary's lines will be wanted too
    while (const size_t count = splitter.next(ends, kBatch)) {
      // First all cache lines of a batch are asked for, then they are read.
      for (size_t i = 0; i < count; ++i) {
        const size_t size = ends[i] - from;
        Lookup& lookup = lookups[i];
        lookup.size = size;
        if (size <= ShortChunk::kMaxBytes) {
          lookup.key = ShortChunk::of(begin + from, size, span.end - span.begin - from);
          lookup.hash = lookup.key.hash();
          workspace->cache.prefetch(lookup.hash);
          if (cold) prefetch(&short_tokens_[lookup.hash >> 32 & (short_tokens_.size() - 1)]);
        }
        from = ends[i];
      }
      const size_t misses_before = workspace->misses;
      const char* chunk = begin + from;
      for (size_t i = count; i > 0; --i) chunk -= lookups[i - 1].size;
      for (size_t i = 0; i < count; ++i) {
        id = encode_chunk(chunk, lookups[i], id, *workspace);
        chunk += lookups[i].size;
      }
      cold = workspace->misses - misses_before > kBatch / 32;
    }
    out.ids.resize(static_cast<size_t>(id - out.ids.data()));
    pool_.put(std::move(workspace));
    if (!with_spans) return;
    size_t at = span.begin;
    for (size_t i = before; i < out.ids.size(); ++i) {
      out.spans.push_back({at, at + bytes_.size(out.ids[i])});
      at = out.spans.back().end;
    }
  }

  std::vector<std::string_view> cut(std::string_view text, size_t target) const override {
    return cut_at_chunk_ends(text, target);
  }

 private:
  TokenId ordinary(std::string_view bytes) const {
    if (bytes.size() > ShortChunk::kMaxBytes) {
      const uint32_t number = long_tokens_.find(bytes);
      return number == kAbsent ? kAbsent : long_ids_[number];
    }
    const ShortChunk key = ShortChunk::of(bytes.data(), bytes.size(), bytes.size());
    return short_token(key, key.hash());
  }
  TokenId short_token(const ShortChunk& key, uint64_t hash) const { return short_tokens_[short_slot(key, hash)].id; }
  // Where the token stands, or else would stand.
  size_t short_slot(const ShortChunk& key, uint64_t hash) const {
    size_t i = hash >> 32 & (short_tokens_.size() - 1);
    while (short_tokens_[i].id != kAbsent && !(short_tokens_[i].key == key)) i = (i + 1) & (short_tokens_.size() - 1);
    return i;
  }

  void index_tokens() {
    short_tokens_.resize(std::bit_ceil(vocabulary_.tokens.size() * 2 + 2));
    for (TokenId id = 0; id < vocabulary_.tokens.size(); ++id) {
      const auto& token = vocabulary_.tokens[id];
      if (!token) continue;
      if (token->empty()) fail("token ", id, " is empty");
      if (const TokenId other = ordinary(*token); other != kAbsent) {
        fail("token ", quote_bytes(*token), " is in the vocabulary twice, with the ids ", other, " and ", id);
      }
      if (token->size() > ShortChunk::kMaxBytes) {
        long_tokens_.insert(*token);
        long_ids_.push_back(id);
      } else {
        const ShortChunk key = ShortChunk::of(token->data(), token->size(), token->size());
        short_tokens_[short_slot(key, key.hash())] = {key, id};
      }
    }
  }

  MergeTable listed_merges() {
    const auto& merges = *vocabulary_.merges;
    MergeTable table;
    table.reserve(merges.size());
    ranks_ = static_cast<uint32_t>(merges.size());
    std::string both;
    for (uint32_t rank = 0; rank < merges.size(); ++rank) {
      const auto [left, right] = merges[rank];
      for (const TokenId part : {left, right}) {
        check(part < vocab_size() && has(part) && !is_special(part), "merge ", rank, " is of id ", part,
              ", which is no ordinary token");
      }
      both.assign(bytes_.view(left)).append(bytes_.view(right));
      const TokenId merged = ordinary(both);
      if (merged == kAbsent) {
        fail("merge ", rank, " of ids ", left, " and ", right, " gives ", quote_bytes(both), ", which is no token");
      }
      if (!table.insert(left, right, {rank, merged})) {
        fail("merge ", rank, " of ids ", left, " and ", right, " is there twice");
      }
    }
    return table;
  }

  // Every way to cut a token into two.
  MergeTable merges_of_ranks() {
    struct Pair {
      TokenId left, right, merged;
    };
    std::vector<Pair> pairs;
    for (TokenId id = 0; id < vocabulary_.tokens.size(); ++id) {
      if (!vocabulary_.tokens[id]) continue;
      const std::string_view token = *vocabulary_.tokens[id];
      for (size_t cut = 1; cut < token.size(); ++cut) {
        const TokenId left = ordinary(token.substr(0, cut));
        if (left == kAbsent) continue;
        const TokenId right = ordinary(token.substr(cut));
        if (right != kAbsent) pairs.push_back({left, right, id});
      }
    }
    MergeTable table;
    table.reserve(pairs.size());
    for (const Pair& pair : pairs) table.insert(pair.left, pair.right, {pair.merged, pair.merged});
    ranks_ = vocab_size();
    return table;
  }

  struct Lookup {
    ShortChunk key;
    uint64_t hash;
    size_t size;
  };
  static constexpr size_t kBatch = 128;

  // Writes the ids of the chunk and returns where the next may be written. Up to kMaxShortIds + 1 words are written.
  TokenId* encode_chunk(const char* chunk, const Lookup& lookup, TokenId* out, Workspace& work) const {
    const size_t size = lookup.size;
    const bool is_short = size <= ShortChunk::kMaxBytes;
    if (is_short) {
      if (const auto* const entry = work.cache.find(lookup.key, lookup.hash)) {
        std::memcpy(out, entry->ids, sizeof entry->ids);
        return out + entry->count();
      }
    }
    const bool kept = size <= ChunkCache::kMaxLongBytes;
    const uint64_t hash = kept ? hash_bytes({chunk, size}) : 0;
    if (kept) {
      if (const size_t count = work.cache.find_long({chunk, size}, hash, out)) return out + count;
    }
    ++work.misses;
    const size_t count = encode_new(chunk, size, work);
    std::copy(work.ids.data(), work.ids.data() + count, out);
    if (is_short && count <= ChunkCache::kMaxShortIds) {
      work.cache.insert(lookup.key, lookup.hash, work.ids.data(), count);
    } else if (kept) {
      work.cache.insert_long({chunk, size}, hash, work.ids.data(), count);
    }
    return out + count;
  }

  // Into work.ids; returns the number.
  size_t encode_new(const char* chunk, size_t size, Workspace& work) const {
    if (work.ids.size() < size) work.ids.resize(std::max(size, work.ids.size() * 2));
    if (whole_first_) {
      work.ids[0] = ordinary({chunk, size});
      if (work.ids[0] != kAbsent) return 1;
    }
    return merger_->merge(reinterpret_cast<const unsigned char*>(chunk), size, work.ids.data(), work.scratch);
  }

  inline static const std::array<std::string, 256> kAlphabet = byte_alphabet();

  TokenBytes bytes_;
  bool whole_first_;
  BpeVocabulary vocabulary_;  // but for the tokens, which bytes_ has
  struct ShortToken {
    ShortChunk key{};
    TokenId id = kAbsent;
  };
  std::vector<ShortToken> short_tokens_;  // those of at most 15 bytes: open addressing, at most half full
  StringTable long_tokens_;
  std::vector<TokenId> long_ids_;  // by number in long_tokens_
  uint32_t ranks_ = 0;
  std::optional<Merger> merger_;
  mutable WorkspacePool pool_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeVocabulary vocabulary) {
  return std::make_unique<BpeTokenizer>(std::move(vocabulary));
}

BpeVocabulary bpe_vocabulary(const Tokenizer& tokenizer) {
  const auto* const bpe = dynamic_cast<const BpeTokenizer*>(&tokenizer);
  check(bpe != nullptr, "a tokenizer of kind '", tokenizer_kind_name(tokenizer.kind()), "' has no merges");
  return bpe->vocabulary();
}

}  // namespace soma
