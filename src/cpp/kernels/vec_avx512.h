// Sixteen floats in an AVX-512 register; tails by mask.
struct Vec {
  __m512 v;
};
constexpr int kWidth = 16;
constexpr int kGemmRows = 12;
constexpr int kGemmVectors = 2;

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec element(const float* p) { return set1(*p); }  // a factor of every lane
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline Vec keep_n(Vec a, int64_t n) { return {_mm512_maskz_mov_ps(first_lanes(n), a.v)}; }  // lanes from n on are 0
inline Vec first_or(Vec a, int64_t n, Vec rest) { return {_mm512_mask_mov_ps(rest.v, first_lanes(n), a.v)}; }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
// x > 0 ? a : 0
inline Vec where_positive(Vec x, Vec a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), a.v)};
}
// 2^n for integral n in [-126, 127], given as n + 1.5 * 2^23: the low bits of that sum are n.
inline Vec exp2_of_shifted(Vec shifted) {
  const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// exponent n and mantissa m of x > 0 = 2^n m with m from sqrt(1/2) to sqrt(2); of 0: -127 and 1.
inline void split_float(Vec x, Vec* exponent, Vec* mantissa) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i n = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
  exponent->v = _mm512_cvtepi32_ps(n);
  mantissa->v = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(n, 23)));
}
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

// The bits of a, rounded to the nearest bfloat16 (ties to even), in the upper half of each lane; NaN stays NaN.
inline __m512i bfloat16_bits(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
// Pairs of bfloat16: lane i is low[i] below, high[i] above.
inline Vec pair(Vec low, Vec high) {
#ifdef __AVX512BF16__
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v));  // low[0..15] high[0..15]
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, both))};
#else
  const __m512i upper = _mm512_andnot_si512(_mm512_set1_epi32(0xffff), bfloat16_bits(high));
  return {_mm512_castsi512_ps(_mm512_or_si512(upper, _mm512_srli_epi32(bfloat16_bits(low), 16)))};
#endif
}
// Pairs of neighbours, of the lanes of a and then those of b.
inline Vec pair_adjacent(Vec a, Vec b) {
#ifdef __AVX512BF16__
  return {_mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b.v, a.v)))};
#else
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat16_bits(a), 16));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat16_bits(b), 16));
  return {_mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1))};
#endif
}
// *first, *second: (half j of a, half j of b) for the first and the second half of all j.
inline void interleave_halves(Vec a, Vec b, Vec* first, Vec* second) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i x = _mm512_castps_si512(a.v), y = _mm512_castps_si512(b.v), half = _mm512_set1_epi16(16);
  first->v = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, order, y));
  second->v = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, _mm512_add_epi16(order, half), y));
}
// One of each pair, as floats.
inline Vec lower_of_pairs(Vec a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 16))}; }
inline Vec upper_of_pairs(Vec a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(-0x10000)))};
}
// c + a b over pairs of bfloat16, the sums in single precision.
inline Vec dot_pairs(Vec a, Vec b, Vec c) {
#ifdef __AVX512BF16__
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
#else
  c = fma(upper_of_pairs(a), upper_of_pairs(b), c);
  return fma(lower_of_pairs(a), lower_of_pairs(b), c);
#endif
}

// Stops the compiler from spilling a value that a loop reads many times.
inline Vec in_register(Vec a) {
#ifdef __GNUC__
  __asm__("" : "+v"(a.v));
#endif
  return a;
}

// Sixteen weights of a narrow format as floats: the low or the high halves of 16 dwords of bfloat16 pairs, or 16 bytes.
inline Vec widen_low(const char* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))}; }
inline Vec widen_high(const char* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))};
}
// Neighbouring halves as floats.
inline Vec widen_halves(const char* p) {
  const __m512i dwords = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(dwords, 16))};
}
inline Vec widen_bytes(const char* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
