// The parts that all kinds of tokenizer share: special tokens in text, long texts, and spans in characters.
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <exception>
#include <string>

#include "base/check.h"
#include "base/interrupt.h"
#include "base/parallel.h"
#include "tokenizer/split.h"
#include "tokenizer/unicode.h"

namespace soma {
namespace {

constexpr size_t kSliceBytes = size_t{1} << 22;  // of one text between two checks for an interrupt
constexpr size_t kPieceBytes = size_t{1} << 17;  // of one text that a thread encodes at a time

struct SpecialMatch {
  size_t at;
  size_t size;
  TokenId id;
};

// The first allowed special token in text[from, ...). Where several start, the longest.
std::optional<SpecialMatch> find_special(const Tokenizer& tokenizer, const std::vector<TokenId>& allowed,
                                         std::string_view text, size_t from) {
  if (allowed.empty()) return std::nullopt;
  std::vector<std::string> tokens;
  bool starts[256] = {};
  for (const TokenId id : allowed) {
    tokens.push_back(tokenizer.token(id));
    starts[static_cast<unsigned char>(tokens.back()[0])] = true;
  }
  for (size_t at = from; at < text.size(); ++at) {
    if (!starts[static_cast<unsigned char>(text[at])]) continue;
    std::optional<SpecialMatch> best;
    for (size_t i = 0; i < allowed.size(); ++i) {
      const std::string& token = tokens[i];
      if (text.compare(at, token.size(), token) == 0 && (!best || token.size() > best->size)) {
        best = SpecialMatch{at, token.size(), allowed[i]};
      }
    }
    if (best) return best;
  }
  return std::nullopt;
}

// Text for an error message: about 100 bytes at most, with control characters escaped.
std::string quote(std::string_view text) {
  constexpr size_t kLongest = 100;
  std::string out = "'";
  size_t i = 0;
  while (i < text.size() && i < kLongest) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x20 || lead == 0x7F) {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[lead >> 4], kHex[lead & 15]};
    } else {
      out += text.substr(i, utf8_length(lead));
    }
    i += utf8_length(lead);
  }
  return out + (i < text.size() ? "...'" : "'");
}

// Throws an error about the byte text[at], which is not a token.
[[noreturn]] void fail_for_byte(std::string_view text, size_t at) {
  constexpr char kHex[] = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(text[at]);
  while (is_utf8_continuation(static_cast<unsigned char>(text[at]))) --at;
  const std::string_view character = text.substr(at, utf8_length(static_cast<unsigned char>(text[at])));
  fail("character ", quote(character), " at character ", count_code_points(text.substr(0, at)), " needs the byte 0x",
       kHex[byte >> 4], kHex[byte & 15],
       ", which is not a token of this vocabulary: leave the character out of the text, "
       "or use a tokenizer that was trained with all 256 bytes");
}

}  // namespace

TokenizerKind parse_tokenizer_kind(std::string_view name) {
  if (name == "word") return TokenizerKind::kWord;
  if (name == "char") return TokenizerKind::kChar;
  if (name == "byte") return TokenizerKind::kByte;
  if (name == "bpe") return TokenizerKind::kBpe;
  fail("kind must be 'word', 'char', 'byte' or 'bpe', got ", quote(name));
}

const char* tokenizer_kind_name(TokenizerKind kind) {
  switch (kind) {
    case TokenizerKind::kWord:
      return "word";
    case TokenizerKind::kChar:
      return "char";
    case TokenizerKind::kByte:
      return "byte";
    case TokenizerKind::kBpe:
      return "bpe";
  }
  return "";
}

Tokenizer::Tokenizer(uint32_t vocab_size, std::vector<TokenId> special_ids)
    : vocab_size_(vocab_size), special_(vocab_size, false), special_ids_(std::move(special_ids)) {
  std::sort(special_ids_.begin(), special_ids_.end());
  special_ids_.erase(std::unique(special_ids_.begin(), special_ids_.end()), special_ids_.end());
  for (const TokenId id : special_ids_) {
    check(id < vocab_size, "special token id ", id, " is not below the vocabulary size ", vocab_size);
    special_[id] = true;
  }
}

ListedTokenizer::ListedTokenizer(const std::vector<std::string>& tokens, std::vector<TokenId> special_ids)
    : Tokenizer(static_cast<uint32_t>(tokens.size()), std::move(special_ids)) {
  for (const std::string& token : tokens) {
    const uint32_t expected = tokens_.size();
    check(tokens_.insert(token) == expected, "token ", quote(token), " is in the vocabulary twice");
  }
  for (const TokenId id : this->special_ids()) check(!text(id).empty(), "special token ", id, " is empty");
}

std::optional<TokenId> ListedTokenizer::find(std::string_view token) const {
  const uint32_t id = tokens_.find(token);
  return id == StringTable::kAbsent ? std::nullopt : std::optional<TokenId>(id);
}

std::vector<std::string_view> ListedTokenizer::cut(std::string_view text, size_t target) const {
  return cut_at_word_ends(text, target);
}

// Encodes the span as ordinary text. A long span goes to all threads, in rounds of pieces with a check for an interrupt
// after each.
void Tokenizer::encode_stretch(std::string_view text, Span span, bool with_spans, bool alone, Encoding& out) const {
  const std::string_view stretch = text.substr(span.begin, span.end - span.begin);
  const auto threads = static_cast<size_t>(alone ? call_threads() : 1);
  size_t at = span.begin;
  if (threads == 1 || stretch.size() < 2 * kPieceBytes) {
    for (const std::string_view slice : cut(stretch, kSliceBytes)) {
      encode_ordinary(text, {at, at + slice.size()}, with_spans, out);
      at += slice.size();
      if (alone) check_interrupt();
    }
    return;
  }
  const auto pieces = cut(stretch, kPieceBytes);
  const size_t round = threads * (kSliceBytes / kPieceBytes);
  std::vector<Encoding> parts(std::min(round, pieces.size()));
  std::vector<std::exception_ptr> failures(parts.size());
  for (size_t first = 0; first < pieces.size(); first += round) {
    const size_t count = std::min(round, pieces.size() - first);
    parallel_for(static_cast<int64_t>(count), [&](int64_t i) {
      const auto begin = static_cast<size_t>(pieces[first + i].data() - text.data());
      parts[i].ids.clear();
      parts[i].spans.clear();
      try {
        encode_ordinary(text, {begin, begin + pieces[first + i].size()}, with_spans, parts[i]);
      } catch (...) {
        failures[i] = std::current_exception();
      }
    });
    if (out.ids.empty()) {
      size_t found = 0;
      for (size_t i = 0; i < count; ++i) found += parts[i].ids.size();
      out.ids.reserve(found);
    }
    for (size_t i = 0; i < count; ++i) {
      if (failures[i]) std::rethrow_exception(failures[i]);
      out.ids.insert(out.ids.end(), parts[i].ids.begin(), parts[i].ids.end());
      out.spans.insert(out.spans.end(), parts[i].spans.begin(), parts[i].spans.end());
    }
    check_interrupt();
  }
}

Encoding Tokenizer::encode(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans,
                           bool alone) const {
  Encoding out;
  encode_into(text, allowed_special, with_spans, alone, out);
  return out;
}

void Tokenizer::encode_into(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans,
                            bool alone, Encoding& out) const {
  try {
    for (size_t at = 0; at < text.size();) {
      const auto special = find_special(*this, allowed_special, text, at);
      const size_t stop = special ? special->at : text.size();
      encode_stretch(text, {at, stop}, with_spans, alone, out);
      at = stop;
      if (special) {
        out.ids.push_back(special->id);
        if (with_spans) out.spans.push_back({special->at, special->at + special->size});
        at = special->at + special->size;
      }
    }
  } catch (const Unencodable& piece) {
    if (std::string_view(piece.what) == "byte") fail_for_byte(text, piece.span.begin);
    fail(piece.what, " ", quote(text.substr(piece.span.begin, piece.span.end - piece.span.begin)), " at character ",
         count_code_points(text.substr(0, piece.span.begin)),
         " is not in the vocabulary, and there is no special token ", kUnknownToken,
         " to stand for it: train with special_tokens that include ", kUnknownToken, ", or leave the ", piece.what,
         " out of the text");
  }
}

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, const std::vector<std::string>& tokens,
                                          const std::vector<TokenId>& special_ids) {
  switch (kind) {
    case TokenizerKind::kWord:
      return make_word_tokenizer(tokens, special_ids);
    case TokenizerKind::kChar:
      return make_char_tokenizer(tokens, special_ids);
    case TokenizerKind::kByte:
      return make_byte_tokenizer(tokens, special_ids);
    case TokenizerKind::kBpe:
      fail("kind 'bpe' needs a BpeVocabulary, not a list of tokens");
  }
  fail("unknown kind of tokenizer");
}

void bytes_to_characters(std::string_view text, std::vector<Span>& spans) {
  const auto starts_character = [text](size_t i) { return !is_utf8_continuation(static_cast<unsigned char>(text[i])); };
  size_t at = 0;       // bytes passed
  size_t started = 0;  // characters that start in text[0, at)
  for (Span& span : spans) {
    for (; at <= span.begin; ++at) started += starts_character(at);
    const size_t begin = started - 1;
    for (; at < span.end; ++at) started += starts_character(at);
    span = {begin, started};
  }
}

}  // namespace soma
