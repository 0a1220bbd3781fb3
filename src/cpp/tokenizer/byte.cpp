// kind "byte": the tokens are the 256 bytes and special tokens.
#include <array>

#include "base/check.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer.h"

namespace soma {
namespace {

class ByteTokenizer final : public ListedTokenizer {
 public:
  ByteTokenizer(const std::vector<std::string>& tokens, const std::vector<TokenId>& special_ids)
      : ListedTokenizer(tokens, special_ids), byte_of_(vocab_size(), 0) {
    const auto alphabet = byte_alphabet();
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const auto id = find(alphabet[byte]);
      check(id && !is_special(*id), "the vocabulary has no token '", alphabet[byte], "' for byte ", byte);
      id_of_[byte] = *id;
      byte_of_[*id] = static_cast<char>(byte);
    }
    check(vocab_size() == 256 + this->special_ids().size(),
          "a byte vocabulary has the 256 bytes and special tokens only, got ",
          vocab_size() - 256 - this->special_ids().size(), " other tokens");
  }

  TokenizerKind kind() const override { return TokenizerKind::kByte; }

  void append_decoded(const TokenId* ids, size_t count, std::string& out) const override {
    for (const TokenId* id = ids; id < ids + count; ++id) {
      if (is_special(*id)) {
        out += text(*id);
      } else {
        out.push_back(byte_of_[*id]);
      }
    }
  }

 protected:
  void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const override {
    const size_t before = out.ids.size();
    if (before == 0) out.ids.reserve(text.size());
    out.ids.resize(before + (span.end - span.begin));
    TokenId* id = out.ids.data() + before;
    for (size_t i = span.begin; i < span.end; ++i) *id++ = id_of_[static_cast<unsigned char>(text[i])];
    if (!with_spans) return;
    for (size_t i = span.begin; i < span.end; ++i) out.spans.push_back({i, i + 1});
  }

 private:
  std::array<TokenId, 256> id_of_;
  std::vector<char> byte_of_;  // by id
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer(const std::vector<std::string>& tokens,
                                               const std::vector<TokenId>& special_ids) {
  return std::make_unique<ByteTokenizer>(tokens, special_ids);
}

}  // namespace soma
