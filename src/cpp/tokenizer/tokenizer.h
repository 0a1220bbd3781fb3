// Text to ids and back: what every kind of tokenizer shares, and how to make one. A kind is one class in one file
// (word.cpp, char.cpp, byte.cpp, bpe.cpp) that says how ordinary text encodes and how ids decode; special tokens are
// handled here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/string_table.h"

namespace soma {

using TokenId = uint32_t;
constexpr TokenId kMostTokenIds = 1u << 24;  // ids are below it

// Leaves what resize() adds as it is: the ids of a text are written once, not cleared first.
template <typename T>
struct UninitializedAllocator : std::allocator<T> {
  template <typename U>
  struct rebind {
    using other = UninitializedAllocator<U>;
  };
  template <typename U>
  void construct(U* at) noexcept {
    ::new (static_cast<void*>(at)) U;
  }
  template <typename U, typename... Args>
  void construct(U* at, Args&&... args) {
    ::new (static_cast<void*>(at)) U(std::forward<Args>(args)...);
  }
};
using IdVector = std::vector<TokenId, UninitializedAllocator<TokenId>>;

enum class TokenizerKind { kWord, kChar, kByte, kBpe };

// "word", "char", "byte", "bpe"; throws std::invalid_argument naming them for anything else.
TokenizerKind parse_tokenizer_kind(std::string_view name);
const char* tokenizer_kind_name(TokenizerKind kind);

// The bytes [begin, end) of a text.
struct Span {
  size_t begin;
  size_t end;
};

struct Encoding {
  IdVector ids;
  std::vector<Span> spans;  // one per id where asked for, else empty
};

// The ids of neighbouring texts in a row: those of text first + i end at ends[i].
struct EncodedTexts {
  size_t first = 0;
  IdVector ids;
  std::vector<size_t> ends;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  virtual TokenizerKind kind() const = 0;

  uint32_t vocab_size() const { return vocab_size_; }  // the highest id + 1
  virtual bool has(TokenId id) const = 0;              // of ids < vocab_size(), is it a token's?
  virtual bool has_all(const TokenId* ids, size_t count) const = 0;
  virtual std::string token(TokenId id) const = 0;  // its text; empty where it is no token's
  virtual std::optional<TokenId> find(std::string_view token) const = 0;
  bool is_special(TokenId id) const { return special_[id]; }
  const std::vector<TokenId>& special_ids() const { return special_ids_; }  // ascending

  // The ids of valid UTF-8. The text of a special token is plain text unless its id is in `allowed_special`; where two
  // start at one place, the longer is taken. Throws std::invalid_argument for text that no token stands for.
  // Thread-safe, like everything const here. `alone`: on all threads, and may throw Interrupted (base/interrupt.h).
  Encoding encode(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans,
                  bool alone) const;

  // encode of each text, in parallel: `take` gets all texts in their order, some at a time, on the thread that called
  // and while the others go on. An error is that of the first text that has one, and calls the texts texts[first],
  // texts[first + 1], ... May throw Interrupted, and what `take` throws.
  using Take = std::function<void(std::span<EncodedTexts> parts)>;
  void encode_batch(const std::vector<std::string_view>& texts, const std::vector<TokenId>& allowed_special,
                    size_t first, const Take& take) const;

  // Appends the bytes that `count` ids stand for, all of which the vocabulary has. A text may be decoded in pieces.
  virtual void append_decoded(const TokenId* ids, size_t count, std::string& out) const = 0;

 protected:
  // Throws std::invalid_argument for special ids that do not exist.
  Tokenizer(uint32_t vocab_size, std::vector<TokenId> special_ids);

  // Thrown by encode_ordinary for text that no token stands for: its bytes in `text`.
  struct Unencodable {
    Span span;
    const char* what;  // "word", "character"
  };

  // Appends the ids of the bytes [span.begin, span.end) of `text`, which hold whole characters, and their spans in
  // `text` where with_spans.
  virtual void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const = 0;

  // Appends the ids of each of `count` texts, without spans. What it throws is about texts[out.ends.size()].
  virtual void encode_texts(const std::string_view* texts, size_t count, EncodedTexts& out) const;

  // Pieces of about `target` bytes that encode as they do within `text`.
  virtual std::vector<std::string_view> cut(std::string_view text, size_t target) const = 0;

 private:
  // encode, at the end of `out`.
  void encode_into(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans, bool alone,
                   Encoding& out) const;
  void encode_stretch(std::string_view text, Span span, bool with_spans, bool alone, Encoding& out) const;

  uint32_t vocab_size_;
  std::vector<bool> special_;
  std::vector<TokenId> special_ids_;
};

// A vocabulary that is a list of texts: ids 0, 1, 2, ... without gaps.
class ListedTokenizer : public Tokenizer {
 public:
  bool has(TokenId id) const final { return id < vocab_size(); }
  bool has_all(const TokenId*, size_t) const final { return true; }
  std::string token(TokenId id) const final { return std::string(text(id)); }
  std::optional<TokenId> find(std::string_view token) const final;

 protected:
  // `tokens` by id. Throws std::invalid_argument for repeated tokens.
  ListedTokenizer(const std::vector<std::string>& tokens, std::vector<TokenId> special_ids);

  std::string_view text(TokenId id) const { return tokens_.key(id); }
  std::vector<std::string_view> cut(std::string_view text, size_t target) const final;

 private:
  StringTable tokens_;
};

// Of every kind but bpe, which bpe.h makes. `tokens` are the texts of all tokens by id, `special_ids` those among them
// that are special.
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
