// The splitters. Text of ASCII goes 64 bytes at a time through bpe_split_ascii.h; what is left, character by character
// through the rules below, which follow the alternatives of the regular expressions one by one.
#include "tokenizer/bpe_split.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

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
constexpr uint32_t kNewNumber = bit(CharClass::kNewNumber);
constexpr uint32_t kPunctuation = bit(CharClass::kOther) | kNewNumber | kMark;  // [^\s\p{L}\p{N}]
constexpr uint32_t kBothCases = kUncased | kMark;                               // U and W at once
constexpr uint32_t kUpperSet = kCased | kBothCases;                             // U
constexpr uint32_t kLowerSet = bit(CharClass::kLower) | kBothCases;             // W

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
  // Up to `most` characters of the classes; 0: all.
  void skip(uint32_t classes, size_t most) {
    if (most == 0) return skip(classes);
    for (; most > 0 && is(classes); --most) step();
  }
};

// \s+$ where `whole_at_end`, \s*[\r\n]+ where `newlines`, \s+(?!\S), \s+: the end of a chunk that starts at whitespace.
template <typename Rules>
const Byte* end_of_space(Rules rules, Cursor at) {
  const Byte* const begin = at.p;
  const Byte* last = begin;             // the last whitespace character
  const Byte* after_newline = nullptr;  // behind the last newline
  for (; at.is(kSpace); at.step()) {
    last = at.p;
    if (is_newline(*at.p)) after_newline = at.p + 1;
  }
  const uint32_t apart = rules().apart == Apart::kNo       ? 0
                         : rules().apart == Apart::kDigits ? kNumber | kNewNumber
                                                           : kNumber;
  const bool at_end = at.done() || at.is(apart);
  if (at_end && (rules().whole_at_end || !rules().newlines)) return at.p;
  if (rules().newlines && after_newline != nullptr) return after_newline;
  return at_end || last == begin ? at.p : last;
}

//  ?[^\s\p{L}\p{N}]+ and the tail; nullptr where that is not what stands here.
template <typename Rules>
const Byte* end_of_punctuation(Rules rules, Cursor at) {
  uint32_t classes = kPunctuation;
  if (rules().words == Words::kMarked) classes &= ~kMark;
  if (rules().apart == Apart::kDigits) classes &= ~kNewNumber;
  if (*at.p == ' ') ++at.p;
  if (!at.is(classes)) return nullptr;
  at.skip(classes);
  if (rules().tail == Tail::kNone) return at.p;
  while (!at.done() && (is_newline(*at.p) || (rules().tail == Tail::kSlashes && *at.p == '/'))) ++at.p;
  return at.p;
}

// U*W+ at the cursor, backing off where W+ finds nothing behind U*: then it is the last character of U* that is in W
// too. nullptr where there is none. `upper_end` becomes the end of U*.
const Byte* end_of_cased(Cursor at, const Byte** upper_end) {
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

// [^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*; nullptr where that is not what stands here.
const Byte* end_of_cased_word(Cursor at) {
  Cursor behind = at;  // the optional character in front
  const bool prefix = !at.is(kLetter | kNumber) && !is_newline(*at.p);
  if (prefix) behind.step();
  const Byte* upper_behind = nullptr;
  const Byte* upper = nullptr;
  const Byte* word = prefix ? end_of_cased(behind, &upper_behind) : nullptr;
  if (word == nullptr) word = end_of_cased(at, &upper);
  // U+W*: neither place had a W, so W* is empty.
  if (word == nullptr && prefix && upper_behind > behind.p) word = upper_behind;
  if (word == nullptr && upper > at.p) word = upper;
  return word;
}

// Letters, and what may stand in front of them; nullptr where that is not what stands here.
template <typename Rules>
const Byte* end_of_plain_word(Rules rules, Cursor at) {
  const uint32_t classes = rules().words == Words::kMarked ? kLetter | kMark : kLetter;
  if (rules().words == Words::kSpaced ? *at.p == ' ' : !at.is(classes) && !is_newline(*at.p)) at.step();
  if (!at.is(classes)) return nullptr;
  at.skip(classes);
  return at.p;
}

// The end of the chunk that starts at the cursor, which is not at the end of the text.
template <typename Rules>
const Byte* end_of_chunk(Rules rules, Cursor at) {
  const auto end_of_number = [&](uint32_t numbers) {
    Cursor behind = at;
    behind.skip(numbers, rules().digits);
    return behind.p;
  };
  if (rules().apart == Apart::kDigits && at.is(kNewNumber)) return end_of_number(kNewNumber);
  if (rules().words == Words::kCased) {
    if (const Byte* const end = end_of_cased_word(at)) return end + contraction(end, at.end, rules().contractions);
  } else {
    if (const size_t size = contraction(at.p, at.end, rules().contractions)) return at.p + size;
    if (rules().words != Words::kSpaced && at.is(kNumber)) return end_of_number(kNumber);  // it is no prefix
    if (const Byte* const end = end_of_plain_word(rules, at)) return end;
  }
  if (at.is(kNumber)) return end_of_number(kNumber);
  if (rules().spaced_digits && *at.p == ' ' && Cursor{at.p + 1, at.end}.is(kNumber)) {
    ++at.p;
    return end_of_number(kNumber);
  }
  if (const Byte* const end = end_of_punctuation(rules, at)) return end;
  return end_of_space(rules, at);
}

bool ascii16(const Byte* p) {
  uint64_t words[2];
  std::memcpy(words, p, 16);
  return ((words[0] | words[1]) & 0x8080808080808080u) == 0;
}

// Chunks from text[at] on: writes their ends and returns their number. `at` becomes the last end.
template <typename Rules>
size_t split(Rules rules, const Byte* text, size_t size, size_t readable, size_t& at, size_t* ends, size_t capacity) {
  size_t count = 0;
  Byte copy[64];
  while (at < size && capacity - count >= 64) {
    const auto n = static_cast<unsigned>(std::min<size_t>(size - at, 64));
    const bool last = size - at <= 64;
    const Byte* block = text + at;
    if (readable - at < 64) block = static_cast<const Byte*>(std::memcpy(copy, block, n));
    uint64_t starts = ascii_chunk_starts(rules, block, n, last);
    const size_t base = at;
    for (; starts != 0; starts &= starts - 1) ends[count++] = at = base + static_cast<size_t>(std::countr_zero(starts));
    if (last && (ByteBlock(block).high() & low_bits(n)) == 0) {
      ends[count++] = at = size;
      break;
    }
    if (at != base && !last) continue;
    // Character by character, as long as there is something else than ASCII nearby.
    do {
      at = static_cast<size_t>(end_of_chunk(rules, {text + at, text + size}) - text);
      ends[count++] = at;
    } while (at < size && count < capacity && (size - at < 16 || !ascii16(text + at)));
  }
  return count;
}

// The rules of a pattern that has a name are constants, and so the branches on them are taken when this is compiled.
template <size_t kIndex>
struct Named {
  static constexpr BpePattern kPattern = kBpePatterns[kIndex].pattern;
  constexpr const BpePattern& operator()() const { return kPattern; }
};
struct Given {
  BpePattern pattern;
  const BpePattern& operator()() const { return pattern; }
};

// Called by pointer: all in one function would be too much for a compiler to inline what they call.
using Split = size_t (*)(const Byte* text, size_t size, size_t readable, size_t& at, size_t* ends, size_t capacity);

template <size_t kIndex>
size_t split_named(const Byte* text, size_t size, size_t readable, size_t& at, size_t* ends, size_t capacity) {
  return split(Named<kIndex>{}, text, size, readable, at, ends, capacity);
}

template <size_t... kIndices>
constexpr std::array<Split, sizeof...(kIndices)> splits_of_names(std::index_sequence<kIndices...>) {
  return {&split_named<kIndices>...};
}
constexpr auto kSplits = splits_of_names(std::make_index_sequence<kBpePatterns.size()>());

}  // namespace

size_t BpeSplitter::next(size_t* ends, size_t capacity) {
  const auto* const text = reinterpret_cast<const Byte*>(text_.data());
  const auto key = std::bit_cast<uint64_t>(pattern_);
  for (size_t i = 0; i < kSplits.size(); ++i) {
    if (key != std::bit_cast<uint64_t>(kBpePatterns[i].pattern)) continue;
    return kSplits[i](text, text_.size(), readable_, at_, ends, capacity);
  }
  return split(Given{pattern_}, text, text_.size(), readable_, at_, ends, capacity);
}

namespace {
// Whether a chunk ends between two characters, the second at `p`; classes as bits.
bool is_chunk_end(uint32_t before, uint32_t here, const Byte* p) {
  return (before & (kLetter | kNumber)) != 0 && (here & (kSpace | bit(CharClass::kOther))) != 0 && *p != '\'';
}
}  // namespace

size_t last_chunk_end(std::string_view text, size_t from) {
  const auto* const begin = reinterpret_cast<const Byte*>(text.data());
  Cursor at{begin + text.size(), begin + text.size()};
  const auto step_back = [&at, begin] {
    do --at.p;
    while (at.p > begin && is_utf8_continuation(*at.p));
  };
  if (text.empty()) return 0;
  step_back();
  for (uint32_t here = at.char_class(); at.p > begin + from;) {
    const Byte* const place = at.p;
    step_back();
    const uint32_t before = at.char_class();
    if (*place != '_' && is_chunk_end(before, here, place)) return static_cast<size_t>(place - begin);
    here = before;
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
      if (is_chunk_end(before, here, at.p)) break;
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
