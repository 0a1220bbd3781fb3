// kind "word": the tokens are lower-cased runs of [\p{L}\p{N}_].
#include "tokenizer/split.h"
#include "tokenizer/tokenizer.h"

namespace soma {
namespace {

class WordTokenizer final : public ListedTokenizer {
 public:
  WordTokenizer(const std::vector<std::string>& tokens, const std::vector<TokenId>& special_ids)
      : ListedTokenizer(tokens, special_ids), unknown_(find(kUnknownToken)) {}

  TokenizerKind kind() const override { return TokenizerKind::kWord; }

  void append_decoded(const TokenId* ids, size_t count, std::string& out) const override {
    for (const TokenId* id = ids; id < ids + count; ++id) {
      if (is_special(*id)) continue;
      if (!out.empty()) out.push_back(' ');
      out += text(*id);
    }
  }

 protected:
  void encode_ordinary(std::string_view text, Span span, bool with_spans, Encoding& out) const override {
    const auto add = [&](std::string_view word, size_t begin, size_t end) {
      auto id = find(word);
      if (!id) id = unknown_;
      if (!id) throw Unencodable{{span.begin + begin, span.begin + end}, "word"};
      out.ids.push_back(*id);
      if (with_spans) out.spans.push_back({span.begin + begin, span.begin + end});
    };
    for_each_word(text.substr(span.begin, span.end - span.begin), add);
  }

 private:
  std::optional<TokenId> unknown_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_word_tokenizer(const std::vector<std::string>& tokens,
                                               const std::vector<TokenId>& special_ids) {
  return std::make_unique<WordTokenizer>(tokens, special_ids);
}

}  // namespace soma
