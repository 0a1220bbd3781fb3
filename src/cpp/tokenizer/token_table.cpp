// Sorts the tokens, and finds those that begin with some bytes by bisection.
#include "tokenizer/token_table.h"

#include <algorithm>

#include "tokenizer/split.h"

namespace soma {
namespace {

bool goes_on_with_word(std::string_view token) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(token.data());
  if (bytes[0] < 0x80) return kAsciiWord[bytes[0]] != 0;
  const std::string_view first = token.substr(0, utf8_length(bytes[0]));
  if (bytes[0] < 0xC0 || find_invalid_utf8(first) != std::string_view::npos) return true;  // a part of a character
  const uint32_t code_point = decode_utf8(bytes);
  return is_word_char(code_point) || char_class(code_point) == CharClass::kMark;
}

}  // namespace

TokenTable::TokenTable(const Tokenizer& tokenizer) {
  std::vector<std::string> tokens(tokenizer.vocab_size());
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.has(id) || tokenizer.is_special(id)) continue;
    tokenizer.append_decoded(&id, 1, tokens[id]);
    if (!tokens[id].empty()) ids_.push_back(static_cast<int32_t>(id));
  }
  std::sort(ids_.begin(), ids_.end(), [&](int32_t a, int32_t b) { return tokens[a] < tokens[b]; });
  starts_.reserve(ids_.size() + 1);
  for (const int32_t id : ids_) {
    starts_.push_back(bytes_.size());
    bytes_ += tokens[id];
  }
  starts_.push_back(bytes_.size());
}

std::span<const int32_t> TokenTable::extending(std::string_view bytes) const {
  // The first place from `from` on whose token is not `before`: a binary search.
  const auto after = [&](size_t from, auto&& before) {
    size_t to = ids_.size();
    while (from < to) {
      const size_t middle = from + (to - from) / 2;
      if (before(token(middle))) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  };
  const size_t first = after(0, [&](std::string_view each) { return each <= bytes; });
  const size_t last = after(first, [&](std::string_view each) { return each.substr(0, bytes.size()) <= bytes; });
  return {ids_.data() + first, last - first};
}

std::vector<int32_t> TokenTable::containing(std::string_view bytes) const {
  std::vector<int32_t> found;
  for (size_t at = bytes_.find(bytes); at != std::string::npos;) {
    const auto end = std::upper_bound(starts_.begin(), starts_.end(), at);  // of the token with the byte at `at`
    const bool whole = at + bytes.size() <= *end;
    if (whole) found.push_back(ids_[static_cast<size_t>(end - starts_.begin()) - 1]);
    at = bytes_.find(bytes, whole ? *end : at + 1);
  }
  return found;
}

std::vector<int32_t> TokenTable::inside_words() const {
  std::vector<int32_t> found;
  for (size_t place = 0; place < ids_.size(); ++place) {
    if (goes_on_with_word(token(place))) found.push_back(ids_[place]);
  }
  return found;
}

}  // namespace soma
