// Compares 64 bytes of text at once. The result is a word with bit i for byte i. Uses SSE2 or NEON, which every x86-64
// and every aarch64 has, else plain C++.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define SOMA_BLOCK_SSE2 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#define SOMA_BLOCK_NEON 1
#endif

namespace soma {

#if defined(SOMA_BLOCK_SSE2)

class ByteBlock {
 public:
  explicit ByteBlock(const unsigned char* p) {
    for (int i = 0; i < 4; ++i) v_[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
  }
  uint64_t equal(unsigned char x) const {
    const __m128i wanted = _mm_set1_epi8(static_cast<char>(x));
    return bits([&](__m128i v) { return _mm_cmpeq_epi8(v, wanted); });
  }
  // The bytes with first <= (byte | set) <= last.
  uint64_t between(unsigned char first, unsigned char last, unsigned char set = 0) const {
    const __m128i shift = _mm_set1_epi8(static_cast<char>(0x80 - first));  // `first` becomes the lowest signed byte
    const __m128i limit = _mm_set1_epi8(static_cast<char>(0x80 + (last - first) + 1));
    const __m128i ones = _mm_set1_epi8(static_cast<char>(set));
    return bits([&](__m128i v) { return _mm_cmplt_epi8(_mm_add_epi8(_mm_or_si128(v, ones), shift), limit); });
  }
  uint64_t high() const {  // the bytes that are not ASCII
    return bits([](__m128i v) { return v; });
  }

 private:
  template <typename F>
  uint64_t bits(F&& f) const {
    uint64_t out = 0;
    for (int i = 0; i < 4; ++i) out |= uint64_t{static_cast<uint32_t>(_mm_movemask_epi8(f(v_[i])))} << (16 * i);
    return out;
  }
  __m128i v_[4];
};

#elif defined(SOMA_BLOCK_NEON)

class ByteBlock {
 public:
  explicit ByteBlock(const unsigned char* p) {
    for (int i = 0; i < 4; ++i) v_[i] = vld1q_u8(p + 16 * i);
  }
  uint64_t equal(unsigned char x) const {
    return bits([&](uint8x16_t v) { return vceqq_u8(v, vdupq_n_u8(x)); });
  }
  uint64_t between(unsigned char first, unsigned char last, unsigned char set = 0) const {
    return bits([&](uint8x16_t v) {
      return vcleq_u8(vsubq_u8(vorrq_u8(v, vdupq_n_u8(set)), vdupq_n_u8(first)), vdupq_n_u8(last - first));
    });
  }
  uint64_t high() const {
    return bits([](uint8x16_t v) { return vcgeq_u8(v, vdupq_n_u8(0x80)); });
  }

 private:
  template <typename F>
  uint64_t bits(F&& f) const {
    static const uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bit = vld1q_u8(kBit);
    const uint8x16_t low = vpaddq_u8(vandq_u8(f(v_[0]), bit), vandq_u8(f(v_[1]), bit));
    const uint8x16_t high = vpaddq_u8(vandq_u8(f(v_[2]), bit), vandq_u8(f(v_[3]), bit));
    const uint8x16_t all = vpaddq_u8(low, high);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
  }
  uint8x16_t v_[4];
};

#else

class ByteBlock {
 public:
  explicit ByteBlock(const unsigned char* p) { std::memcpy(v_, p, 64); }
  uint64_t equal(unsigned char x) const { return between(x, x); }
  uint64_t between(unsigned char first, unsigned char last, unsigned char set = 0) const {
    uint64_t out = 0;
    for (int i = 0; i < 64; ++i) {
      out |= uint64_t{static_cast<unsigned char>((v_[i] | set) - first) <= last - first} << i;
    }
    return out;
  }
  uint64_t high() const { return between(0x80, 0xFF); }

 private:
  unsigned char v_[64];
};

#endif

}  // namespace soma
