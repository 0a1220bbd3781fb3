// Four floats in a register of Advanced SIMD, which every aarch64 processor has, with fused multiply-add. Where it is
// compiled for FEAT_BF16, pairs of bfloat16 are rounded and multiplied by its instructions.
struct Vec {
  float32x4_t v;
};
constexpr int kWidth = 4;
constexpr int kGemmRows = 6;  // 24 sums, 4 vectors of B and 1 of A: 29 of 32 registers
constexpr int kGemmVectors = 4;

inline uint32x4_t bits_of(Vec a) { return vreinterpretq_u32_f32(a.v); }
inline uint16x8_t halves_of(Vec a) { return vreinterpretq_u16_f32(a.v); }
inline Vec of_bits(uint32x4_t bits) { return {vreinterpretq_f32_u32(bits)}; }
// Names of their own: all vectors of 128 bits are one type to Visual C++.
inline Vec of_halves(uint16x8_t bits) { return {vreinterpretq_f32_u16(bits)}; }

inline Vec set1(float x) { return {vdupq_n_f32(x)}; }
inline Vec load(const float* p) { return {vld1q_f32(p)}; }
inline Vec load_n(const float* p, int64_t n) {
  float32x2_t low = vdup_n_f32(0.0f), high = low;
  if (n == 1) low = vld1_lane_f32(p, low, 0);
  if (n >= 2) low = vld1_f32(p);
  if (n == 3) high = vld1_lane_f32(p + 2, high, 0);
  return {vcombine_f32(low, high)};
}
inline void store(float* p, Vec a) { vst1q_f32(p, a.v); }
inline void store_n(float* p, Vec a, int64_t n) {
  if (n == 1) vst1q_lane_f32(p, a.v, 0);
  if (n >= 2) vst1_f32(p, vget_low_f32(a.v));
  if (n == 3) vst1q_lane_f32(p + 2, a.v, 2);
}
inline uint32x4_t first_lanes(int64_t n) {
  const int32_t lanes[4] = {0, 1, 2, 3};
  return vcgtq_s32(vdupq_n_s32(static_cast<int32_t>(n)), vld1q_s32(lanes));
}
inline Vec keep_n(Vec a, int64_t n) { return of_bits(vandq_u32(first_lanes(n), bits_of(a))); }  // lanes from n on are 0
inline Vec first_or(Vec a, int64_t n, Vec rest) { return {vbslq_f32(first_lanes(n), a.v, rest.v)}; }
inline Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }  // a NaN of either stays
inline Vec min(Vec a, Vec b) { return {vminq_f32(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {vsqrtq_f32(a.v)}; }
// x > 0 ? a : 0
inline Vec where_positive(Vec x, Vec a) { return of_bits(vandq_u32(vcgtzq_f32(x.v), bits_of(a))); }
// 2^n for integral n in [-126, 127], given as n + 1.5 * 2^23: the low bits of that sum are n.
inline Vec exp2_of_shifted(Vec shifted) {
  return of_bits(vshlq_n_u32(vaddq_u32(bits_of(shifted), vdupq_n_u32(127)), 23));
}
// exponent n and mantissa m of x > 0 = 2^n m with m from sqrt(1/2) to sqrt(2); of 0: -127 and 1.
inline void split_float(Vec x, Vec* exponent, Vec* mantissa) {
  const int32x4_t bits = vreinterpretq_s32_f32(x.v), n = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(0x3f3504f3)), 23);
  exponent->v = vcvtq_f32_s32(n);
  mantissa->v = vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(n, 23)));
}
inline float reduce_add(Vec a) { return vaddv_f32(vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v))); }
inline float reduce_max(Vec a) { return vmaxvq_f32(a.v); }

// One float, in the lane that multiplications by an element read. set1 would cost a vector operation.
struct Element {
  float32x4_t v;
};
inline Element element(const float* p) {
#ifdef __GNUC__
  Element x;
  __asm__("ldr %s0, %1" : "=w"(x.v) : "m"(*p));  // compilers would load it into every lane
  return x;
#else
  return {vdupq_n_f32(*p)};
#endif
}
inline Vec fma(Element a, Vec b, Vec c) { return {vfmaq_laneq_f32(c.v, b.v, a.v, 0)}; }

// The upper half of each lane as a float, and the lower half.
inline Vec upper_of_pairs(Vec a) { return of_bits(vandq_u32(bits_of(a), vdupq_n_u32(0xffff0000u))); }
inline Vec lower_of_pairs(Vec a) { return of_bits(vshlq_n_u32(bits_of(a), 16)); }

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
inline bfloat16x8_t bfloat16_of(Vec a) { return vreinterpretq_bf16_f32(a.v); }
// Pairs of bfloat16, rounded to nearest even: lane i is low[i] below, high[i] above.
inline Vec pair(Vec low, Vec high) {
  return of_halves(vzip1q_u16(vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(low.v)),
                              vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(high.v))));
}
// Pairs of neighbours, of the lanes of a and then those of b.
inline Vec pair_adjacent(Vec a, Vec b) {
  return {vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a.v), b.v))};
}
// c + a b for squares of sums: lanes 2i and 2i + 1 of a are row i, of b column i, and lane 2i + j of c is their sum. A
// lane adds a b of the lower halves + a b of the upper halves, twice. BFMMLA rounds all sums to odd, and takes numbers
// below 2^-126 as zero (Arm Architecture Reference Manual, BFDotAdd, where FPCR.EBF is 0). The products are exact.
#define SOMA_SQUARES 1
inline Vec dot_squares(Vec a, Vec b, Vec c) { return {vbfmmlaq_f32(c.v, bfloat16_of(a), bfloat16_of(b))}; }
// Rows of four sums as two squares, and back: the upper lanes of a change places with the lower ones of b.
inline void swap_middle(Vec a, Vec b, Vec* first, Vec* second) {
  const float64x2_t x = vreinterpretq_f64_f32(a.v), y = vreinterpretq_f64_f32(b.v);
  *first = {vreinterpretq_f32_f64(vzip1q_f64(x, y))};
  *second = {vreinterpretq_f32_f64(vzip2q_f64(x, y))};
}
inline void interleave(Vec a, Vec b, Vec* first, Vec* second) {
  *first = {vzip1q_f32(a.v, b.v)};
  *second = {vzip2q_f32(a.v, b.v)};
}
// Two units at p and two at q.
inline Vec two_of_each(const float* p, const float* q) { return {vcombine_f32(vld1_f32(p), vld1_f32(q))}; }
#else
// The bits of a, rounded to the nearest bfloat16 (ties to even), in the upper half of each lane; NaN stays NaN.
inline uint32x4_t bfloat16_bits(Vec a) {
  const uint32x4_t bits = bits_of(a), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  return vbslq_u32(vceqq_f32(a.v, a.v), rounded, vorrq_u32(bits, vdupq_n_u32(0x400000)));
}
// Pairs of bfloat16: lane i is low[i] below, high[i] above.
inline Vec pair(Vec low, Vec high) { return of_bits(vsriq_n_u32(bfloat16_bits(high), bfloat16_bits(low), 16)); }
// Pairs of neighbours, of the lanes of a and then those of b.
inline Vec pair_adjacent(Vec a, Vec b) {
  return of_halves(vuzp2q_u16(vreinterpretq_u16_u32(bfloat16_bits(a)), vreinterpretq_u16_u32(bfloat16_bits(b))));
}
// c + a b over pairs of bfloat16, the sums in single precision.
inline Vec dot_pairs(Vec a, Vec b, Vec c) {
  c = fma(upper_of_pairs(a), upper_of_pairs(b), c);
  return fma(lower_of_pairs(a), lower_of_pairs(b), c);
}
inline Vec dot_pairs(Element a, Vec b, Vec c) {
  c = fma(Element{upper_of_pairs({a.v}).v}, upper_of_pairs(b), c);
  return fma(Element{lower_of_pairs({a.v}).v}, lower_of_pairs(b), c);
}
#endif

// *first, *second: (half j of a, half j of b) for the first and the second half of all j.
inline void interleave_halves(Vec a, Vec b, Vec* first, Vec* second) {
  *first = of_halves(vzip1q_u16(halves_of(a), halves_of(b)));
  *second = of_halves(vzip2q_u16(halves_of(a), halves_of(b)));
}
// dst[p*width + j] = src[j*ld + p] for j, p < 4
inline void transpose4x4(float* dst, int64_t width, const float* src, int64_t ld) {
  const auto doubles = [](float32x4_t x) { return vreinterpretq_f64_f32(x); };
  const auto put = [&](int p, float64x2_t x) { vst1q_f32(dst + p * width, vreinterpretq_f32_f64(x)); };
  const float32x4_t a = vld1q_f32(src), b = vld1q_f32(src + ld), c = vld1q_f32(src + 2 * ld),
                    d = vld1q_f32(src + 3 * ld);
  const float64x2_t ab_even = doubles(vtrn1q_f32(a, b)), ab_odd = doubles(vtrn2q_f32(a, b));
  const float64x2_t cd_even = doubles(vtrn1q_f32(c, d)), cd_odd = doubles(vtrn2q_f32(c, d));
  put(0, vtrn1q_f64(ab_even, cd_even));
  put(1, vtrn1q_f64(ab_odd, cd_odd));
  put(2, vtrn2q_f64(ab_even, cd_even));
  put(3, vtrn2q_f64(ab_odd, cd_odd));
}
constexpr int kBlock = 4;
inline void transpose_block(float* dst, int64_t width, const float* src, int64_t ld) {
  transpose4x4(dst, width, src, ld);
}

// Keeps the compiler from spilling a value that a loop reads many times.
inline Vec in_register(Vec a) {
#ifdef __GNUC__
  __asm__("" : "+w"(a.v));
#endif
  return a;
}

// Four weights of a narrow format as floats: the low or the high halves of 4 dwords of bfloat16 pairs, or 4 bytes.
inline Vec load_dwords(const char* p) {
  return of_bits(vreinterpretq_u32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p))));
}
inline Vec widen_low(const char* p) { return lower_of_pairs(load_dwords(p)); }
inline Vec widen_high(const char* p) { return upper_of_pairs(load_dwords(p)); }
// Neighbouring halves as floats.
inline Vec widen_halves(const char* p) {
  return of_bits(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p))), 16));
}
inline Vec widen_bytes(const char* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)))};
}
