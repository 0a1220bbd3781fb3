// An n-gram: up to five characters, the first of which may be the start of a document, in 105 bits.
#pragma once

#include <cstdint>

namespace soma {

constexpr int kNgramOrder = 5;

// A code point + 2, or the start of a document. 0 stands for no symbol. 21 bits.
using NgramSymbol = uint32_t;
constexpr NgramSymbol kDocumentStart = 1;
inline NgramSymbol symbol_of(uint32_t code_point) { return code_point + 2; }

struct Ngram {
  static constexpr int kSymbolBits = 21;
  static constexpr uint64_t kOne = (uint64_t{1} << 21) - 1, kTwo = (uint64_t{1} << 42) - 1,
                            kThree = (uint64_t{1} << 63) - 1;

  uint64_t high = 0;  // the fifth last symbol and the fourth last
  uint64_t low = 0;   // the third last to the last

  bool operator==(const Ngram& other) const { return high == other.high && low == other.low; }

  // The last five symbols of this n-gram and `symbol`.
  Ngram then(NgramSymbol symbol) const { return {(high << 21 | low >> 42) & kTwo, (low << 21 | symbol) & kThree}; }
  Ngram without_last() const { return {high >> 21, (high & kOne) << 42 | low >> 21}; }
  NgramSymbol last() const { return static_cast<NgramSymbol>(low & kOne); }

  // Its last `size` symbols, or all of them where it has fewer.
  Ngram suffix(int size) const {
    switch (size) {
      case 1:
        return {0, low & kOne};
      case 2:
        return {0, low & kTwo};
      case 3:
        return {0, low};
      case 4:
        return {high & kOne, low};
      default:
        return *this;
    }
  }
  int size() const {
    if (high != 0) return high > kOne ? 5 : 4;
    return low > kTwo ? 3 : low > kOne ? 2 : low != 0;
  }
};

}  // namespace soma
