// What kind "word" does not keep of a text: the marks between its words, and the words of scripts that have no spaces.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace soma {

class WordLosses {
 public:
  // Counts in valid UTF-8 texts.
  void add(const std::vector<std::string_view>& texts);

  uint64_t letters = 0;   // \p{L}
  uint64_t marks = 0;     // \p{M} behind a letter: no word has them, and a word ends there
  uint64_t unspaced = 0;  // letters of scripts that put no spaces between words

  std::string broken;  // the beginning of the first word with a mark
  std::string read;    // the words that it becomes
  std::string clause;  // the beginning of the first stretch of a script without spaces

 private:
  void add(std::string_view text);
};

}  // namespace soma
