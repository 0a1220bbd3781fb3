// One pass over a text: 64 bytes of ASCII at a time, other text character by character.
#include "tokenizer/word_losses.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "tokenizer/byte_block.h"
#include "tokenizer/split.h"
#include "tokenizer/unicode.h"

namespace soma {
namespace {

constexpr size_t kBlock = 64;
constexpr size_t kShown = 24;  // characters of an example

// Blocks of scripts whose words follow each other without a space, in ascending order.
constexpr std::pair<uint32_t, uint32_t> kUnspaced[] = {
    {0x0E00, 0x0EFF},    // Thai, Lao
    {0x1000, 0x109F},    // Myanmar
    {0x1780, 0x17FF},    // Khmer
    {0x1950, 0x19DF},    // Tai Le, New Tai Lue
    {0x1A20, 0x1AAF},    // Tai Tham
    {0x3040, 0x30FF},    // Hiragana, Katakana
    {0x31F0, 0x31FF},    // Katakana
    {0x3400, 0x4DBF},    // Han
    {0x4E00, 0x9FFF},    // Han
    {0xA980, 0xA9DF},    // Javanese
    {0xAA60, 0xAADF},    // Myanmar, Tai Viet
    {0xF900, 0xFAFF},    // Han
    {0xFF66, 0xFF9F},    // Katakana
    {0x1B000, 0x1B16F},  // Kana
    {0x20000, 0x3FFFF},  // Han
};

bool is_unspaced(uint32_t code_point) {
  const auto* const block = std::find_if(std::begin(kUnspaced), std::end(kUnspaced),
                                         [=](const auto& range) { return code_point <= range.second; });
  return block != std::end(kUnspaced) && code_point >= block->first;
}

bool is_letter(uint32_t c) { return is_word_char(c) && c != '_' && char_class(c) != CharClass::kNumber; }

bool is_in_word(uint32_t c) { return is_word_char(c) || char_class(c) == CharClass::kMark; }

// The characters around text[at] that stand in one word, were marks part of words: some before it, as many behind it.
std::string_view word_around(std::string_view text, size_t at) {
  const auto* const start = reinterpret_cast<const unsigned char*>(text.data());
  const auto* begin = start + at;
  for (size_t i = 0; i < kShown / 2 && begin > start; ++i) {
    const auto* before = begin - 1;
    while (before > start && is_utf8_continuation(*before)) --before;
    if (!is_in_word(decode_utf8(before))) break;
    begin = before;
  }
  const auto* end = begin;
  for (size_t i = 0; i < kShown && end < start + text.size() && is_in_word(decode_utf8(end)); ++i) {
    end += utf8_length(*end);
  }
  return text.substr(static_cast<size_t>(begin - start), static_cast<size_t>(end - begin));
}

}  // namespace

void WordLosses::add(const std::vector<std::string_view>& texts) {
  for (const std::string_view text : texts) add(text);
}

void WordLosses::add(std::string_view text) {
  const auto* const start = reinterpret_cast<const unsigned char*>(text.data());
  bool behind_letter = false;  // or behind a mark that is
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(at + kBlock, text.size());
    if (end - at == kBlock) {
      const ByteBlock block(start + at);
      if (block.high() == 0) {
        letters += static_cast<uint64_t>(std::popcount(block.between('a', 'z', 0x20)));
        at = end;
        behind_letter = is_letter(start[at - 1]);
        continue;
      }
    }
    while (at < end) {
      const uint32_t c = decode_utf8(start + at);
      if (is_letter(c)) {
        ++letters;
        behind_letter = true;
        if (is_unspaced(c) && unspaced++ == 0) clause = word_around(text, at);
      } else {
        behind_letter = behind_letter && char_class(c) == CharClass::kMark;
      }
      if ((behind_letter && !is_letter(c)) || c == kDottedCapitalI) {  // whose lower case ends with a mark
        if (marks++ == 0) {
          broken = word_around(text, at);
          for_each_word(broken, [this](std::string_view word, size_t, size_t) {
            if (!read.empty()) read += ' ';
            read += word;
          });
        }
      }
      at += utf8_length(start[at]);
    }
  }
}

}  // namespace soma
