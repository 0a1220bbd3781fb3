// The block transposes that packing uses: 4x4 in SSE registers on every x86 level, 16x16 where AVX-512 is.

// dst[p*width + j] = src[j*ld + p] for j, p < 4
inline void transpose4x4(float* dst, int64_t width, const float* src, int64_t ld) {
  __m128 a = _mm_loadu_ps(src), b = _mm_loadu_ps(src + ld), c = _mm_loadu_ps(src + 2 * ld),
         d = _mm_loadu_ps(src + 3 * ld);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(dst, a);
  _mm_storeu_ps(dst + width, b);
  _mm_storeu_ps(dst + 2 * width, c);
  _mm_storeu_ps(dst + 3 * width, d);
}

#ifdef __AVX512F__
// Four times four floats, from rows `step` apart.
inline __m512 four_rows(const float* p, int64_t step) {
  const __m512 one = _mm512_castps128_ps512(_mm_loadu_ps(p));
  const __m512 two = _mm512_insertf32x4(one, _mm_loadu_ps(p + step), 1);
  return _mm512_insertf32x4(_mm512_insertf32x4(two, _mm_loadu_ps(p + 2 * step), 2), _mm_loadu_ps(p + 3 * step), 3);
}

// dst[p*width + j] = src[j*ld + p] for j, p < 16. Loading by fours leaves a 4x4 transpose within each quarter register.
constexpr int kBlock = 16;
inline void transpose_block(float* dst, int64_t width, const float* src, int64_t ld) {
  for (int64_t p = 0; p < 16; p += 4) {
    const __m512 a = four_rows(src + p, 4 * ld), b = four_rows(src + ld + p, 4 * ld);
    const __m512 c = four_rows(src + 2 * ld + p, 4 * ld), d = four_rows(src + 3 * ld + p, 4 * ld);
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                  ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)),
                  cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    float* out = dst + p * width;
    _mm512_storeu_ps(out, _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)));
    _mm512_storeu_ps(out + width, _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)));
    _mm512_storeu_ps(out + 2 * width, _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)));
    _mm512_storeu_ps(out + 3 * width, _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)));
  }
}
#else
constexpr int kBlock = 4;
inline void transpose_block(float* dst, int64_t width, const float* src, int64_t ld) {
  transpose4x4(dst, width, src, ld);
}
#endif
