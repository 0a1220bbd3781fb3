// Splits up to 64 bytes of ASCII at once by the rules of bpe_split.h. A class of bytes is a 64-bit mask: bit i is byte
// i. Masks give the mask of the bytes at which chunks begin. The carry of an addition finds the end of a run, as in
// simdjson (Langdale, Lemire 2019, arXiv:1902.08318).
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "tokenizer/bpe_pattern.h"
#include "tokenizer/byte_block.h"

namespace soma {

// The length in bytes of a contraction at `p`, or 0. With kAny, capitals match too, and U+017F (bytes C5 BF) is an s.
inline size_t contraction(const unsigned char* p, const unsigned char* end, Contractions which) {
  if (which == Contractions::kNone || end - p < 2 || *p != '\'') return 0;
  const unsigned char fold = which == Contractions::kLower ? 0 : 0x20;
  const unsigned char first = p[1] | fold;
  if (first == 's' || first == 'd' || first == 'm' || first == 't') return 2;
  if (end - p < 3) return 0;
  const unsigned char second = p[2] | fold;
  if ((first == 'l' && second == 'l') || ((first == 'v' || first == 'r') && second == 'e')) return 3;
  return which == Contractions::kAny && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

// A mask of the lowest n bits; of all 64 for n >= 64.
inline uint64_t low_bits(unsigned n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

// The mask of the bytes in p[1, n) at which chunks begin, n <= 64. A chunk must begin at p[0], and p[0, 64) must be
// readable. With `last`, the text ends at p[n]. Only the bytes before the first one that is not ASCII are used. Starts
// that later bytes could change are left out. `rules()` returns the rules: if it is a
// constant, the compiler makes every choice below.
template <typename Rules>
uint64_t ascii_chunk_starts(Rules rules, const unsigned char* p, unsigned n, bool last) {
  const bool cased = rules().words == Words::kCased;
  const bool any_prefix = rules().words != Words::kSpaced;
  const ByteBlock block(p);
  const uint64_t high = block.high() & low_bits(n);
  const unsigned known = high != 0 ? static_cast<unsigned>(std::countr_zero(high)) : n;
  if (known == 0) return 0;
  const bool at_end = last && high == 0;
  const uint64_t valid = low_bits(known);
  const uint64_t letter = block.between('a', 'z', 0x20) & valid;
  const uint64_t digit = block.between('0', '9') & valid;
  const uint64_t space = block.equal(' ') & valid;
  const uint64_t white = (block.between('\t', '\r') & valid) | space;
  const bool lines = any_prefix || rules().newlines || rules().tail != Tail::kNone;
  const uint64_t newline = lines ? (block.equal('\n') | block.equal('\r')) & valid : 0;
  const uint64_t ends_chunk = rules().newlines ? newline : 0;
  uint64_t other = valid & ~(letter | digit | white);

  // Newlines that belong to the punctuation before them, and slashes among and after these. From the first newline, the
  // carry of an addition runs through all such bytes.
  uint64_t absorbed = 0;
  if (const uint64_t seeds = newline & (other << 1); rules().tail != Tail::kNone && seeds != 0) {
    const uint64_t through = rules().tail == Tail::kSlashes ? newline | (block.equal('/') & valid) : newline;
    absorbed = through & (((through + seeds) ^ through) | seeds);
    other &= ~absorbed;
  }
  const uint64_t free_white = white & ~absorbed;
  const uint64_t single = other & ~(other << 1) & ~(other >> 1) & ~(space << 1);  // one byte, and no space before it

  // A chunk begins at the first byte of a whitespace run. Another begins at its last byte if text follows, but with
  // `newlines` not at a newline.
  uint64_t starts = free_white & ~(free_white << 1);
  starts |= free_white & ~ends_chunk & ((letter | (rules().apart == Apart::kNo ? digit : 0) | other) >> 1);
  if (rules().newlines) {
    // A chunk also begins after the last newline of a run. `behind` has the blanks that follow a newline. It loses
    // those whose run of blanks ends at another newline.
    const uint64_t blank = free_white & ~newline;
    uint64_t behind = ((newline & free_white) << 1) & blank;
    if (behind != 0) {
      for (uint64_t again = (blank + behind) & ~blank & newline; again != 0; again &= again - 1) {
        const uint64_t before = behind & ((again & (~again + 1)) - 1);
        behind &= ~std::bit_floor(before);
      }
      starts |= behind;
    }
  }

  const uint64_t prefix = any_prefix ? (white & ~newline) | single : space;
  starts |= letter & ~(letter << 1) & ~(prefix << 1);
  starts |= other & ~(other << 1) & ~(space << 1);
  const uint64_t digits = digit & ~(digit << 1);
  if (rules().digits == 1) {
    starts |= digit;
  } else {
    starts |= digits;
    if (rules().digits != 0) {  // and every so many of a longer run
      uint64_t beyond = digit;
      for (unsigned i = 1; i <= rules().digits; ++i) beyond &= digit << i;
      for (uint64_t more = (digits << rules().digits) & beyond; more != 0; more = (more << rules().digits) & beyond) {
        starts |= more;
      }
    }
  }
  if (rules().spaced_digits) starts &= ~(digits & (space << 1));

  // Contractions. With `cased`, the apostrophe must follow a letter, but no contraction. Else it must begin a chunk.
  if (cased) {
    const uint64_t capital = block.between('A', 'Z') & valid;
    starts |= capital & ((letter & ~capital) << 1);
  }
  uint64_t apostrophe = rules().contractions == Contractions::kNone ? 0 : block.equal('\'') & single & (letter >> 1);
  if (cased) apostrophe &= letter << 1;
  unsigned behind_last = 64;
  for (; apostrophe != 0; apostrophe &= apostrophe - 1) {
    const auto at = static_cast<unsigned>(std::countr_zero(apostrophe));
    const auto size = static_cast<unsigned>(contraction(p + at, p + known, rules().contractions));
    if (size == 0 || (cased && at == behind_last)) continue;
    behind_last = at + size;
    const uint64_t inside = low_bits(size) << at;
    starts &= cased ? ~inside : ~(inside & (inside << 1));
    if (behind_last < 64) starts |= letter & (uint64_t{1} << behind_last);
  }

  // Later bytes may continue a contraction or a whitespace run at the end. Starts that this may change are left out.
  const auto trailing = [&](uint64_t run) { return static_cast<unsigned>(std::countl_one(run << (64 - known))); };
  unsigned limit = known;
  if (!at_end) {
    if (known < 4) return 0;
    limit = std::min(known - 4, known - trailing(white)) + 1;
  } else if (rules().whole_at_end) {
    const unsigned run = trailing(free_white);
    limit = run > 0 ? known - run + 1 : known;
  }
  return starts & low_bits(limit) & ~uint64_t{1};
}

}  // namespace soma
