// The end of a tile of a matrix product: applies TileStore to the sums in registers and stores them to C.

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

// Adds bias and residual, applies relu and stores C. The sums already include C where how.accumulate is set.
template <int kRows, int kVectors, bool kFull>
SOMA_INLINE void finish(float* c, int64_t ldc, Vec (&sum)[kRows][kVectors], int64_t n, const TileStore& how,
                        const float* bias, const float* residual) {
  if (bias != nullptr) {
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
      const Vec added = load_cols<kFull>(bias + j * kWidth, n - j * kWidth);
      SOMA_UNROLL for (int i = 0; i < kRows; ++i) sum[i][j] = add(sum[i][j], added);
    }
  }
  if (residual != nullptr) {
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
        const float* r = residual + i * how.ld_residual + j * kWidth;
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
