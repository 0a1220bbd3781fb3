// kind "char": one id per character, found in pages of 256 code points.
#include <array>

#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace soma {
namespace {

constexpr uint32_t kNoId = StringTable::kAbsent;

class CharTokenizer final : public ListedTokenizer {
 public:
  CharTokenizer(const std::vector<std::string>& tokens, const std::vector<TokenId>& special_ids)
      : ListedTokenizer(tokens, special_ids),
        unknown_(find(kUnknownToken).value_or(kNoId)),
        page_of_(kCodePoints / 256, 0) {
    Page empty;
    empty.fill(unknown_);
    pages_.push_back(empty);
    for (TokenId id = 0; id < vocab_size(); ++id) {
      const std::string_view token = text(id);
      const auto* const bytes = reinterpret_cast<const unsigned char*>(token.data());
      if (token.empty() || utf8_length(bytes[0]) != token.size()) continue;  // not one character: no text encodes to it
      const uint32_t code_point = decode_utf8(bytes);
      uint16_t& page = page_of_[code_point / 256];
      if (page == 0) {
        page = static_cast<uint16_t>(pages_.size());
        pages_.push_back(empty);
      }
      pages_[page][code_point % 256] = id;
    }
  }

  TokenizerKind kind() const override { return TokenizerKind::kChar; }

  void append_decoded(const TokenId* ids, size_t count, std::string& out) const override {
    for (const TokenId* id = ids; id < ids + count; ++id) {
      if (!is_special(*id)) out += text(*id);
    }
  }

 protected:
  void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const override {
    const auto* const start = reinterpret_cast<const unsigned char*>(text.data());
    const auto* const end = start + span.end;
    const Page& ascii = pages_[page_of_[0]];
    const size_t before = out.ids.size();
    if (before == 0) out.ids.reserve(text.size());
    out.ids.resize(before + (span.end - span.begin));  // a character has at least one byte
    TokenId* id = out.ids.data() + before;
    for (const auto* p = start + span.begin; p < end; ++id) {
      const auto* const first = p;
      if (*p < 0x80) {
        *id = ascii[*p++];
      } else {
        const uint32_t code_point = decode_utf8(p);
        *id = pages_[page_of_[code_point / 256]][code_point % 256];
        p += utf8_length(*p);
      }
      const Span bytes{static_cast<size_t>(first - start), static_cast<size_t>(p - start)};
      if (*id == kNoId) throw Unencodable{bytes, "character"};
      if (with_spans) out.spans.push_back(bytes);
    }
    out.ids.resize(id - out.ids.data());
  }

 private:
  using Page = std::array<TokenId, 256>;

  TokenId unknown_;
  std::vector<uint16_t> page_of_;  // by code point / 256; page 0 has unknown characters only
  std::vector<Page> pages_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_char_tokenizer(const std::vector<std::string>& tokens,
                                               const std::vector<TokenId>& special_ids) {
  return std::make_unique<CharTokenizer>(tokens, special_ids);
}

}  // namespace soma
