// Text to ids and back: what every kind of tokenizer shares, and how to make one. A kind is one class in one file
// (word.cpp, char.cpp, byte.cpp) that says how ordinary text encodes and how ids decode; special tokens are handled
// here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/string_table.h"

namespace soma {

using TokenId = uint32_t;

enum class TokenizerKind { kWord, kChar, kByte };

// "word", "char", "byte"; throws std::invalid_argument naming them for anything else.
TokenizerKind parse_tokenizer_kind(std::string_view name);
const char* tokenizer_kind_name(TokenizerKind kind);

// The bytes [begin, end) of a text.
struct Span {
  size_t begin;
  size_t end;
};

struct Encoding {
  std::vector<TokenId> ids;
  std::vector<Span> spans;  // one per id where asked for, else empty
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  virtual TokenizerKind kind() const = 0;

  uint32_t vocab_size() const { return tokens_.size(); }
  std::string_view token(TokenId id) const { return tokens_.key(id); }  // id < vocab_size()
  std::optional<TokenId> find(std::string_view token) const;
  bool is_special(TokenId id) const { return special_[id]; }
  const std::vector<TokenId>& special_ids() const { return special_ids_; }  // ascending

  // The ids of valid UTF-8. The text of a special token is plain text unless its id is in `allowed_special`; where two
  // start at one place, the longer is taken. Throws std::invalid_argument for text that no token stands for.
  // Thread-safe, like everything const here. `interruptible`: may throw Interrupted (base/interrupt.h).
  Encoding encode(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans,
                  bool interruptible) const;

  // encode of each text, in parallel. An error is that of the first text that has one, and calls the texts
  // texts[first], texts[first + 1], ... May throw Interrupted.
  std::vector<std::vector<TokenId>> encode_batch(const std::vector<std::string_view>& texts,
                                                 const std::vector<TokenId>& allowed_special, size_t first = 0) const;

  // Appends the bytes that `count` ids stand for, all of them below vocab_size(). A text may be decoded piece by piece.
  virtual void append_decoded(const TokenId* ids, size_t count, std::string& out) const = 0;

 protected:
  // `tokens` by id. Throws std::invalid_argument for repeated tokens and for special ids that do not exist.
  Tokenizer(const std::vector<std::string>& tokens, std::vector<TokenId> special_ids);

  // Thrown by encode_ordinary for text that no token stands for: its bytes in `text`.
  struct Unencodable {
    Span span;
    const char* what;  // "word", "character"
  };

  // Appends the ids of the bytes [span.begin, span.end) of `text`, which hold whole characters, and their spans in
  // `text` where with_spans.
  virtual void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const = 0;

 private:
  StringTable tokens_;
  std::vector<bool> special_;
  std::vector<TokenId> special_ids_;
};

// `tokens` are the texts of all tokens by id, `special_ids` those among them that are special.
//   word: a word encodes as the token that reads like its lower case, else as special token <UNK>, else not at all;
//         decodes as tokens joined by spaces, special ones left out
//   char: the same for single characters; decodes as the tokens in a row, special ones left out
//   byte: the 256 bytes, each written as its character of the byte-level alphabet (byte_alphabet.h), in any order;
//         decodes exactly, special tokens as their text
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, const std::vector<std::string>& tokens,
                                          const std::vector<TokenId>& special_ids);

// One per kind, in its file.
std::unique_ptr<Tokenizer> make_word_tokenizer(const std::vector<std::string>&, const std::vector<TokenId>&);
std::unique_ptr<Tokenizer> make_char_tokenizer(const std::vector<std::string>&, const std::vector<TokenId>&);
std::unique_ptr<Tokenizer> make_byte_tokenizer(const std::vector<std::string>&, const std::vector<TokenId>&);

// Turns ascending byte spans of valid UTF-8 into spans of characters: the characters that have a byte in the span.
void bytes_to_characters(std::string_view text, std::vector<Span>& spans);

constexpr std::string_view kUnknownToken = "<UNK>";

}  // namespace soma
