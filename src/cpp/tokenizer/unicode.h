// Unicode for the tokenizers: UTF-8, the class of a code point, its lower case. tools/generate_unicode_tables.py writes
// the tables, for the Unicode versions of Hugging Face `tokenizers`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/utf8.h"

namespace soma {

enum class CharClass : uint8_t {
  kOther = 0,
  kUpper,           // Lu
  kLower,           // Ll
  kTitle,           // Lt
  kModifierLetter,  // Lm
  kOtherLetter,     // Lo
  kMark,            // Mn Mc Me
  kNumber,          // Nd Nl No
  kSpace,           // White_Space
  kNewNumber,       // kOther here, but a number to the step Digits of `tokenizers`, whose Unicode is newer
};

struct CodePointRecord {
  int32_t lower_delta;  // lower case minus code point
  uint8_t char_class;   // a CharClass
};

extern const char kUnicodeClassesVersion[];
extern const char kUnicodeLowerVersion[];
extern const CodePointRecord kCodePointRecords[];
extern const uint16_t kCodePointIndex[];
extern const uint8_t kCodePointBlocks[];

constexpr uint32_t kCodePoints = 0x110000;
constexpr uint32_t kDottedCapitalI = 0x130;  // the one code point whose lower case is two: "i" and U+0307

inline const CodePointRecord& code_point_record(uint32_t code_point) {
  return kCodePointRecords[kCodePointBlocks[kCodePointIndex[code_point >> 7] * 128u + (code_point & 127u)]];
}

inline CharClass char_class(uint32_t code_point) {
  return static_cast<CharClass>(code_point_record(code_point).char_class);
}

// [\p{L}\p{N}_]
inline bool is_word_char(uint32_t code_point) {
  const CharClass c = char_class(code_point);
  return (c >= CharClass::kUpper && c <= CharClass::kOtherLetter) || c == CharClass::kNumber || code_point == '_';
}

// Lower case, without context. For kDottedCapitalI, the first of its two code points.
inline uint32_t lower_case(uint32_t code_point) {
  return static_cast<uint32_t>(static_cast<int32_t>(code_point) + code_point_record(code_point).lower_delta);
}

void append_utf8(std::string& out, uint32_t code_point);

// Offset of the first byte that is not valid UTF-8, or npos. Surrogates and overlong forms are invalid.
size_t find_invalid_utf8(std::string_view bytes);

// Number of characters in valid UTF-8.
size_t count_code_points(std::string_view text);

}  // namespace soma
