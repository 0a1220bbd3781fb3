// AdamW, Muon around its orthogonal factor, and averages of weights, for whatever Vec the including level defines.

// x < 0 ? 0 : a
inline Vec where_not_negative(Vec x, Vec a) { return sub(a, where_positive(sub(set1(0.0f), x), a)); }

void adamw(float* p, float* g, float* m, float* v, int64_t n, const AdamWStep* s) {
  const Vec beta1 = set1(s->beta1), beta2 = set1(s->beta2), rest1 = set1(1.0f - s->beta1),
            rest2 = set1(1.0f - s->beta2);
  const Vec kept = set1(1.0f - s->lr * s->weight_decay), rate = set1(s->lr / s->bias_correction1);
  const Vec correction = set1(1.0f / s->bias_correction2_sqrt), eps = set1(s->eps), grad_scale = set1(s->grad_scale);
  const Vec zero = set1(0.0f), decay = set1(s->lr * s->weight_decay);
  const bool cautious = s->cautious != 0;
  each(n, [&](int64_t i, int64_t k) {
    const Vec grad = mul(load_tail(g + i, k), grad_scale);
    const Vec first = fma(rest1, grad, mul(beta1, load_tail(m + i, k)));
    const Vec second = fma(rest2, mul(grad, grad), mul(beta2, load_tail(v + i, k)));
    const Vec denominator = fma(sqrt(second), correction, eps);
    const Vec before = load_tail(p + i, k);
    const Vec rest =
        cautious ? sub(before, where_not_negative(mul(first, before), mul(decay, before))) : mul(before, kept);
    const Vec value = sub(rest, mul(rate, div(first, denominator)));
    store_tail(p + i, value, k);
    store_tail(m + i, first, k);
    store_tail(v + i, second, k);
    store_tail(g + i, zero, k);
  });
}

double muon_momentum(float* g, float* m, int64_t n, float momentum, float scale) {
  const Vec kept = set1(momentum), rest = set1(1.0f - momentum), s = set1(scale);
  each(n, [&](int64_t i, int64_t k) {
    const Vec grad = mul(rest, mul(load_tail(g + i, k), s));
    const Vec first = fma(kept, load_tail(m + i, k), grad);
    store_tail(m + i, first, k);
    store_tail(g + i, fma(kept, first, grad), k);
  });
  return sum_squares(g, n);
}

void muon(float* p, float* o, int64_t n, const MuonStep* s) {
  const Vec kept = set1(1.0f - s->lr * s->weight_decay), rate = set1(s->lr * s->scale);
  const Vec zero = set1(0.0f), decay = set1(s->lr * s->weight_decay);
  const bool cautious = s->cautious != 0;
  each(n, [&](int64_t i, int64_t k) {
    const Vec before = load_tail(p + i, k), factor = load_tail(o + i, k);
    const Vec rest =
        cautious ? sub(before, where_not_negative(mul(factor, before), mul(decay, before))) : mul(before, kept);
    store_tail(p + i, sub(rest, mul(rate, factor)), k);
    store_tail(o + i, zero, k);
  });
}

void scale_by(float* y, const float* x, float s, int64_t n) {
  each(n, [&](int64_t i, int64_t k) { store_tail(y + i, mul(load_tail(x + i, k), set1(s)), k); });
}

void combine(float* y, const float* x, float linear, float square, int64_t n) {
  const Vec b = set1(linear), c = set1(square);
  each(n,
       [&](int64_t i, int64_t k) { store_tail(y + i, fma(c, load_tail(y + i, k), mul(b, load_tail(x + i, k))), k); });
}

void average(float* y, const float* x, float rate, int64_t n) {
  if (rate == 1.0f) {
    __builtin_memcpy(y, x, static_cast<uint64_t>(n) * sizeof(float));
    return;
  }
  const Vec r = set1(rate);
  each(n, [&](int64_t i, int64_t k) {
    const Vec before = load_tail(y + i, k);
    store_tail(y + i, fma(r, sub(load_tail(x + i, k), before), before), k);
  });
}
