// Softmax of a tile of causal attention, and its gradient, over the Vec of the level that includes this file. Row r of
// a tile sees the first n + r keys. A row is done two vectors at a time: together they make a vector of pairs.

// Calls f(i, left) for every two vectors at column i below `width`. left = n - i is the number of columns that the row
// still sees; at or below 0 it sees none. Where it sees both vectors, left is the constant 2 kWidth: masks fold away.
template <typename F>
inline void each_two(int64_t n, int64_t width, F f) {
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) f(i, static_cast<int64_t>(2 * kWidth));
  for (; i < width; i += 2 * kWidth) f(i, n - i);
}

// Hands exp(scale (x - top)) of the n columns that the row sees, then zeros up to `width`, to sink(i, first, second).
// Returns the sum. It subtracts before it scales, so that the largest is exactly 1.
template <typename Sink>
inline float exp_of_row(const float* x, int64_t n, int64_t width, float scale, float top, Sink sink) {
  const Vec factor = set1(scale), largest = set1(top);
  Vec s0 = set1(0.0f), s1 = s0;
  each_two(n, width, [&](int64_t i, int64_t left) {
    const Vec first = keep(exp(mul(sub(load(x + i), largest), factor)), left);
    const Vec second = keep(exp(mul(sub(load(x + i + kWidth), largest), factor)), left - kWidth);
    s0 = add(s0, first);
    s1 = add(s1, second);
    sink(i, first, second);
  });
  return reduce_add(add(s0, s1));
}

void attention_weights(const AttentionScores* scores) {
  float *x = scores->x, *const pairs = scores->pairs, *const max = scores->max, *const sum = scores->sum;
  const int64_t ld = scores->ld, m = scores->m, n = scores->n, width = scores->width;
  const float scale = scores->scale;
  for (int64_t r = 0; r < m; ++r, x += ld) {
    const float top = row_max(x, n + r);
    max[r] = scale * top;
    if (pairs == nullptr) {
      sum[r] = exp_of_row(x, n + r, width, scale, top, [&](int64_t i, Vec first, Vec second) {
        store(x + i, first);
        store(x + i + kWidth, second);
      });
    } else {
      float* const out = pairs + r * ld;
      sum[r] = exp_of_row(x, n + r, width, scale, top,
                          [&](int64_t i, Vec first, Vec second) { store(out + i / 2, pair_adjacent(first, second)); });
    }
  }
}

// p = exp(scale x - lse) of row r, in place. Returns sum p dp / sum p. The divisor is 1 but for the rounding of lse. It
// removes that rounding, which would remain where dp and its mean cancel.
inline float probabilities(const AttentionTile& t, int64_t r) {
  const Vec factor = set1(t.scale), offset = set1(-t.lse[r]);
  float* const p = t.p + r * t.ld;
  const float* const dp = t.dp + r * t.ld;
  Vec sum0 = set1(0.0f), sum1 = sum0, dot0 = sum0, dot1 = sum0;
  each_two(t.n + r, t.width, [&](int64_t i, int64_t left) {
    const Vec first = keep(exp(fma(load(p + i), factor, offset)), left);
    const Vec second = keep(exp(fma(load(p + i + kWidth), factor, offset)), left - kWidth);
    sum0 = add(sum0, first);
    sum1 = add(sum1, second);
    dot0 = fma(first, keep(load(dp + i), left), dot0);
    dot1 = fma(second, keep(load(dp + i + kWidth), left - kWidth), dot1);
    store(p + i, first);
    store(p + i + kWidth, second);
  });
  return reduce_add(add(dot0, dot1)) / reduce_add(add(sum0, sum1));
}

// scale p (dp - delta)
inline Vec score_gradient(Vec p, const float* dp, Vec delta, Vec scale, int64_t left) {
  return mul(mul(scale, p), keep(sub(load(dp), delta), left));
}

void attention_gradient(const AttentionTile* tile) {
  const AttentionTile& t = *tile;
  const Vec scale = set1(t.scale);
  for (int64_t r = 0; r < t.m; ++r) {
    const Vec delta = set1(probabilities(t, r));
    const float* const p = t.p + r * t.ld;
    float* const dp = t.dp + r * t.ld;
    each_two(t.n + r, t.width, [&](int64_t i, int64_t left) {
      SOMA_UNROLL for (int half = 0; half < 2; ++half) {
        const int64_t at = i + half * kWidth;
        store(dp + at, score_gradient(load(p + at), dp + at, delta, scale, left - half * kWidth));
      }
    });
  }
}

// Unit u of a tile: rows 2u and 2u + 1. kRows of them exist; a missing row counts as zero.
template <int kRows>
inline void gradient_unit(const AttentionTile& t, int64_t u) {
  const int64_t first = 2 * u;
  const Vec scale = set1(t.scale), zero = set1(0.0f);
  Vec delta[2] = {zero, zero};
  for (int64_t r = 0; r < kRows; ++r) delta[r] = set1(probabilities(t, first + r));
  each_two(t.n + first, t.width, [&](int64_t i, int64_t left) {
    Vec p[2][2] = {{zero, zero}, {zero, zero}}, ds[2][2] = {{zero, zero}, {zero, zero}};
    SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
      const int64_t row = (first + r) * t.ld + i;
      SOMA_UNROLL for (int half = 0; half < 2; ++half) {
        const int64_t at = row + half * kWidth;
        p[r][half] = load(t.p + at);
        ds[r][half] = score_gradient(p[r][half], t.dp + at, delta[r], scale, left + r - half * kWidth);
      }
      store(t.ds_rows + (first + r) * t.ld + i / 2, pair_adjacent(ds[r][0], ds[r][1]));
    }
    SOMA_UNROLL for (int half = 0; half < 2; ++half) {
      const int64_t at = u * t.ld + i + half * kWidth;
      store(t.p_units + at, pair(p[0][half], p[1][half]));
      store(t.ds_units + at, pair(ds[0][half], ds[1][half]));
    }
  });
}

void attention_gradient_pairs(const AttentionTile* tile) {
  for (int64_t u = 0; u < tile->units; ++u) {
    const int64_t rows = tile->m - 2 * u;
    rows > 1 ? gradient_unit<2>(*tile, u) : rows == 1 ? gradient_unit<1>(*tile, u) : gradient_unit<0>(*tile, u);
  }
}

void scale_rows(float* y, int64_t ld, int64_t m, int64_t n, const float* divisors) {
  for (int64_t r = 0; r < m; ++r, y += ld) {
    const Vec factor = set1(1.0f / divisors[r]);
    each(n, [&](int64_t i, int64_t count) { store_tail(y + i, mul(load_tail(y + i, count), factor), count); });
  }
}
