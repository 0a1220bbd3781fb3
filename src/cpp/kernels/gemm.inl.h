// Packing and the register tile of the matrix product, for whatever Vec the including level defines. A tile keeps
// kGemmRows x (kGemmVectors * kWidth) sums in registers over the whole depth. Depth is counted in units of 32 bits: one
// float, or a pair of bfloat16 (low half first). Every element is one chain of fma in the order of depth, starting from
// zero or from C, so tiles of any shape give the same bits.

constexpr int kGemmCols = kGemmVectors * kWidth;

// dst[i*width + j] = src[j*ld + i], i < k, j < n; columns to `width` are zero.
void transpose(float* dst, int64_t width, const float* src, int64_t ld, int64_t k, int64_t n) {
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) transpose4x4(dst + p * width + j, width, src + j * ld + p, ld);
    for (; p < k; ++p) {
      for (int64_t i = j; i < j + 4; ++i) dst[p * width + i] = src[i * ld + p];
    }
  }
  for (; j < width; ++j) {
    for (int64_t p = 0; p < k; ++p) dst[p * width + j] = j < n ? src[j * ld + p] : 0.0f;
  }
}

void pack_b_copy(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  if (n == kGemmCols) {
    for (int64_t p = 0; p < k; ++p) __builtin_memcpy(dst + p * kGemmCols, src + p * ld, kGemmCols * sizeof(float));
    return;
  }
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t j = 0; j < kGemmCols; ++j) dst[p * kGemmCols + j] = j < n ? src[p * ld + j] : 0.0f;
  }
}

void pack_b_transpose(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  transpose(dst, kGemmCols, src, ld, k, n);
}

inline void round_row(float* dst, const float* src, int64_t k, int64_t units) {
  int64_t u = 0;
  for (; 2 * (u + kWidth) <= k; u += kWidth) store(dst + u, pair_adjacent(src + 2 * u));
  if (2 * u < k) {
    float tail[2 * kWidth] = {};
    for (int64_t i = 0; 2 * u + i < k; ++i) tail[i] = src[2 * u + i];
    float pairs[kWidth];
    store(pairs, pair_adjacent(tail));
    for (int64_t i = 0; i < kWidth && u < units; ++i) dst[u++] = pairs[i];
  }
  for (; u < units; ++u) dst[u] = 0.0f;
}

void round_rows(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t rows, int64_t k, int64_t units) {
  for (int64_t r = 0; r < rows; ++r) round_row(dst + r * ld_dst, src + r * ld, k, units);
}

// dst[u*ld_dst + j] = (src[2u*ld + j], src[(2u+1)*ld + j]); what is beyond k or n is zero.
void interleave_rows(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units,
                     int64_t width) {
  for (int64_t u = 0; u < units; ++u) {
    float* out = dst + u * ld_dst;
    const float *low = src + 2 * u * ld, *high = low + ld;
    const bool has_low = 2 * u < k, has_high = 2 * u + 1 < k;
    int64_t j = 0;
    if (has_high) {
      for (; j + kWidth <= n; j += kWidth) store(out + j, pair(load(low + j), load(high + j)));
      if (j < n) store_n(out + j, pair(load_n(low + j, n - j), load_n(high + j, n - j)), n - j);
    } else if (has_low) {
      for (; j < n; j += kWidth) store_tail(out + j, pair(load_tail(low + j, n - j), set1(0.0f)), n - j);
    }
    for (j = has_low ? n : 0; j < width; ++j) out[j] = 0.0f;
  }
}

// Four columns at a time: rounded along k into a small block, then transposed as floats are.
void pack_b_transpose_bf16(float* dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units) {
  constexpr int64_t kBlock = 64;
  float block[4][kBlock];
  for (int64_t j = 0; j < kGemmCols; j += 4) {
    const int64_t columns = n - j < 0 ? 0 : n - j < 4 ? n - j : 4;
    for (int64_t u = 0; u < units; u += kBlock) {
      const int64_t count = units - u < kBlock ? units - u : kBlock, left = k - 2 * u > 0 ? k - 2 * u : 0;
      for (int64_t i = 0; i < columns; ++i) {
        round_row(block[i], src + (j + i) * ld + 2 * u, left < 2 * count ? left : 2 * count, count);
      }
      for (int64_t p = 0; p < count; p += 4) {
        float* out = dst + (u + p) * kGemmCols + j;
        if (columns == 4 && p + 4 <= count) {
          transpose4x4(out, kGemmCols, &block[0][p], kBlock);
          continue;
        }
        for (int64_t q = 0; q < 4 && p + q < count; ++q) {
          for (int64_t i = 0; i < 4; ++i) out[q * kGemmCols + i] = i < columns ? block[i][p + q] : 0.0f;
        }
      }
    }
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

// Keeps a pointer that a loop moves from being rewritten as another one plus an offset.
inline const float* separate(const float* p) {
#ifdef __GNUC__
  __asm__("" : "+r"(p));
#endif
  return p;
}

struct Floats {
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
struct Pairs {
  static Vec multiply_add(Vec a, Vec b, Vec c) { return dot_pairs(a, b, c); }
};

// Where A is: element (i, p) at data[i*row + p*depth].
struct TileA {
  const float* data;
  int64_t row, depth;
};

template <typename Units, int kRows, int kVectors, bool kFull>
void tile(float* c, int64_t ldc, TileA a, const float* b, int64_t k, int64_t n, const TileStore& how, const float* bias,
          const float* residual) {
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
  // One pointer serves three rows, at offsets 0, row and 2 row, which are addressing modes: twelve pointers would be
  // spilled.
  const float* base[(kRows + 2) / 3];
  SOMA_UNROLL for (int g = 0; g < (kRows + 2) / 3; ++g) base[g] = a.data + 3 * g * a.row;
  for (int64_t p = 0; p < k; ++p) {
    Vec column[kVectors];
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) column[j] = in_register(load(b + p * kGemmCols + j * kWidth));
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      const Vec x = set1(base[i / 3][i % 3 == 0 ? 0 : i % 3 == 1 ? a.row : 2 * a.row]);
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) sum[i][j] = Units::multiply_add(x, column[j], sum[i][j]);
    }
    SOMA_UNROLL for (int g = 0; g < (kRows + 2) / 3; ++g) base[g] = separate(base[g] + a.depth);
  }
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

// Rows that a remainder is made of: 8, 4, 2, 1 below the full tile. Few shapes keep the compiler quick.
constexpr int next_rows(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows / 2; }

// Asks for the memory of a tile of C one tile ahead: it is mostly in no near cache.
template <int kRows>
inline void fetch_tile(const float* c, int64_t ldc) {
#ifdef __GNUC__
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kGemmCols; j += 16) __builtin_prefetch(c + i * ldc + j, 1);
  }
#endif
}

// Every panel of columns for kRows rows, then the rows that are left.
template <typename Units, int kRows>
inline void tile_rows(float* c, int64_t ldc, TileA a, const float* b, int64_t panel, int64_t k, int64_t m, int64_t n,
                      const TileStore& how, const float* residual) {
  if (m >= kRows) {
    for (int64_t j = 0; j < n; j += kGemmCols, b += panel) {
      const float* bias = how.bias != nullptr ? how.bias + j : nullptr;
      const float* added = residual != nullptr ? residual + j : nullptr;
      const int64_t columns = n - j;
      if (columns > kGemmCols) fetch_tile<kRows>(c + j + kGemmCols, ldc);
      if (columns >= kGemmCols) {
        tile<Units, kRows, kGemmVectors, true>(c + j, ldc, a, b, k, columns, how, bias, added);
      } else if (columns > kWidth) {
        tile<Units, kRows, kGemmVectors, false>(c + j, ldc, a, b, k, columns, how, bias, added);
      } else {
        tile<Units, kRows, 1, false>(c + j, ldc, a, b, k, columns, how, bias, added);
      }
    }
    if (m == kRows) return;
    b -= (n + kGemmCols - 1) / kGemmCols * panel;
    c += kRows * ldc;
    a.data += kRows * a.row;
    m -= kRows;
    if (residual != nullptr) residual += kRows * how.ld_residual;
  }
  if constexpr (kRows > 1) tile_rows<Units, next_rows(kRows)>(c, ldc, a, b, panel, k, m, n, how, residual);
}

void gemm_rows_f32(float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t panel,
                   int64_t k, int64_t m, int64_t n, const TileStore* how) {
  tile_rows<Floats, kGemmRows>(c, ldc, {a, a_row, a_depth}, b, panel, k, m, n, *how, how->residual);
}
void gemm_rows_bf16(float* c, int64_t ldc, const float* a, int64_t a_row, int64_t a_depth, const float* b,
                    int64_t panel, int64_t k, int64_t m, int64_t n, const TileStore* how) {
  tile_rows<Pairs, kGemmRows>(c, ldc, {a, a_row, a_depth}, b, panel, k, m, n, *how, how->residual);
}
