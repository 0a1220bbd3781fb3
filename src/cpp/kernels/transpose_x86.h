// The 4x4 block transpose that packing uses, in SSE registers on every x86 level.

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
