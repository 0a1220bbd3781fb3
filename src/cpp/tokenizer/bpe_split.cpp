// The splitters. Text of ASCII goes 64 bytes at a time through bpe_split_ascii.h; what is left, character by character
// through the rules below, which follow the alternatives of the regular expressions one by one.
#include "tokenizer/bpe_split.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "tokenizer/bpe_split_ascii.h"
#include "tokenizer/unicode.h"

namespace soma {
namespace {

using Byte = unsigned char;

// A class as a bit, so that a set of classes is a mask.
constexpr uint32_t bit(CharClass c) { return 1u << static_cast<unsigned>(c); }
constexpr uint32_t kCased = bit(CharClass::kUpper) | bit(CharClass::kTitle);
constexpr uint32_t kUncased = bit(CharClass::kModifierLetter) | bit(CharClass::kOtherLetter);
constexpr uint32_t kLetter = kCased | kUncased | bit(CharClass::kLower);
constexpr uint32_t kMark = bit(CharClass::kMark);
constexpr uint32_t kNumber = bit(CharClass::kNumber);
constexpr uint32_t kSpace = bit(CharClass::kSpace);
constexpr uint32_t kPunctuation = bit(CharClass::kOther) | kMark;    // [^\s\p{L}\p{N}]
constexpr uint32_t kBothCases = kUncased | kMark;                    // U and W at once
constexpr uint32_t kUpperSet = kCased | kBothCases;                  // U
constexpr uint32_t kLowerSet = bit(CharClass::kLower) | kBothCases;  // W

constexpr std::array<uint16_t, 128> make_ascii_classes() {
  std::array<uint16_t, 128> table{};
  for (uint32_t c = 0; c < 128; ++c) {
    const bool space = c == ' ' || (c >= 9 && c <= 13);
    const CharClass name = c >= 'a' && c <= 'z'   ? CharClass::kLower
                           : c >= 'A' && c <= 'Z' ? CharClass::kUpper
                           : c >= '0' && c <= '9' ? CharClass::kNumber
                           : space                ? CharClass::kSpace
                                                  : CharClass::kOther;
    table[c] = static_cast<uint16_t>(bit(name));
  }
  return table;
}
constexpr std::array<uint16_t, 128> kAsciiClasses = make_ascii_classes();

bool is_newline(Byte c) { return c == '\n' || c == '\r'; }

// The rest of a text, and questions about it.
struct Cursor {
  const Byte* p;
  const Byte* end;

  bool done() const { return p == end; }
  uint32_t char_class() const { return *p < 0x80 ? kAsciiClasses[*p] : bit(soma::char_class(decode_utf8(p))); }
  bool is(uint32_t classes) const { return p < end && (char_class() & classes) != 0; }
  void step() { p += utf8_length(*p); }
  void skip(uint32_t classes) {
    while (is(classes)) step();
  }
  // Up to `most` characters of the classes.
  void skip(uint32_t classes, size_t most) {
    for (; most > 0 && is(classes); --most) step();
  }
};

// \s+$ where `whole_at_end`, \s*[\r\n]+ where `newlines`, \s+(?!\S), \s+: the end of a chunk that starts at whitespace.
const Byte* end_of_space(Cursor at, bool newlines, bool whole_at_end) {
  const Byte* const begin = at.p;
  const Byte* last = begin;             // the last whitespace character
  const Byte* after_newline = nullptr;  // behind the last newline
  for (; at.is(kSpace); at.step()) {
    last = at.p;
    if (is_newline(*at.p)) after_newline = at.p + 1;
  }
  if (at.done() && (whole_at_end || !newlines)) return at.p;
  if (newlines && after_newline != nullptr) return after_newline;
  return at.done() || last == begin ? at.p : last;
}

const Byte* end_of_gpt2(Cursor at) {
  if (const size_t size = contraction(at.p, at.end, false)) return at.p + size;
  Cursor word = at;
  if (*at.p == ' ') ++word.p;
  for (const uint32_t classes : {kLetter, kNumber, kPunctuation}) {
    if (!word.is(classes)) continue;
    word.skip(classes);
    return word.p;
  }
  return end_of_space(at, false, false);
}

//  ?[^\s\p{L}\p{N}]+[\r\n]*, or [\r\n/]*; nullptr where that is not what stands here.
const Byte* end_of_punctuation(Cursor at, bool slashes) {
  if (*at.p == ' ') ++at.p;
  if (!at.is(kPunctuation)) return nullptr;
  at.skip(kPunctuation);
  while (!at.done() && (is_newline(*at.p) || (slashes && *at.p == '/'))) ++at.p;
  return at.p;
}

const Byte* end_of_cl100k(Cursor at, size_t digits, bool whole_at_end) {
  if (const size_t size = contraction(at.p, at.end, true)) return at.p + size;
  Cursor word = at;
  if (at.is(kNumber)) {
    word.skip(kNumber, digits);
    return word.p;
  }
  if (!at.is(kLetter) && !is_newline(*at.p)) word.step();
  if (word.is(kLetter)) {
    word.skip(kLetter);
    return word.p;
  }
  if (const Byte* const end = end_of_punctuation(at, false)) return end;
  return end_of_space(at, true, whole_at_end);
}

// U*W+ at the cursor, backing off where W+ finds nothing behind U*: then it is the last character of U* that is in W
// too. nullptr where there is none. `upper_end` becomes the end of U*.
const Byte* end_of_word(Cursor at, const Byte** upper_end) {
  const Byte* after_both = nullptr;
  while (at.is(kUpperSet)) {
    const bool both = (at.char_class() & kBothCases) != 0;
    at.step();
    if (both) after_both = at.p;
  }
  *upper_end = at.p;
  if (!at.is(kLowerSet)) return after_both;
  at.skip(kLowerSet);
  return at.p;
}

const Byte* end_of_o200k(Cursor at) {
  Cursor behind = at;  // the optional character in front
  const bool prefix = !at.is(kLetter | kNumber) && !is_newline(*at.p);
  if (prefix) behind.step();
  const Byte* upper_behind = nullptr;
  const Byte* upper = nullptr;
  const Byte* word = prefix ? end_of_word(behind, &upper_behind) : nullptr;
  if (word == nullptr) word = end_of_word(at, &upper);
  // U+W*: neither place had a W, so W* is empty.
  if (word == nullptr && prefix && upper_behind > behind.p) word = upper_behind;
  if (word == nullptr && upper > at.p) word = upper;
  if (word != nullptr) return word + contraction(word, at.end, true);
  if (at.is(kNumber)) {
    at.skip(kNumber, 3);
    return at.p;
  }
  if (const Byte* const end = end_of_punctuation(at, true)) return end;
  return end_of_space(at, true, false);
}

// The end of the chunk that starts at the cursor, which is not at the end of the text.
template <BpeRules kRules>
const Byte* end_of_chunk(Cursor at) {
  if constexpr (kRules.cased) return end_of_o200k(at);
  if constexpr (kRules.newlines) return end_of_cl100k(at, kRules.digits, kRules.whole_at_end);
  return end_of_gpt2(at);
}

//                               newlines prefix spaced digits whole cased
constexpr BpeRules kGpt2Rules = {false, false, true, 0, false, false};
constexpr BpeRules kCl100kRules = {true, true, false, 3, true, false};
constexpr BpeRules kLlama3Rules = {true, true, false, 3, false, false};
constexpr BpeRules kQwen2Rules = {true, true, false, 1, false, false};
constexpr BpeRules kO200kRules = {true, true, false, 3, false, true};

bool ascii16(const Byte* p) {
  uint64_t words[2];
  std::memcpy(words, p, 16);
  return ((words[0] | words[1]) & 0x8080808080808080u) == 0;
}

// Chunks from text[at] on: writes their ends and returns their number. `at` becomes the last end.
template <BpeRules kRules>
size_t split(const Byte* text, size_t size, size_t readable, size_t& at, size_t* ends, size_t capacity) {
  size_t count = 0;
  Byte copy[64];
  while (at < size && capacity - count >= 64) {
    const auto n = static_cast<unsigned>(std::min<size_t>(size - at, 64));
    const bool last = size - at <= 64;
    const Byte* block = text + at;
    if (readable - at < 64) block = static_cast<const Byte*>(std::memcpy(copy, block, n));
    uint64_t starts = ascii_chunk_starts<kRules>(block, n, last);
    const size_t base = at;
    for (; starts != 0; starts &= starts - 1) ends[count++] = at = base + static_cast<size_t>(std::countr_zero(starts));
    if (last && (ByteBlock(block).high() & low_bits(n)) == 0) {
      ends[count++] = at = size;
      break;
    }
    if (at != base && !last) continue;
    // Character by character, as long as there is something else than ASCII nearby.
    do {
      at = static_cast<size_t>(end_of_chunk<kRules>({text + at, text + size}) - text);
      ends[count++] = at;
    } while (at < size && count < capacity && (size - at < 16 || !ascii16(text + at)));
  }
  return count;
}

}  // namespace

BpePattern parse_bpe_pattern(std::string_view name) {
  for (size_t i = 0; i < kBpePatternNames.size(); ++i) {
    if (name == kBpePatternNames[i]) return static_cast<BpePattern>(i);
  }
  fail("pattern must be 'gpt2', 'cl100k', 'llama3', 'qwen2' or 'o200k', got '", name, "'");
}

const char* bpe_pattern_name(BpePattern pattern) { return kBpePatternNames[static_cast<size_t>(pattern)]; }

size_t BpeSplitter::next(size_t* ends, size_t capacity) {
  const auto* const text = reinterpret_cast<const Byte*>(text_.data());
  switch (pattern_) {
    case BpePattern::kGpt2:
      return split<kGpt2Rules>(text, text_.size(), readable_, at_, ends, capacity);
    case BpePattern::kCl100k:
      return split<kCl100kRules>(text, text_.size(), readable_, at_, ends, capacity);
    case BpePattern::kLlama3:
      return split<kLlama3Rules>(text, text_.size(), readable_, at_, ends, capacity);
    case BpePattern::kQwen2:
      return split<kQwen2Rules>(text, text_.size(), readable_, at_, ends, capacity);
    case BpePattern::kO200k:
      return split<kO200kRules>(text, text_.size(), readable_, at_, ends, capacity);
  }
  return 0;
}

std::vector<std::string_view> cut_at_chunk_ends(std::string_view text, size_t target) {
  std::vector<std::string_view> pieces;
  target = std::max<size_t>(target, 4);  // room for the character in front of the cut
  while (text.size() > target) {
    const auto* const begin = reinterpret_cast<const Byte*>(text.data());
    Cursor at{begin + target, begin + text.size()};
    while (at.p > begin && is_utf8_continuation(*at.p)) --at.p;
    uint32_t before = 0;  // class of the character in front; unknown at first
    while (!at.done()) {
      const uint32_t here = at.char_class();
      const bool ends_word = (here & (kSpace | bit(CharClass::kOther))) != 0 && *at.p != '\'';
      if (ends_word && (before & (kLetter | kNumber)) != 0) break;
      before = here;
      at.step();
    }
    if (at.done()) break;
    const auto cut = static_cast<size_t>(at.p - begin);
    pieces.push_back(text.substr(0, cut));
    text.remove_prefix(cut);
  }
  if (!text.empty()) pieces.push_back(text);
  return pieces;
}

}  // namespace soma
