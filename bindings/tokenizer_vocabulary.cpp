// Converts Python's lists of tokens to vocabularies, and back.
#include "tokenizer_vocabulary.h"

#include "base/check.h"
#include "gil.h"
#include "tokenizer/bpe.h"

using soma::TokenId;

std::unique_ptr<soma::Tokenizer> make_tokenizer(const std::string& kind, const Texts& tokens,
                                                const std::vector<TokenId>& special_ids) {
  std::vector<std::string> texts;
  texts.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) texts.emplace_back(utf8_of(tokens[i], "token " + std::to_string(i)));
  return soma::make_tokenizer(soma::parse_tokenizer_kind(kind), texts, special_ids);
}

std::unique_ptr<soma::Tokenizer> make_bpe(const std::string& pattern, const TokenList& tokens,
                                          const std::optional<Pairs>& merges, const Specials& special_tokens,
                                          bool ignore_merges) {
  const auto checked = [](int64_t id, const char* what) {
    soma::check(id >= 0 && id < soma::kMostTokenIds, "id ", id, " of a ", what, " is not within 0 to ",
                soma::kMostTokenIds - 1);
    return static_cast<TokenId>(id);
  };
  soma::BpeVocabulary vocabulary;
  vocabulary.pattern = soma::parse_bpe_pattern(pattern);
  vocabulary.ignore_merges = ignore_merges;
  vocabulary.tokens.reserve(tokens.size());
  for (const py::handle token : static_cast<const py::list&>(tokens)) {
    auto& bytes = vocabulary.tokens.emplace_back();
    if (token.is_none()) continue;
    if (!PyBytes_Check(token.ptr())) {
      throw py::type_error("token " + std::to_string(vocabulary.tokens.size() - 1) + " must be bytes or None, got " +
                           Py_TYPE(token.ptr())->tp_name);
    }
    bytes.emplace(PyBytes_AS_STRING(token.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(token.ptr())));
  }
  if (merges) {
    auto& pairs = vocabulary.merges.emplace();
    const auto count = static_cast<size_t>(merges->size() / 2);
    pairs.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      pairs.emplace_back(checked(merges->data()[2 * i], "merge"), checked(merges->data()[2 * i + 1], "merge"));
    }
  }
  for (const auto& [text, id] : special_tokens) {
    vocabulary.special_tokens.emplace_back(utf8_of(text, "special token"), checked(id, "special token"));
  }
  return without_gil([&] { return soma::make_bpe_tokenizer(std::move(vocabulary)); });
}

VocabularyParts bpe_vocabulary(const soma::Tokenizer& tokenizer) {
  const auto vocabulary = without_gil([&] { return soma::bpe_vocabulary(tokenizer); });
  TokenList tokens;
  for (const auto& token : vocabulary.tokens) {
    tokens.append(token ? py::object(py::bytes(*token)) : py::object(py::none()));
  }
  py::object merges = py::none();
  if (vocabulary.merges) {
    Pairs pairs({static_cast<py::ssize_t>(vocabulary.merges->size()), py::ssize_t{2}});
    int64_t* at = pairs.mutable_data();
    for (const auto& [left, right] : *vocabulary.merges) {
      *at++ = left;
      *at++ = right;
    }
    merges = pairs;
  }
  SpecialList special_tokens;
  for (const auto& [text, id] : vocabulary.special_tokens) special_tokens.append(py::make_tuple(to_str(text), id));
  return py::make_tuple(soma::bpe_pattern_name(vocabulary.pattern), tokens, merges, special_tokens,
                        vocabulary.ignore_merges);
}
