// UTF-8 that is known to be valid: where characters begin, and their code points.
#pragma once

#include <cstddef>
#include <cstdint>

namespace soma {

// Bytes of the character that starts with this byte of valid UTF-8.
inline size_t utf8_length(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

inline bool is_utf8_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// The code point at `p`, which valid UTF-8 starts at.
inline uint32_t decode_utf8(const unsigned char* p) {
  if (p[0] < 0x80) return p[0];
  if (p[0] < 0xE0) return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
  if (p[0] < 0xF0) return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
  return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

}  // namespace soma
