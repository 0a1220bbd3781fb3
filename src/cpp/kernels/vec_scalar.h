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
inline Vec load(const float* p) { SOMA_EACH(p[i]); }
inline Vec load_n(const float* p, int64_t n) { SOMA_EACH(i < n ? p[i] : 0.0f); }
inline void store(float* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = a.v[i];
}
inline void store_n(float* p, Vec a, int64_t n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
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
inline float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float reduce_max(Vec a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}
// dst[p*width + j] = src[j*ld + p] for j, p < 4
inline void transpose4x4(float* dst, int64_t width, const float* src, int64_t ld) {
  for (int p = 0; p < 4; ++p) {
    for (int j = 0; j < 4; ++j) dst[p * width + j] = src[j * ld + p];
  }
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
inline Vec widen_bytes(const char* p) {
  Vec r;
  for (int i = 0; i < 4; ++i) r.v[i] = static_cast<float>(static_cast<signed char>(p[i]));
  return r;
}
#undef SOMA_EACH
