// Packing and the register tile of the matrix product, for whatever Vec the including level defines. A tile keeps
// kGemmRows x (kGemmVectors * kWidth) sums in registers over the whole of k; every element is one chain of fma in the
// order of k, starting from zero or from C, so tiles of any shape give the same bits.

constexpr int kGemmCols = kGemmVectors * kWidth;

template <int kPanel>
void pack_copy(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  if (n == kPanel) {
    for (int64_t p = 0; p < k; ++p) __builtin_memcpy(dst + p * kPanel, src + p * ld, kPanel * sizeof(float));
    return;
  }
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t j = 0; j < kPanel; ++j) dst[p * kPanel + j] = j < n ? src[p * ld + j] : 0.0f;
  }
}

template <int kPanel>
void pack_transpose(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) transpose4x4(dst + p * kPanel + j, kPanel, src + j * ld + p, ld);
    for (; p < k; ++p) {
      for (int64_t i = j; i < j + 4; ++i) dst[p * kPanel + i] = src[i * ld + p];
    }
  }
  for (; j < kPanel; ++j) {
    for (int64_t p = 0; p < k; ++p) dst[p * kPanel + j] = j < n ? src[j * ld + p] : 0.0f;
  }
}

inline Vec load_tail(const float* p, int64_t n) { return n >= kWidth ? load(p) : load_n(p, n > 0 ? n : 0); }
inline void store_tail(float* p, Vec a, int64_t n) {
  if (n >= kWidth) {
    store(p, a);
  } else if (n > 0) {
    store_n(p, a, n);
  }
}

// One group of columns of a row of C, where only the last may be partial.
template <bool kFull>
inline Vec load_cols(const float* p, int64_t n) {
  return kFull ? load(p) : load_tail(p, n);
}
template <bool kFull>
inline void store_cols(float* p, Vec a, int64_t n) {
  if (kFull) {
    store(p, a);
  } else {
    store_tail(p, a, n);
  }
}

template <int kRows, int kVectors, bool kFull>
void tile(float* c, int64_t ldc, const float* a, const float* b, int64_t k, int64_t n, const TileStore& how) {
  Vec sum[kRows][kVectors];
  if (how.accumulate) {
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = load_cols<kFull>(c + i * ldc + j * kWidth, n - j * kWidth);
      }
    }
  } else {
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) sum[i][j] = set1(0.0f);
    }
  }
  for (int64_t p = 0; p < k; ++p) {
    Vec row[kVectors];
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) row[j] = in_register(load(b + p * kGemmCols + j * kWidth));
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      const Vec x = set1(a[p * kGemmRows + i]);
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(x, row[j], sum[i][j]);
    }
  }
  if (how.bias != nullptr) {
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
      const Vec bias = load_cols<kFull>(how.bias + j * kWidth, n - j * kWidth);
      SOMA_UNROLL for (int i = 0; i < kRows; ++i) sum[i][j] = add(sum[i][j], bias);
    }
  }
  if (how.residual != nullptr) {
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
        const float* r = how.residual + i * how.ld_residual + j * kWidth;
        sum[i][j] = add(sum[i][j], load_cols<kFull>(r, n - j * kWidth));
      }
    }
  }
  if (how.relu) {
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) sum[i][j] = max(set1(0.0f), sum[i][j]);  // keeps a NaN
    }
  }
  SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
      store_cols<kFull>(c + i * ldc + j * kWidth, sum[i][j], n - j * kWidth);
    }
  }
}

// Rows that a remainder is made of: 8, 4, 2, 1 below the full tile. Few shapes keep the compiler quick.
constexpr int next_rows(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows / 2; }

template <int kRows, int kVectors, bool kFull>
inline void tile_rows(float* c, int64_t ldc, const float* a, const float* b, int64_t k, int64_t m, int64_t n,
                      TileStore how) {
  if (m >= kRows) {
    tile<kRows, kVectors, kFull>(c, ldc, a, b, k, n, how);
    if (m == kRows) return;
    c += kRows * ldc;
    a += kRows;
    m -= kRows;
    if (how.residual != nullptr) how.residual += kRows * how.ld_residual;
  }
  if constexpr (kRows > 1) tile_rows<next_rows(kRows), kVectors, kFull>(c, ldc, a, b, k, m, n, how);
}

void gemm_tile(float* c, int64_t ldc, const float* a, const float* b, int64_t k, int64_t m, int64_t n,
               const TileStore* how) {
  if (n == kGemmCols) {
    tile_rows<kGemmRows, kGemmVectors, true>(c, ldc, a, b, k, m, n, *how);
  } else if (n > kWidth) {
    tile_rows<kGemmRows, kGemmVectors, false>(c, ldc, a, b, k, m, n, *how);
  } else {
    tile_rows<kGemmRows, 1, false>(c, ldc, a, b, k, m, n, *how);
  }
}

void pack_a_copy(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  pack_copy<kGemmRows>(dst, src, ld, k, n);
}
void pack_a_transpose(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  pack_transpose<kGemmRows>(dst, src, ld, k, n);
}
void pack_b_copy(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  pack_copy<kGemmCols>(dst, src, ld, k, n);
}
void pack_b_transpose(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  pack_transpose<kGemmCols>(dst, src, ld, k, n);
}

float dot(const float* a, const float* b, int64_t n) {
  Vec s0 = set1(0.0f), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    s0 = fma(load(a + i), load(b + i), s0);
    s1 = fma(load(a + i + kWidth), load(b + i + kWidth), s1);
    s2 = fma(load(a + i + 2 * kWidth), load(b + i + 2 * kWidth), s2);
    s3 = fma(load(a + i + 3 * kWidth), load(b + i + 3 * kWidth), s3);
  }
  for (; i + kWidth <= n; i += kWidth) s0 = fma(load(a + i), load(b + i), s0);
  if (i < n) s1 = fma(load_n(a + i, n - i), load_n(b + i, n - i), s1);
  return reduce_add(add(add(s0, s1), add(s2, s3)));
}
