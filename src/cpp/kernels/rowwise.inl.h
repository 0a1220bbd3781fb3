// Activations, softmax and cross entropy, over the Vec of the level that includes this file.

// Sums term(i, n) over the n elements at each i: as one vector, and as its total.
template <typename Term>
inline float sum_over(int64_t count, Term term) {
  Vec s0 = set1(0.0f), s1 = s0;
  int64_t i = 0;
  for (; i + 2 * kWidth <= count; i += 2 * kWidth) {
    s0 = add(s0, term(i, static_cast<int64_t>(kWidth)));
    s1 = add(s1, term(i + kWidth, static_cast<int64_t>(kWidth)));
  }
  for (; i + kWidth <= count; i += kWidth) s0 = add(s0, term(i, static_cast<int64_t>(kWidth)));
  if (i < count) s1 = add(s1, term(i, count - i));
  return reduce_add(add(s0, s1));
}

// Calls f(i, n) for consecutive groups of n <= kWidth elements.
template <typename F>
inline void each(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) f(i, static_cast<int64_t>(kWidth));
  if (i < count) f(i, count - i);
}

// v in lanes below n, else 0; n may be negative. So a lane beyond the row counts as zero, even a NaN.
inline Vec keep(Vec v, int64_t n) { return n >= kWidth ? v : n > 0 ? keep_n(v, n) : set1(0.0f); }

// Four vectors in lockstep, for long chains of dependent operations. One vector alone would leave the processor waiting
// for each result.
struct Four {
  Vec v[4];
};
inline Four four(Vec x) { return {{x, x, x, x}}; }
#define SOMA_OF_FOUR(expression)                               \
  Four r;                                                      \
  SOMA_UNROLL for (int i = 0; i < 4; ++i) r.v[i] = expression; \
  return r
inline Four load_four(const float* p) { SOMA_OF_FOUR(load(p + i * kWidth)); }
inline void store(float* p, const Four& a) { SOMA_UNROLL for (int i = 0; i < 4; ++i) store(p + i * kWidth, a.v[i]); }
inline Four add(const Four& a, const Four& b) { SOMA_OF_FOUR(add(a.v[i], b.v[i])); }
inline Four sub(const Four& a, const Four& b) { SOMA_OF_FOUR(sub(a.v[i], b.v[i])); }
inline Four mul(const Four& a, const Four& b) { SOMA_OF_FOUR(mul(a.v[i], b.v[i])); }
inline Four div(const Four& a, const Four& b) { SOMA_OF_FOUR(div(a.v[i], b.v[i])); }
inline Four min(const Four& a, const Four& b) { SOMA_OF_FOUR(min(a.v[i], b.v[i])); }
inline Four max(const Four& a, const Four& b) { SOMA_OF_FOUR(max(a.v[i], b.v[i])); }
inline Four fma(const Four& a, const Four& b, const Four& c) { SOMA_OF_FOUR(fma(a.v[i], b.v[i], c.v[i])); }
inline Four where_positive(const Four& x, const Four& a) { SOMA_OF_FOUR(where_positive(x.v[i], a.v[i])); }
inline Four exp2_of_shifted(const Four& a) { SOMA_OF_FOUR(exp2_of_shifted(a.v[i])); }
#undef SOMA_OF_FOUR

// x in every lane of a Vec or of a Four.
template <typename V>
inline V all(float x);
template <>
inline Vec all<Vec>(float x) {
  return set1(x);
}
template <>
inline Four all<Four>(float x) {
  return four(set1(x));
}

// 2^n e^r for r in [-ln2/2, ln2/2] and n + 1.5 * 2^23: the minimax polynomial of degree 6 there, by Estrin's scheme,
// which has half the latency of Horner's.
template <typename V>
SOMA_INLINE V exp_reduced(V shifted, V r) {
  const V r2 = mul(r, r);
  const V low = fma(r, all<V>(1.666651964e-1f), all<V>(4.999999404e-1f));
  const V middle = fma(r, all<V>(8.368751965e-3f), all<V>(4.166839272e-2f));
  const V high = fma(r2, all<V>(1.381449634e-3f), middle);
  const V p = add(fma(fma(high, r2, low), r2, r), all<V>(1.0f));
  return mul(p, exp2_of_shifted(shifted));
}

// e^x for x in [-87.5, 88]. Cody-Waite reduction by ln 2 in two parts. Relative error below 1.1 ulp; NaN stays NaN.
template <typename V>
SOMA_INLINE V exp_within(V x) {
  const V shifted = fma(x, all<V>(1.44269504f), all<V>(12582912.0f));  // x log2(e), rounded, + 1.5 * 2^23
  const V n = sub(shifted, all<V>(12582912.0f));
  V r = fma(n, all<V>(-0.693359375f), x);
  r = fma(n, all<V>(2.12194440e-4f), r);
  return exp_reduced(shifted, r);
}

// e^x, saturated outside [-87, 88].
inline Vec exp(Vec x) { return exp_within(min(set1(88.0f), max(set1(-87.0f), x))); }  // keeps a NaN

template <bool kFetch>
inline float dot_of(const float* a, const float* b, int64_t n, int64_t ahead) {
  Vec s0 = set1(0.0f), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    if constexpr (kFetch) {
      for (int64_t j = 0; j < 4 * kWidth; j += 16) SOMA_FETCH(a + i + ahead + j);
    }
    s0 = fma(load(a + i), load(b + i), s0);
    s1 = fma(load(a + i + kWidth), load(b + i + kWidth), s1);
    s2 = fma(load(a + i + 2 * kWidth), load(b + i + 2 * kWidth), s2);
    s3 = fma(load(a + i + 3 * kWidth), load(b + i + 3 * kWidth), s3);
  }
  for (; i + kWidth <= n; i += kWidth) s0 = fma(load(a + i), load(b + i), s0);
  if (i < n) s1 = fma(load_n(a + i, n - i), load_n(b + i, n - i), s1);
  return reduce_add(add(add(s0, s1), add(s2, s3)));
}

float dot(const float* a, const float* b, int64_t n) { return dot_of<false>(a, b, n, 0); }

template <int kCount>
struct Columns {
  static constexpr int kVectors = kCount;
};

// Calls f(Columns, j, n) for n columns from j: groups of four vectors, of two (a panel of B), or of one. Sums down the
// rows then have as many chains.
template <typename F>
inline void each_columns(int64_t count, F f) {
  int64_t j = 0;
  for (; j + 4 * kWidth <= count; j += 4 * kWidth) f(Columns<4>{}, j, 4 * kWidth);
  for (; j + 2 * kWidth <= count; j += 2 * kWidth) f(Columns<2>{}, j, 2 * kWidth);
  for (; j < count; j += kWidth) f(Columns<1>{}, j, count - j < kWidth ? count - j : kWidth);
}

// The hash has the two rounds of "lowbias32" (Wellons, "Prospecting for hash functions", 2018), with the key between
// them. Nothing aliases `factors`, so compilers vectorise the loop that makes them.
void dropout(const DropoutRow* row) {
  constexpr int64_t kGroup = 64;
  float* const y = row->y;
  const float *const x = row->x, *const residual = row->residual;
  const uint32_t counter = row->counter, key = row->key;
  const int32_t threshold = row->threshold;
  const float scale = row->scale;
  const int64_t n = row->n;
  for (int64_t i = 0; i < n; i += kGroup) {
    float factors[kGroup];
    const uint32_t first = counter + static_cast<uint32_t>(i);
    for (uint32_t j = 0; j < kGroup; ++j) {
      uint32_t hash = first + j;
      hash = ((hash ^ hash >> 16) * 0x7FEB352Du) ^ key;
      hash = (hash ^ hash >> 15) * 0x846CA68Bu;
      factors[j] = static_cast<int32_t>(hash ^ hash >> 16) < threshold ? 0.0f : scale;
    }
    each(n - i < kGroup ? n - i : kGroup, [&](int64_t j, int64_t m) {
      const Vec kept = mul(load_tail(x + i + j, m), load(factors + j));
      store_tail(y + i + j, residual != nullptr ? add(load_tail(residual + i + j, m), kept) : kept, m);
    });
  }
}

void column_sum(float* out, const float* x, int64_t ld, int64_t rows, int64_t n) {
  each_columns(n, [&](auto columns, int64_t j, int64_t m) {
    constexpr int kVectors = decltype(columns)::kVectors;
    Vec sum[kVectors];
    SOMA_UNROLL for (int i = 0; i < kVectors; ++i) sum[i] = load_tail(out + j + i * kWidth, m - i * kWidth);
    for (int64_t r = 0; r < rows; ++r) {
      SOMA_UNROLL for (int i = 0; i < kVectors; ++i) {
        sum[i] = add(sum[i], load_tail(x + r * ld + j + i * kWidth, m - i * kWidth));
      }
    }
    SOMA_UNROLL for (int i = 0; i < kVectors; ++i) store_tail(out + j + i * kWidth, sum[i], m - i * kWidth);
  });
}

// tanh(u) = 2 s - 1 with s = 1/(1 + e^(-2u)), so gelu(x) = x s and gelu'(x) = s + x s (1 - s) 2 u'.
constexpr float kGeluA = 1.5957691216f;   // 2 sqrt(2/pi)
constexpr float kGeluB = 0.07135481283f;  // 2 sqrt(2/pi) 0.044715

// Above it gelu(x) equals x. Below its negative, |gelu(x)| is at most 1.3e-37. 2u is 87.3 there.
constexpr float kGeluFar = 10.0f;

// s for x within +-kGeluFar.
template <typename V>
SOMA_INLINE V gelu_gate(V x) {
  const V minus_2u = mul(x, fma(mul(x, x), all<V>(-kGeluB), all<V>(-kGeluA)));
  return div(all<V>(1.0f), add(all<V>(1.0f), exp_within(minus_2u)));
}

template <typename V>
SOMA_INLINE V gelu(V x) {
  const V v = max(all<V>(-kGeluFar), x);  // keeps a NaN
  return mul(v, gelu_gate(min(all<V>(kGeluFar), v)));
}

// y = f(x), four vectors at a time.
template <typename F>
SOMA_INLINE void map_row(float* y, const float* x, int64_t n, F f) {
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) store(y + i, f(load_four(x + i)));
  for (; i < n; i += kWidth) store_tail(y + i, f(load_tail(x + i, n - i)), n - i);
}

void gelu_forward(float* y, const float* x, int64_t n) {
  map_row(y, x, n, [](const auto& v) { return gelu(v); });
}

// *y = gelu(x); returns dy gelu'(x).
template <typename V>
SOMA_INLINE V gelu_gradient(V* y, V dy, V x) {
  const V far = max(all<V>(-kGeluFar), x), v = min(all<V>(kGeluFar), far);  // keeps a NaN
  const V s = gelu_gate(v);
  *y = mul(far, s);
  const V slope = fma(mul(v, v), all<V>(3.0f * kGeluB), all<V>(kGeluA));
  return mul(dy, fma(mul(mul(v, s), sub(all<V>(1.0f), s)), slope, s));
}

// dx = f(&y, dy, x), likewise.
template <typename F>
SOMA_INLINE void map_row_back(float* dx, float* y, const float* dy, const float* x, int64_t n, F f) {
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    Four output;
    const Four gradient = f(&output, load_four(dy + i), load_four(x + i));
    store(y + i, output);
    store(dx + i, gradient);
  }
  for (; i < n; i += kWidth) {
    Vec output;
    const Vec gradient = f(&output, load_tail(dy + i, n - i), load_tail(x + i, n - i));
    store_tail(y + i, output, n - i);
    store_tail(dx + i, gradient, n - i);
  }
}

void gelu_backward(float* dx, float* y, const float* dy, const float* x, int64_t n) {
  map_row_back(dx, y, dy, x, n, [](auto* output, const auto& d, const auto& v) { return gelu_gradient(output, d, v); });
}

// Beyond it x Phi(x) is x to the last bit, and below its negative no more than 4e-37 from 0.
constexpr float kErfFar = 12.875f;

// Phi(v) and e^(-v^2/2) for v within +-kErfFar. With t = |v| and s = 1/(1 + 0.34 t), Phi(-t) = e^(-t^2/2) s P(s), after
// Abramowitz & Stegun 7.1.26; P is of degree 8 with the least largest relative error, 2.3e-8. The exponent takes t^2 in
// two parts, t to 2^-7 squared and the rest, so that Phi is right to a few ulp of its own, however small.
template <typename V>
SOMA_INLINE V normal_cdf(V* density, V v) {
  const V zero = all<V>(0.0f), one = all<V>(1.0f), minus_half = all<V>(-0.5f), place = all<V>(98304.0f);  // 1.5 * 2^16
  const V t = max(sub(zero, v), v);
  const V head = sub(add(t, place), place);
  const V shifted = fma(mul(t, t), all<V>(-0.72134752f), all<V>(12582912.0f));  // as in exp_within
  const V n = sub(shifted, all<V>(12582912.0f));
  V r = fma(n, all<V>(-0.693359375f), mul(mul(head, head), minus_half));
  r = fma(n, all<V>(2.12194440e-4f), r);
  r = fma(mul(sub(t, head), minus_half), add(t, head), r);
  *density = exp_reduced(shifted, r);
  const V s = div(one, fma(t, all<V>(0.34f), one));
  V p = fma(s, all<V>(-0.0266780779f), all<V>(0.14212133f));
  p = fma(s, p, all<V>(-0.278351903f));
  p = fma(s, p, all<V>(0.207910299f));
  p = fma(s, p, all<V>(-0.0484965257f));
  p = fma(s, p, all<V>(0.116888165f));
  p = fma(s, p, all<V>(0.114828005f));
  p = fma(s, p, all<V>(0.13616088f));
  p = fma(s, p, all<V>(0.135617837f));
  const V tail = mul(mul(*density, s), p);
  const V upper = where_positive(v, one);
  return fma(fma(all<V>(-2.0f), upper, one), tail, upper);  // v > 0 ? 1 - tail : tail
}

template <typename V>
SOMA_INLINE V gelu_erf(V x) {
  const V v = max(all<V>(-kErfFar), x);  // keeps a NaN
  V density;
  return mul(v, normal_cdf(&density, min(all<V>(kErfFar), v)));
}

// *y = gelu_erf(x); returns dy gelu_erf'(x).
template <typename V>
SOMA_INLINE V gelu_erf_gradient(V* y, V dy, V x) {
  const V far = max(all<V>(-kErfFar), x), v = min(all<V>(kErfFar), far);  // keeps a NaN
  V density;
  const V gate = normal_cdf(&density, v);
  *y = mul(far, gate);
  return mul(dy, fma(mul(v, all<V>(0.3989422804f)), density, gate));
}

void gelu_erf_forward(float* y, const float* x, int64_t n) {
  map_row(y, x, n, [](const auto& v) { return gelu_erf(v); });
}

void gelu_erf_backward(float* dx, float* y, const float* dy, const float* x, int64_t n) {
  map_row_back(dx, y, dy, x, n,
               [](auto* output, const auto& d, const auto& v) { return gelu_erf_gradient(output, d, v); });
}

// Beyond it silu(x) is x to the last bit, and below its negative no more than 1.5e-36.
constexpr float kSiluFar = 87.0f;

// *output = silu(x); returns silu'(x) = s + silu(x) (1 - s), s = 1/(1 + e^-x).
template <typename V>
SOMA_INLINE V silu_slope(V* output, V x) {
  const V far = max(all<V>(-kSiluFar), x), v = min(all<V>(kSiluFar), far);  // keeps a NaN
  const V s = div(all<V>(1.0f), add(all<V>(1.0f), exp_within(sub(all<V>(0.0f), v))));
  *output = mul(far, s);
  return fma(mul(v, s), sub(all<V>(1.0f), s), s);
}

template <typename V>
SOMA_INLINE V swiglu(V gate, V up) {
  V activated;
  silu_slope(&activated, gate);
  return mul(activated, up);
}

void swiglu_forward(float* y, const float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) store(y + i, swiglu(load_four(gate + i), load_four(up + i)));
  for (; i < n; i += kWidth) {
    store_tail(y + i, swiglu(load_tail(gate + i, n - i), load_tail(up + i, n - i)), n - i);
  }
}

template <typename V>
struct SwigluGradient {
  V gate, up, y;
};
template <typename V>
SOMA_INLINE SwigluGradient<V> swiglu_gradient(V dy, V gate, V up) {
  V activated;
  const V slope = silu_slope(&activated, gate);
  return {mul(mul(dy, up), slope), mul(dy, activated), mul(activated, up)};
}

void swiglu_backward(float* dgate, float* dup, float* y, const float* dy, const float* gate, const float* up,
                     int64_t n) {
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    const auto g = swiglu_gradient(load_four(dy + i), load_four(gate + i), load_four(up + i));
    store(dgate + i, g.gate);
    store(dup + i, g.up);
    store(y + i, g.y);
  }
  for (; i < n; i += kWidth) {
    const int64_t m = n - i;
    const auto g = swiglu_gradient(load_tail(dy + i, m), load_tail(gate + i, m), load_tail(up + i, m));
    store_tail(dgate + i, g.gate, m);
    store_tail(dup + i, g.up, m);
    store_tail(y + i, g.y, m);
  }
}

void relu_backward(float* dx, const float* dy, const float* y, int64_t n) {
  each(n,
       [&](int64_t i, int64_t m) { store_tail(dx + i, where_positive(load_tail(y + i, m), load_tail(dy + i, m)), m); });
}

void add(float* y, const float* a, const float* b, int64_t n) {
  each(n, [&](int64_t i, int64_t m) { store_tail(y + i, add(load_tail(a + i, m), load_tail(b + i, m)), m); });
}

void scale_add(float* y, const float* x, float s, int64_t n) {
  each(n, [&](int64_t i, int64_t m) { store_tail(y + i, fma(set1(s), load_tail(x + i, m), load_tail(y + i, m)), m); });
}

inline float row_max(const float* x, int64_t n) {
  Vec best = set1(x[0]);
  each(n, [&](int64_t i, int64_t m) {
    const Vec v = load_tail(x + i, m);
    best = max(best, m >= kWidth ? v : first_or(v, m, best));
  });
  return reduce_max(best);
}

// y = exp(scale x - shift), and its sum.
inline float exp_and_sum(float* y, const float* x, int64_t n, float scale, float shift) {
  return sum_over(n, [&](int64_t i, int64_t m) {
    const Vec e = keep(exp(fma(load_tail(x + i, m), set1(scale), set1(-shift))), m);
    if (y != nullptr) store_tail(y + i, e, m);
    return e;
  });
}

// x = softmax(scale x) in place.
inline void softmax_row(float* x, int64_t n, float scale) {
  const Vec s = set1(1.0f / exp_and_sum(x, x, n, scale, scale * row_max(x, n)));
  each(n, [&](int64_t i, int64_t m) { store_tail(x + i, mul(load_tail(x + i, m), s), m); });
}

void max_sum_exp(const float* x, int64_t n, float* max_out, float* sum_out) {
  *max_out = row_max(x, n);
  *sum_out = exp_and_sum(nullptr, x, n, 1.0f, *max_out);
}

int64_t count_better(const float* x, int64_t n, int64_t target) {  // sums of ones are exact
  const Vec chosen = set1(x[target]), one = set1(1.0f);
  const auto above = [&](Vec a, Vec b, int64_t m) { return keep(where_positive(sub(a, b), one), m); };
  const float worse = sum_over(target, [&](int64_t i, int64_t m) { return above(chosen, load_tail(x + i, m), m); });
  n -= target, x += target;
  const float better = sum_over(n, [&](int64_t i, int64_t m) { return above(load_tail(x + i, m), chosen, m); });
  return target - static_cast<int64_t>(worse) + static_cast<int64_t>(better);
}

void cross_entropy_row(float* x, int64_t n, int64_t target, float grad_scale, float* max_out, float* sum_out) {
  *max_out = row_max(x, n);
  *sum_out = exp_and_sum(x, x, n, 1.0f, *max_out);
  const Vec s = set1(grad_scale / *sum_out);
  each(n, [&](int64_t i, int64_t m) { store_tail(x + i, mul(load_tail(x + i, m), s), m); });
  x[target] -= grad_scale;
}

// ln x for x >= 0, off by at most 2 ulp or 1e-7; -88 for 0. Series of 2 artanh((m - 1) / (m + 1)) of the mantissa m.
inline Vec log(Vec x) {
  Vec n, m;
  split_float(x, &n, &m);
  const Vec s = div(sub(m, set1(1.0f)), add(m, set1(1.0f))), s2 = mul(s, s);
  Vec p = fma(s2, set1(2.0f / 9), set1(2.0f / 7));
  p = fma(p, s2, set1(2.0f / 5));
  p = fma(p, s2, set1(2.0f / 3));
  p = fma(p, s2, set1(2.0f));
  return fma(n, set1(0.693359375f), fma(n, set1(-2.12194440e-4f), mul(p, s)));
}

void soft_cross_entropy_row(SoftCrossEntropy* row) {
  float* const x = row->x;
  const float* const q = row->q;
  const int64_t n = row->n;
  const float share = row->share, scale = row->grad_scale, top = row_max(x, n);
  const Vec max = set1(top);
  row->divergence = sum_over(n, [&](int64_t i, int64_t m) {
    const Vec p = load_tail(q + i, m);
    return keep(mul(p, sub(log(p), sub(load_tail(x + i, m), max))), m);
  });
  const float sum = exp_and_sum(x, x, n, 1.0f, top);
  const Vec s = set1(scale / sum), taught = set1(-scale * share);
  each(n, [&](int64_t i, int64_t m) {
    store_tail(x + i, fma(taught, load_tail(q + i, m), mul(load_tail(x + i, m), s)), m);
  });
  x[row->target] -= scale * (1.0f - share);
  row->max = top;
  row->sum = sum;
}

void add_softmax_row(float* q, float* x, int64_t n, float share, bool onto) {
  const Vec s = set1(share / exp_and_sum(x, x, n, 1.0f, row_max(x, n)));
  each(n, [&](int64_t i, int64_t m) {
    const Vec p = mul(load_tail(x + i, m), s);
    store_tail(q + i, onto ? add(load_tail(q + i, m), p) : p, m);
  });
}

double sum_squares(const float* x, int64_t n) {
  constexpr int64_t kRun = 256;  // floats summed in single precision before the double takes over
  double total = 0;
  for (int64_t start = 0; start < n; start += kRun) {
    const int64_t count = n - start < kRun ? n - start : kRun;
    total += sum_over(count, [&](int64_t i, int64_t m) {
      const Vec v = load_tail(x + start + i, m);
      return mul(v, v);
    });
  }
  return total;
}
