// Four floats in an SSE2 register. No fused multiply-add at this level: a*b+c is two roundings.
struct Vec {
  __m128 v;
};
constexpr int kWidth = 4;
constexpr int kGemmRows = 6;
constexpr int kGemmVectors = 2;

inline Vec set1(float x) { return {_mm_set1_ps(x)}; }
inline Vec element(const float* p) { return set1(*p); }  // a factor of every lane
inline Vec load(const float* p) { return {_mm_loadu_ps(p)}; }
inline Vec load_n(const float* p, int64_t n) {
  float t[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}
inline void store(float* p, Vec a) { _mm_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int64_t n) {
  float t[4];
  store(t, a);
  for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}
inline __m128 first_lanes(int64_t n) {
  return _mm_castsi128_ps(_mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_setr_epi32(0, 1, 2, 3)));
}
inline Vec keep_n(Vec a, int64_t n) { return {_mm_and_ps(first_lanes(n), a.v)}; }  // lanes from n on are 0
inline Vec first_or(Vec a, int64_t n, Vec rest) {
  return {_mm_or_ps(_mm_and_ps(first_lanes(n), a.v), _mm_andnot_ps(first_lanes(n), rest.v))};
}
inline Vec add(Vec a, Vec b) { return {_mm_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm_sqrt_ps(a.v)}; }
// x > 0 ? a : 0
inline Vec where_positive(Vec x, Vec a) { return {_mm_and_ps(_mm_cmpgt_ps(x.v, _mm_setzero_ps()), a.v)}; }
// 2^n for integral n in [-126, 127], given as n + 1.5 * 2^23: the low bits of that sum are n.
inline Vec exp2_of_shifted(Vec shifted) {
  return {_mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(_mm_castps_si128(shifted.v), _mm_set1_epi32(127)), 23))};
}
// exponent n and mantissa m of x > 0 = 2^n m with m from sqrt(1/2) to sqrt(2); of 0: -127 and 1.
inline void split_float(Vec x, Vec* exponent, Vec* mantissa) {
  const __m128i bits = _mm_castps_si128(x.v);
  const __m128i n = _mm_srai_epi32(_mm_sub_epi32(bits, _mm_set1_epi32(0x3f3504f3)), 23);
  exponent->v = _mm_cvtepi32_ps(n);
  mantissa->v = _mm_castsi128_ps(_mm_sub_epi32(bits, _mm_slli_epi32(n, 23)));
}
inline float reduce_add(Vec a) {
  const __m128 pairs = _mm_add_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}
inline float reduce_max(Vec a) {
  const __m128 pairs = _mm_max_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_max_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}

// The bits of a, rounded to the nearest bfloat16 (ties to even), in the upper half of each lane; NaN stays NaN.
inline __m128i bfloat16_bits(Vec a) {
  const __m128i bits = _mm_castps_si128(a.v);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
  const __m128i quiet = _mm_or_si128(bits, _mm_set1_epi32(0x400000));
  const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(a.v, a.v));
  return _mm_or_si128(_mm_and_si128(nan, quiet), _mm_andnot_si128(nan, rounded));
}
// Pairs of bfloat16: lane i is low[i] below, high[i] above.
inline Vec pair(Vec low, Vec high) {
  const __m128i upper = _mm_andnot_si128(_mm_set1_epi32(0xffff), bfloat16_bits(high));
  return {_mm_castsi128_ps(_mm_or_si128(upper, _mm_srli_epi32(bfloat16_bits(low), 16)))};
}
// Pairs of neighbours, of the lanes of a and then those of b.
inline Vec pair_adjacent(Vec a, Vec b) {
  const __m128i low = _mm_srai_epi32(bfloat16_bits(a), 16), high = _mm_srai_epi32(bfloat16_bits(b), 16);
  return {_mm_castsi128_ps(_mm_packs_epi32(low, high))};
}
// *first, *second: (half j of a, half j of b) for the first and the second half of all j.
inline void interleave_halves(Vec a, Vec b, Vec* first, Vec* second) {
  const __m128i x = _mm_castps_si128(a.v), y = _mm_castps_si128(b.v);
  first->v = _mm_castsi128_ps(_mm_unpacklo_epi16(x, y));
  second->v = _mm_castsi128_ps(_mm_unpackhi_epi16(x, y));
}
// c + a b over pairs of bfloat16, the sums in single precision.
inline Vec dot_pairs(Vec a, Vec b, Vec c) {
  const __m128i x = _mm_castps_si128(a.v), y = _mm_castps_si128(b.v), upper = _mm_set1_epi32(-0x10000);
  c = fma({_mm_castsi128_ps(_mm_and_si128(x, upper))}, {_mm_castsi128_ps(_mm_and_si128(y, upper))}, c);
  return fma({_mm_castsi128_ps(_mm_slli_epi32(x, 16))}, {_mm_castsi128_ps(_mm_slli_epi32(y, 16))}, c);
}

// Keeps the compiler from spilling a value that a loop reads many times.
inline Vec in_register(Vec a) {
#ifdef __GNUC__
  __asm__("" : "+x"(a.v));
#endif
  return a;
}

// Four weights of a narrow format as floats: the low or the high halves of 4 dwords of bfloat16 pairs, or 4 bytes.
inline __m128i load_dwords(const char* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Vec widen_low(const char* p) { return {_mm_castsi128_ps(_mm_slli_epi32(load_dwords(p), 16))}; }
inline Vec widen_high(const char* p) {
  return {_mm_castsi128_ps(_mm_and_si128(load_dwords(p), _mm_set1_epi32(-65536)))};
}
// Neighbouring halves as floats.
inline Vec widen_halves(const char* p) {
  const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), halves))};
}
inline Vec widen_bytes(const char* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m128i bytes = _mm_cvtsi32_si128(four);
  const __m128i words = _mm_unpacklo_epi8(bytes, bytes), dwords = _mm_unpacklo_epi16(words, words);
  return {_mm_cvtepi32_ps(_mm_srai_epi32(dwords, 24))};
}
