// kind "bpe": checks and indexes a vocabulary. bpe_encoder.h encodes with it, bpe_tokens.h decodes.
#include "tokenizer/bpe.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "base/check.h"
#include "tokenizer/bpe_encoder.h"
#include "tokenizer/bpe_tokens.h"
#include "tokenizer/byte_alphabet.h"

namespace soma {
namespace {

constexpr TokenId kAbsent = TokenIds::kAbsent;

uint32_t checked_vocab_size(const BpeVocabulary& vocabulary) {
  size_t size = 0;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.tokens[id]) size = id + 1;
  }
  for (const auto& [text, id] : vocabulary.special_tokens) {
    check(!text.empty(), "special token ", id, " is empty");
    check(id >= vocabulary.tokens.size() || !vocabulary.tokens[id], "special token ", quote_bytes(text), " has the id ",
          id, " of an ordinary token");
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
        ids_(vocabulary),
        vocabulary_(std::move(vocabulary)) {
    std::vector<TokenId> byte_ids(256);
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      byte_ids[byte] = ids_.find({&text, 1});
      check(byte_ids[byte] != kAbsent || vocabulary_.merges, "the vocabulary has no token for the single byte ", byte,
            "; ranks without merges need all 256");
    }
    const bool whole_first = vocabulary_.ignore_merges || !vocabulary_.merges;
    MergeTable merges = vocabulary_.merges ? listed_merges() : merges_of_ranks();
    const size_t ranks = vocabulary_.merges ? vocabulary_.merges->size() : vocab_size();
    encoder_.emplace(vocabulary_.pattern, ids_, whole_first,
                     Merger(std::move(merges), byte_ids, static_cast<uint32_t>(ranks)));
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
    const TokenId id = ids_.find(bytes);
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
    const std::string_view stretch = text.substr(span.begin, span.end - span.begin);
    const size_t before = out.ids.size();
    size_t end = 0;
    try {
      encoder_->encode(&stretch, 1, out.ids, &end);
    } catch (const BpeEncoder::MissingByte&) {
      const size_t at = span.begin + encoder_->find_missing(stretch);
      throw Unencodable{{at, at + 1}, "byte"};
    }
    if (!with_spans) return;
    size_t at = span.begin;
    for (size_t i = before; i < out.ids.size(); ++i) {
      out.spans.push_back({at, at + bytes_.size(out.ids[i])});
      at = out.spans.back().end;
    }
  }

  void encode_texts(const std::string_view* texts, size_t count, EncodedTexts& out) const override {
    const size_t before = out.ids.size();
    const size_t ends_before = out.ends.size();
    out.ends.resize(ends_before + count);
    try {
      encoder_->encode(texts, count, out.ids, out.ends.data() + ends_before);
    } catch (const BpeEncoder::MissingByte&) {
      out.ids.resize(before);
      out.ends.resize(ends_before);
      Tokenizer::encode_texts(texts, count, out);  // text by text: the error must name the first bad text
    }
  }

  std::vector<std::string_view> cut(std::string_view text, size_t target) const override {
    return cut_at_chunk_ends(text, target);
  }

 private:
  MergeTable listed_merges() {
    const auto& merges = *vocabulary_.merges;
    MergeTable table;
    table.reserve(merges.size());
    std::string both;
    for (uint32_t rank = 0; rank < merges.size(); ++rank) {
      const auto [left, right] = merges[rank];
      for (const TokenId part : {left, right}) {
        check(part < vocab_size() && has(part) && !is_special(part), "merge ", rank, " uses id ", part,
              ", which is not an ordinary token");
      }
      both.assign(bytes_.view(left)).append(bytes_.view(right));
      const TokenId merged = ids_.find(both);
      if (merged == kAbsent) {
        fail("merge ", rank, " of ids ", left, " and ", right, " gives ", quote_bytes(both), ", which is not a token");
      }
      if (!table.insert(left, right, {rank, merged})) {
        fail("merge ", rank, " of ids ", left, " and ", right, " is listed twice");
      }
    }
    return table;
  }

  // The merges of ranks: every split of a token into two tokens.
  MergeTable merges_of_ranks() {
    struct Pair {
      TokenId left, right, merged;
    };
    std::vector<Pair> pairs;
    for (TokenId id = 0; id < vocabulary_.tokens.size(); ++id) {
      if (!vocabulary_.tokens[id]) continue;
      const std::string_view token = *vocabulary_.tokens[id];
      for (size_t cut = 1; cut < token.size(); ++cut) {
        const TokenId left = ids_.find(token.substr(0, cut));
        if (left == kAbsent) continue;
        const TokenId right = ids_.find(token.substr(cut));
        if (right != kAbsent) pairs.push_back({left, right, id});
      }
    }
    MergeTable table;
    table.reserve(pairs.size());
    for (const Pair& pair : pairs) table.insert(pair.left, pair.right, {pair.merged, pair.merged});
    return table;
  }

  inline static const std::array<std::string, 256> kAlphabet = byte_alphabet();

  TokenBytes bytes_;
  TokenIds ids_;
  BpeVocabulary vocabulary_;  // without its tokens, which bytes_ holds
  std::optional<BpeEncoder> encoder_;
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
