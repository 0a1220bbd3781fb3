// Norms of rows and rotary positions of heads, over the Vec of the level that includes this file after rowwise.inl.h.

void norm_forward(const NormForward* norm) {
  float *y = norm->y, *const mean = norm->mean, *const rstd = norm->rstd;
  const float *x = norm->x, *const gamma = norm->gamma, *const beta = norm->beta;
  const int64_t rows = norm->rows, c = norm->c;
  const float eps = norm->eps;
  for (int64_t r = 0; r < rows; ++r, x += c, y += c) {
    const float mu = sum_over(c, [&](int64_t i, int64_t n) { return load_tail(x + i, n); }) / static_cast<float>(c);
    const Vec centre = set1(mu);
    const float variance = sum_over(c,
                                    [&](int64_t i, int64_t n) {
                                      const Vec d = keep(sub(load_tail(x + i, n), centre), n);
                                      return mul(d, d);
                                    }) /
                           static_cast<float>(c);
    const float scale = 1.0f / __builtin_sqrtf(variance + eps);
    if (mean != nullptr) mean[r] = mu;
    if (rstd != nullptr) rstd[r] = scale;
    const Vec s = set1(scale);
    each(c, [&](int64_t i, int64_t n) {
      Vec v = mul(sub(load_tail(x + i, n), centre), s);
      if (gamma != nullptr) v = fma(v, load_tail(gamma + i, n), load_tail(beta + i, n));
      store_tail(y + i, v, n);
    });
  }
}

void norm_backward(const NormBackward* norm) {
  float *dx = norm->dx, *y = norm->y;
  const float *dy = norm->dy, *x = norm->x, *residual = norm->residual;
  const float *const mean = norm->mean, *const rstd = norm->rstd;
  const float *const gamma = norm->gamma, *const beta = norm->beta;
  const int64_t rows = norm->rows, c = norm->c;
  const Vec per_element = set1(1.0f / static_cast<float>(c));
  for (int64_t r = 0; r < rows; ++r, x += c, dy += c, dx += c) {
    const Vec scale = set1(rstd[r]);
    const Vec centre = set1(mean != nullptr ? mean[r] : 0.0f);
    const Vec unit = mean != nullptr ? scale : set1(1.0f);
    const auto xhat = [&](int64_t i, int64_t n) { return mul(sub(load_tail(x + i, n), centre), unit); };
    const auto g = [&](int64_t i, int64_t n) {
      const Vec v = load_tail(dy + i, n);
      return gamma != nullptr ? mul(v, load_tail(gamma + i, n)) : v;
    };
    const Vec mean_g = mul(set1(sum_over(c, g)), per_element);
    const Vec mean_gx =
        mul(set1(sum_over(c, [&](int64_t i, int64_t n) { return mul(g(i, n), xhat(i, n)); })), per_element);
    each(c, [&](int64_t i, int64_t n) {
      const Vec normed = xhat(i, n);
      Vec v = mul(scale, sub(sub(g(i, n), mean_g), mul(normed, mean_gx)));
      if (residual != nullptr) v = add(v, load_tail(residual + i, n));
      store_tail(dx + i, v, n);
      if (y != nullptr) store_tail(y + i, fma(normed, load_tail(gamma + i, n), load_tail(beta + i, n)), n);
    });
    if (residual != nullptr) residual += c;
    if (y != nullptr) y += c;
  }
}

// 1/sqrt(mean(x^2) + eps)
inline float reciprocal_rms(const float* x, int64_t n, float eps) {
  const float squares = sum_over(n, [&](int64_t i, int64_t count) {
    const Vec v = load_tail(x + i, count);
    return mul(v, v);
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
}

void rms_norm_forward(const NormForward* norm) {
  float *y = norm->y, *const rstd = norm->rstd;
  const float *x = norm->x, *const gamma = norm->gamma;
  const int64_t rows = norm->rows, c = norm->c;
  const float eps = norm->eps;
  for (int64_t r = 0; r < rows; ++r, x += c, y += c) {
    const float scale = reciprocal_rms(x, c, eps);
    if (rstd != nullptr) rstd[r] = scale;
    const Vec s = set1(scale);
    each(c, [&](int64_t i, int64_t n) {
      const Vec v = mul(load_tail(x + i, n), s);
      store_tail(y + i, gamma != nullptr ? mul(v, load_tail(gamma + i, n)) : v, n);
    });
  }
}

void rms_norm_backward(const NormBackward* norm) {
  float *dx = norm->dx, *y = norm->y;
  const float *dy = norm->dy, *x = norm->x, *residual = norm->residual;
  const float *const rstd = norm->rstd, *const gamma = norm->gamma;
  const int64_t rows = norm->rows, c = norm->c;
  const Vec per_element = set1(1.0f / static_cast<float>(c));
  for (int64_t r = 0; r < rows; ++r, x += c, dy += c, dx += c) {
    const Vec scale = set1(rstd[r]);
    const auto xhat = [&](int64_t i, int64_t n) { return mul(load_tail(x + i, n), scale); };
    const auto g = [&](int64_t i, int64_t n) {
      const Vec v = load_tail(dy + i, n);
      return gamma != nullptr ? mul(v, load_tail(gamma + i, n)) : v;
    };
    const Vec mean_gx =
        mul(set1(sum_over(c, [&](int64_t i, int64_t n) { return mul(g(i, n), xhat(i, n)); })), per_element);
    each(c, [&](int64_t i, int64_t n) {
      const Vec normed = xhat(i, n);
      Vec v = mul(scale, sub(g(i, n), mul(normed, mean_gx)));
      if (residual != nullptr) v = add(v, load_tail(residual + i, n));
      store_tail(dx + i, v, n);
      if (y != nullptr) store_tail(y + i, gamma != nullptr ? mul(normed, load_tail(gamma + i, n)) : normed, n);
    });
    if (residual != nullptr) residual += c;
    if (y != nullptr) y += c;
  }
}

// Takes kRows rows from `row` on, all columns: memory is read from end to end. RMSNorm has no mean and dbeta.
template <int kRows, bool kCentred>
inline void norm_grad_rows(const NormGrad& norm, int64_t row) {
  float *const dgamma = norm.dgamma, *const dbeta = norm.dbeta;
  const int64_t ld = norm.ld, n = norm.n;
  const float *const dy = norm.dy + row * ld, *const x = norm.x + row * ld;
  Vec centre[kRows], scale[kRows];
  SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
    centre[r] = set1(kCentred ? norm.mean[row + r] : 0.0f);
    scale[r] = set1(norm.rstd[row + r]);
  }
  each(n, [&](int64_t i, int64_t m) {
    Vec sum_gamma = load_tail(dgamma + i, m), sum_beta = kCentred ? load_tail(dbeta + i, m) : set1(0.0f);
    SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec d = load_tail(dy + r * ld + i, m), v = load_tail(x + r * ld + i, m);
      sum_gamma = fma(d, mul(kCentred ? sub(v, centre[r]) : v, scale[r]), sum_gamma);
      if (kCentred) sum_beta = add(sum_beta, d);
    }
    store_tail(dgamma + i, sum_gamma, m);
    if (kCentred) store_tail(dbeta + i, sum_beta, m);
  });
}

template <bool kCentred>
inline void norm_grad_of(const NormGrad* norm) {
  constexpr int kRows = 4;
  int64_t r = 0;
  for (; r + kRows <= norm->rows; r += kRows) norm_grad_rows<kRows, kCentred>(*norm, r);
  for (; r < norm->rows; ++r) norm_grad_rows<1, kCentred>(*norm, r);
}

void norm_grad(const NormGrad* norm) { norm_grad_of<true>(norm); }
void rms_norm_grad(const NormGrad* norm) { norm_grad_of<false>(norm); }

void rotate_heads(const HeadsForward* heads) {
  float* y = heads->y;
  const float *x = heads->x, *const gamma = heads->gamma;
  const int64_t count = heads->heads, d = heads->d, half = d / 2;
  const float *const cosines = heads->turn, *const sines = cosines + half;
  const float eps = heads->eps;
  for (int64_t h = 0; h < count; ++h, x += d, y += d) {
    const Vec scale = set1(gamma != nullptr ? reciprocal_rms(x, d, eps) : 1.0f);
    each(half, [&](int64_t i, int64_t n) {
      Vec a = load_tail(x + i, n), b = load_tail(x + half + i, n);
      if (gamma != nullptr) {
        a = mul(mul(a, scale), load_tail(gamma + i, n));
        b = mul(mul(b, scale), load_tail(gamma + half + i, n));
      }
      const Vec c = load_tail(cosines + i, n), s = load_tail(sines + i, n);
      store_tail(y + i, sub(mul(a, c), mul(b, s)), n);
      store_tail(y + half + i, add(mul(b, c), mul(a, s)), n);
    });
  }
}

void rotate_head_backward(const HeadBackward* head) {
  constexpr int64_t kRowsAhead = 8;
  float *dx = head->dx, *const dgamma = head->dgamma;
  const float *x = head->x, *turn = head->turns, *const gamma = head->gamma;
  const int64_t rows = head->rows, d = head->d, half = d / 2, ld = head->ld, ld_x = head->ld_x;
  const float eps = head->eps;
  const Vec per_element = set1(1.0f / static_cast<float>(d));
  for (int64_t r = 0; r < rows; ++r, dx += ld, turn += d) {
    // Calls f(i, n, first, second): the gradients before the rotation of the n elements at i of both halves.
    const auto each_turned = [&](auto&& f) {
      each(half, [&](int64_t i, int64_t n) {
        const Vec a = load_tail(dx + i, n), b = load_tail(dx + half + i, n);
        const Vec c = load_tail(turn + i, n), s = load_tail(turn + half + i, n);
        f(i, n, add(mul(a, c), mul(b, s)), sub(mul(b, c), mul(a, s)));
      });
    };
    if (gamma == nullptr) {
      each_turned([&](int64_t i, int64_t n, Vec first, Vec second) {
        store_tail(dx + i, first, n);
        store_tail(dx + half + i, second, n);
      });
      continue;
    }
    // A head is a few cache lines of each row. The prefetcher of a processor sees no pattern there.
    for (int64_t i = 0; i < d; i += 16) SOMA_FETCH(x + kRowsAhead * ld_x + i);
    const Vec scale = set1(reciprocal_rms(x, d, eps));
    Vec dot = set1(0.0f);
    each_turned([&](int64_t i, int64_t n, Vec first, Vec second) {
      const auto part = [&](int64_t at, Vec g) {
        const Vec xhat = mul(load_tail(x + at, n), scale), through = mul(g, load_tail(gamma + at, n));
        store_tail(dgamma + at, fma(g, xhat, load_tail(dgamma + at, n)), n);
        store_tail(dx + at, through, n);
        dot = fma(through, xhat, dot);
      };
      part(i, first);
      part(half + i, second);
    });
    const Vec mean = mul(set1(reduce_add(dot)), per_element);
    each(d, [&](int64_t i, int64_t n) {
      const Vec xhat = mul(load_tail(x + i, n), scale);
      store_tail(dx + i, mul(scale, sub(load_tail(dx + i, n), mul(xhat, mean))), n);
    });
    x += ld_x;
  }
}
