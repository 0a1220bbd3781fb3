// Eight floats in an AVX register, with FMA.
struct Vec {
  __m256 v;
};
constexpr int kWidth = 8;
constexpr int kGemmRows = 6;
constexpr int kGemmVectors = 2;

inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec set1(float x) { return {_mm256_set1_ps(x)}; }
inline Vec element(const float* p) { return set1(*p); }  // a factor of every lane
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load_n(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
inline Vec keep_n(Vec a, int64_t n) {
  return {_mm256_and_ps(_mm256_castsi256_ps(first_lanes(n)), a.v)};
}  // lanes from n on are 0
inline Vec first_or(Vec a, int64_t n, Vec rest) {
  return {_mm256_blendv_ps(rest.v, a.v, _mm256_castsi256_ps(first_lanes(n)))};
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
// x > 0 ? a : 0
inline Vec where_positive(Vec x, Vec a) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ), a.v)};
}
// 2^n for integral n in [-126, 127], given as n + 1.5 * 2^23: the low bits of that sum are n.
inline Vec exp2_of_shifted(Vec shifted) {
  const __m256i biased = _mm256_add_epi32(_mm256_castps_si256(shifted.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
// exponent n and mantissa m of x > 0 = 2^n m with m from sqrt(1/2) to sqrt(2); of 0: -127 and 1.
inline void split_float(Vec x, Vec* exponent, Vec* mantissa) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i n = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
  exponent->v = _mm256_cvtepi32_ps(n);
  mantissa->v = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(n, 23)));
}
inline float reduce_add(Vec a) {
  const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 pairs = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}
inline float reduce_max(Vec a) {
  const __m128 fours = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 pairs = _mm_max_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_max_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}

// The bits of a, rounded to the nearest bfloat16 (ties to even), in the upper half of each lane; NaN stays NaN.
inline __m256i bfloat16_bits(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)));
}
// Pairs of bfloat16: lane i is low[i] below, high[i] above.
inline Vec pair(Vec low, Vec high) {
  const __m256i upper = _mm256_andnot_si256(_mm256_set1_epi32(0xffff), bfloat16_bits(high));
  return {_mm256_castsi256_ps(_mm256_or_si256(upper, _mm256_srli_epi32(bfloat16_bits(low), 16)))};
}
// Pairs of neighbours, of the lanes of a and then those of b.
inline Vec pair_adjacent(Vec a, Vec b) {
  const __m256i low = _mm256_srai_epi32(bfloat16_bits(a), 16), high = _mm256_srai_epi32(bfloat16_bits(b), 16);
  return {_mm256_castsi256_ps(_mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8))};
}
// *first, *second: (half j of a, half j of b) for the first and the second half of all j.
inline void interleave_halves(Vec a, Vec b, Vec* first, Vec* second) {
  const __m256i x = _mm256_castps_si256(a.v), y = _mm256_castps_si256(b.v);
  const __m256i low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
  first->v = _mm256_castsi256_ps(_mm256_permute2x128_si256(low, high, 0x20));
  second->v = _mm256_castsi256_ps(_mm256_permute2x128_si256(low, high, 0x31));
}
// One of each pair, as floats.
inline Vec lower_of_pairs(Vec a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 16))}; }
inline Vec upper_of_pairs(Vec a) { return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-0x10000)))}; }
// c + a b over pairs of bfloat16, the sums in single precision.
inline Vec dot_pairs(Vec a, Vec b, Vec c) {
  c = fma(upper_of_pairs(a), upper_of_pairs(b), c);
  return fma(lower_of_pairs(a), lower_of_pairs(b), c);
}

// Keeps the compiler from spilling a value that a loop reads many times.
inline Vec in_register(Vec a) {
#ifdef __GNUC__
  __asm__("" : "+x"(a.v));
#endif
  return a;
}

// Eight weights of a narrow format as floats: the low or the high halves of 8 dwords of bfloat16 pairs, or 8 bytes.
inline __m256i load_dwords(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Vec widen_low(const char* p) { return {_mm256_castsi256_ps(_mm256_slli_epi32(load_dwords(p), 16))}; }
inline Vec widen_high(const char* p) {
  return {_mm256_castsi256_ps(_mm256_and_si256(load_dwords(p), _mm256_set1_epi32(-65536)))};
}
// Neighbouring halves as floats.
inline Vec widen_halves(const char* p) {
  const __m256i dwords = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(dwords, 16))};
}
inline Vec widen_bytes(const char* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
