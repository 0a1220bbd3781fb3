// The ordinary tokens of a vocabulary in the order of their bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace soma {

class TokenTable {
 public:
  explicit TokenTable(const Tokenizer& tokenizer);

  // The ids of the tokens that begin with `bytes` and are longer; neighbours in the table.
  std::span<const int32_t> extending(std::string_view bytes) const;
  // The ids of the tokens that have `bytes` in them, which must not be empty.
  std::vector<int32_t> containing(std::string_view bytes) const;
  // The ids of the tokens that go on with a word: they begin with a letter, mark, number or _, or inside a character.
  std::vector<int32_t> inside_words() const;

 private:
  std::string_view token(size_t place) const {
    return std::string_view(bytes_).substr(starts_[place], starts_[place + 1] - starts_[place]);
  }

  std::string bytes_;             // of all tokens, one after another
  std::vector<uint64_t> starts_;  // by place in the table, and the end
  std::vector<int32_t> ids_;      // by place
};

}  // namespace soma
