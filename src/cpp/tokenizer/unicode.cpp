// UTF-8: writing, checking, counting.
#include "tokenizer/unicode.h"

#include <cstring>

namespace soma {

void append_utf8(std::string& out, uint32_t code_point) {
  const auto byte = [&out](uint32_t value) { out.push_back(static_cast<char>(value)); };
  const auto tail = [&](int shift) { byte(0x80u | ((code_point >> shift) & 0x3Fu)); };
  if (code_point < 0x80) {
    byte(code_point);
  } else if (code_point < 0x800) {
    byte(0xC0u | code_point >> 6);
    tail(0);
  } else if (code_point < 0x10000) {
    byte(0xE0u | code_point >> 12);
    tail(6);
    tail(0);
  } else {
    byte(0xF0u | code_point >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

size_t find_invalid_utf8(std::string_view bytes) {
  const auto* const start = reinterpret_cast<const unsigned char*>(bytes.data());
  const size_t size = bytes.size();
  size_t i = 0;
  while (i < size) {
    if (i + 8 <= size) {
      uint64_t eight;
      std::memcpy(&eight, start + i, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        i += 8;
        continue;
      }
    }
    const unsigned char lead = start[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // Some first bytes narrow the range of the second. That excludes overlong forms, surrogates and code points above
    // 10FFFF.
    size_t length;
    unsigned char low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return i;
    }
    if (i + length > size || start[i + 1] < low || start[i + 1] > high) return i;
    for (size_t k = 2; k < length; ++k) {
      if (!is_utf8_continuation(start[i + k])) return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

size_t count_code_points(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += !is_utf8_continuation(static_cast<unsigned char>(c));
  return count;
}

}  // namespace soma
