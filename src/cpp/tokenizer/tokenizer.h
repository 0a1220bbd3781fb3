// Turns text into ids and back: the interface of all kinds of tokenizer, and their makers. Each kind is a class in a
// file of its own (word.cpp, char.cpp, byte.cpp, bpe.cpp), which encodes ordinary text and decodes ids. The base class
// handles special tokens.
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
constexpr TokenId kMostTokenIds = 1u << 24;  // every id is lower

// With it, resize() leaves new elements uninitialized: ids are written once, not cleared first.
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
  std::vector<Span> spans;  // one per id, or none if not wanted
};

// The ids of neighbouring texts, one text after another. The ids of text first + i end at ends[i].
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
  virtual bool has(TokenId id) const = 0;              // whether a token has this id < vocab_size()
  virtual bool has_all(const TokenId* ids, size_t count) const = 0;
  virtual std::string token(TokenId id) const = 0;  // its text; empty for an unused id
  virtual std::optional<TokenId> find(std::string_view token) const = 0;
  bool is_special(TokenId id) const { return special_[id]; }
  const std::vector<TokenId>& special_ids() const { return special_ids_; }  // ascending

  // The ids of valid UTF-8. The text of a special token is plain text unless its id is in `allowed_special`. Where two
  // start at one place, the longer is taken. Throws std::invalid_argument for text that the vocabulary cannot encode.
  // Thread-safe, as every const function here. `alone`: uses all threads and may throw Interrupted (base/interrupt.h).
  Encoding encode(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans,
                  bool alone) const;

  // Encodes all texts in parallel. `take` gets the results in order, some at a time, on the calling thread, while the
  // other threads continue. Throws the error of the first text that has one; the message names text i
  // texts[first + i]. May throw Interrupted, and any exception of `take`.
  using Take = std::function<void(std::span<EncodedTexts> parts)>;
  void encode_batch(const std::vector<std::string_view>& texts, const std::vector<TokenId>& allowed_special,
                    size_t first, const Take& take) const;

  // Appends the bytes of `count` ids, which must all be in the vocabulary. A text may be decoded in pieces.
  virtual void append_decoded(const TokenId* ids, size_t count, std::string& out) const = 0;

 protected:
  // Throws std::invalid_argument for special ids that do not exist.
  Tokenizer(uint32_t vocab_size, std::vector<TokenId> special_ids);

  // Thrown by encode_ordinary for text that the vocabulary cannot encode.
  struct Unencodable {
    Span span;         // of the bytes in `text`
    const char* what;  // "word", "character", "byte"
  };

  // Appends the ids of the bytes [span.begin, span.end) of `text`, which are whole characters. With `with_spans`, also
  // appends their spans in `text`.
  virtual void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const = 0;

  // Appends the ids of each of `count` texts, without spans. An exception concerns texts[out.ends.size()].
  virtual void encode_texts(const std::string_view* texts, size_t count, EncodedTexts& out) const;

  // Cuts `text` into pieces of about `target` bytes. The ids of the pieces together are the ids of `text`.
  virtual std::vector<std::string_view> cut(std::string_view text, size_t target) const = 0;

 private:
  // As encode(), but appends to `out`.
  void encode_into(std::string_view text, const std::vector<TokenId>& allowed_special, bool with_spans, bool alone,
                   Encoding& out) const;
  void encode_stretch(std::string_view text, Span span, bool with_spans, bool alone, Encoding& out) const;

  uint32_t vocab_size_;
  std::vector<bool> special_;
  std::vector<TokenId> special_ids_;
};

// A tokenizer whose vocabulary is a list of texts: ids 0, 1, 2, ... without gaps.
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

// Makes a tokenizer of any kind but bpe (see bpe.h). `tokens` are the texts of all tokens by id; `special_ids` are the
// ids of special tokens.
//   word: a word encodes as the token that equals its lower case, else as <UNK>; without <UNK>, encoding throws.
//         Decodes to the ordinary tokens, joined by spaces.
//   char: the same for single characters, in their own case. Decodes to the ordinary tokens, without spaces.
//   byte: the tokens are the 256 bytes in any order, each written in the byte-level alphabet (byte_alphabet.h).
//         Decodes exactly, special tokens as their text.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerKind kind, const std::vector<std::string>& tokens,
                                          const std::vector<TokenId>& special_ids);

// The maker of each kind, in the file of the kind.
std::unique_ptr<Tokenizer> make_word_tokenizer(const std::vector<std::string>&, const std::vector<TokenId>&);
std::unique_ptr<Tokenizer> make_char_tokenizer(const std::vector<std::string>&, const std::vector<TokenId>&);
std::unique_ptr<Tokenizer> make_byte_tokenizer(const std::vector<std::string>&, const std::vector<TokenId>&);

// Turns ascending byte spans of valid UTF-8 into character spans. A span gets every character with a byte in it.
void bytes_to_characters(std::string_view text, std::vector<Span>& spans);

constexpr std::string_view kUnknownToken = "<UNK>";

}  // namespace soma
