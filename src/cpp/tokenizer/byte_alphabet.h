// The byte-level alphabet of GPT-2: a printable character for each of the 256 bytes, so that a JSON file can hold any
// bytes. A byte that is a printable Latin-1 character is written as itself; the others as U+0100, U+0101, ...
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "tokenizer/unicode.h"

namespace soma {

inline std::array<std::string, 256> byte_alphabet() {
  std::array<std::string, 256> alphabet;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    append_utf8(alphabet[byte], printable ? byte : next++);
  }
  return alphabet;
}

}  // namespace soma
