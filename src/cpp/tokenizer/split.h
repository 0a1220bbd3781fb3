// Splits a text into words: runs of [\p{L}\p{N}_] after lower-casing each character by itself. Counting and encoding
// share this, so that both find the same words. Also cuts a long text into pieces without changing its words.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/unicode.h"

namespace soma {

// The lower case of an ASCII word character; 0 for every other byte.
constexpr std::array<unsigned char, 256> make_ascii_word_table() {
  std::array<unsigned char, 256> table{};
  for (unsigned char c = '0'; c <= '9'; ++c) table[c] = c;
  for (unsigned char c = 'a'; c <= 'z'; ++c) table[c] = c;
  for (unsigned char c = 'A'; c <= 'Z'; ++c) table[c] = static_cast<unsigned char>(c - 'A' + 'a');
  table['_'] = '_';
  return table;
}
inline constexpr std::array<unsigned char, 256> kAsciiWord = make_ascii_word_table();

// Calls word(lower_cased, begin, end) for every word of the valid UTF-8 `text`, in order. [begin, end) are the bytes of
// the word in `text`. `lower_cased` is valid during the call only.
template <typename Word>
void for_each_word(std::string_view text, Word&& word) {
  const auto* const start = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = start + text.size();
  const auto* p = start;
  std::string lowered;
  while (p < end) {
    // Fast path: most words are ASCII and lower case.
    const auto* const first = p;
    unsigned changed = 0;
    while (p < end && kAsciiWord[*p] != 0) {
      changed |= kAsciiWord[*p] ^ *p;
      ++p;
    }
    const bool ascii_ends_here = p == end || *p < 0x80;
    if (ascii_ends_here && changed == 0) {
      if (p != first) word(text.substr(first - start, p - first), first - start, p - start);
      if (p < end) ++p;
      continue;
    }
    lowered.clear();
    for (const auto* q = first; q < p; ++q) lowered.push_back(static_cast<char>(kAsciiWord[*q]));
    bool ended_by_dot = false;
    while (p < end) {
      if (*p < 0x80) {
        if (kAsciiWord[*p] == 0) break;
        lowered.push_back(static_cast<char>(kAsciiWord[*p]));
        ++p;
        continue;
      }
      const uint32_t code_point = decode_utf8(p);
      const uint32_t lower = lower_case(code_point);
      if (!is_word_char(lower)) break;
      append_utf8(lowered, lower);
      p += utf8_length(*p);
      if (code_point == kDottedCapitalI) {  // lower case: "i" and a combining dot, which ends the word
        ended_by_dot = true;
        break;
      }
    }
    if (!lowered.empty()) word(std::string_view(lowered), first - start, p - start);
    if (!ended_by_dot && p < end) p += utf8_length(*p);
  }
}

// Cuts `text` into pieces of about `target` bytes, before ASCII characters that are not part of a word. A piece is
// longer where no such character follows. Only the last piece may be shorter.
inline std::vector<std::string_view> cut_at_word_ends(std::string_view text, size_t target) {
  std::vector<std::string_view> pieces;
  while (text.size() > target) {
    size_t cut = target;
    while (cut < text.size() &&
           (static_cast<unsigned char>(text[cut]) >= 0x80 || kAsciiWord[static_cast<unsigned char>(text[cut])] != 0)) {
      ++cut;
    }
    pieces.push_back(text.substr(0, cut));
    text.remove_prefix(cut);
  }
  if (!text.empty()) pieces.push_back(text);
  return pieces;
}

}  // namespace soma
