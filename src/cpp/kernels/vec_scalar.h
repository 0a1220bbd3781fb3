// Portable vector of four floats: plain C++, the same on every architecture. a*b+c is two roundings here.
struct Vec {
  float v[4];
};
constexpr int kWidth = 4;
constexpr int kGemmRows = 4;
constexpr int kGemmVectors = 2;

#define SOMA_EACH(expression)                      \
  Vec r;                                           \
  for (int i = 0; i < 4; ++i) r.v[i] = expression; \
  return r

inline Vec set1(float x) { SOMA_EACH(x); }
inline Vec element(const float* p) { return set1(*p); }  // a factor of every lane
inline Vec load(const float* p) { SOMA_EACH(p[i]); }
inline Vec load_n(const float* p, int64_t n) { SOMA_EACH(i < n ? p[i] : 0.0f); }
inline void store(float* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = a.v[i];
}
inline void store_n(float* p, Vec a, int64_t n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline Vec keep_n(Vec a, int64_t n) { SOMA_EACH(i < n ? a.v[i] : 0.0f); }  // lanes from n on are 0
inline Vec first_or(Vec a, int64_t n, Vec rest) { SOMA_EACH(i < n ? a.v[i] : rest.v[i]); }
inline Vec add(Vec a, Vec b) { SOMA_EACH(a.v[i] + b.v[i]); }
inline Vec sub(Vec a, Vec b) { SOMA_EACH(a.v[i] - b.v[i]); }
inline Vec mul(Vec a, Vec b) { SOMA_EACH(a.v[i] * b.v[i]); }
inline Vec div(Vec a, Vec b) { SOMA_EACH(a.v[i] / b.v[i]); }
inline Vec fma(Vec a, Vec b, Vec c) { SOMA_EACH(a.v[i] * b.v[i] + c.v[i]); }
inline Vec max(Vec a, Vec b) { SOMA_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline Vec min(Vec a, Vec b) { SOMA_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline Vec sqrt(Vec a) { SOMA_EACH(__builtin_sqrtf(a.v[i])); }
// x > 0 ? a : 0
inline Vec where_positive(Vec x, Vec a) { SOMA_EACH(x.v[i] > 0.0f ? a.v[i] : 0.0f); }
// 2^n for integral n in [-126, 127], given as n + 1.5 * 2^23: the low bits of that sum are n.
inline Vec exp2_of_shifted(Vec shifted) {
  Vec r;
  for (int i = 0; i < 4; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, &shifted.v[i], 4);
    bits = (bits + 127u) << 23;
    __builtin_memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
// exponent n and mantissa m of x > 0 = 2^n m with m from sqrt(1/2) to sqrt(2); of 0: -127 and 1.
inline void split_float(Vec x, Vec* exponent, Vec* mantissa) {
  for (int i = 0; i < 4; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, &x.v[i], 4);
    const int32_t n = (bits - 0x3f3504f3) >> 23;
    bits -= n * (1 << 23);
    exponent->v[i] = static_cast<float>(n);
    __builtin_memcpy(&mantissa->v[i], &bits, 4);
  }
}
inline float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float reduce_max(Vec a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
// The bits of x, rounded to the nearest bfloat16 (ties to even), in the upper half; NaN stays NaN.
inline uint32_t bfloat16_bits(float x) {
  const uint32_t bits = bits_of(x);
  return x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
}
inline float pair(float low, float high) {
  return float_of((bfloat16_bits(high) & 0xffff0000u) | bfloat16_bits(low) >> 16);
}
// Pairs of bfloat16: lane i is low[i] below, high[i] above.
inline Vec pair(Vec low, Vec high) { SOMA_EACH(pair(low.v[i], high.v[i])); }
// Pairs of neighbours, of the lanes of a and then those of b.
inline Vec pair_adjacent(Vec a, Vec b) {
  SOMA_EACH(i < 2 ? pair(a.v[2 * i], a.v[2 * i + 1]) : pair(b.v[2 * i - 4], b.v[2 * i - 3]));
}
// *first, *second: (half j of a, half j of b) for the first and the second half of all j.
inline void interleave_halves(Vec a, Vec b, Vec* first, Vec* second) {
  for (int i = 0; i < 4; ++i) {
    const int shift = i % 2 * 16;
    const auto both = [&](int at) { return (bits_of(a.v[at]) >> shift & 0xffffu) | bits_of(b.v[at]) >> shift << 16; };
    first->v[i] = float_of(both(i / 2));
    second->v[i] = float_of(both(2 + i / 2));
  }
}
// c + a b over pairs of bfloat16, the sums in single precision.
inline Vec dot_pairs(Vec a, Vec b, Vec c) {
  for (int i = 0; i < 4; ++i) {
    const uint32_t x = bits_of(a.v[i]), y = bits_of(b.v[i]);
    c.v[i] = float_of(x & 0xffff0000u) * float_of(y & 0xffff0000u) + c.v[i];
    c.v[i] = float_of(x << 16) * float_of(y << 16) + c.v[i];
  }
  return c;
}
// dst[p*width + j] = src[j*ld + p] for j, p < 4
inline void transpose4x4(float* dst, int64_t width, const float* src, int64_t ld) {
  for (int p = 0; p < 4; ++p) {
    for (int j = 0; j < 4; ++j) dst[p * width + j] = src[j * ld + p];
  }
}
constexpr int kBlock = 4;
inline void transpose_block(float* dst, int64_t width, const float* src, int64_t ld) {
  transpose4x4(dst, width, src, ld);
}
inline Vec in_register(Vec a) { return a; }
// Four weights of a narrow format as floats: the low or the high halves of 4 dwords of bfloat16 pairs, or 4 bytes.
inline Vec widen_low(const char* p) {
  uint32_t bits[4];
  __builtin_memcpy(bits, p, 16);
  for (int i = 0; i < 4; ++i) bits[i] <<= 16;
  Vec r;
  __builtin_memcpy(r.v, bits, 16);
  return r;
}
inline Vec widen_high(const char* p) {
  uint32_t bits[4];
  __builtin_memcpy(bits, p, 16);
  for (int i = 0; i < 4; ++i) bits[i] &= 0xFFFF0000u;
  Vec r;
  __builtin_memcpy(r.v, bits, 16);
  return r;
}
// Neighbouring halves as floats.
inline Vec widen_halves(const char* p) {
  uint16_t halves[4];
  __builtin_memcpy(halves, p, 8);
  Vec r;
  for (int i = 0; i < 4; ++i) r.v[i] = float_of(static_cast<uint32_t>(halves[i]) << 16);
  return r;
}
inline Vec widen_bytes(const char* p) {
  Vec r;
  for (int i = 0; i < 4; ++i) r.v[i] = static_cast<float>(static_cast<signed char>(p[i]));
  return r;
}
#undef SOMA_EACH
