// Packing and the register tile of the matrix product, over the Vec of the level that includes this file. A tile keeps
// kGemmRows x (kGemmVectors * kWidth) sums in registers over the whole depth. A unit of depth has 32 bits: one float,
// or a pair of bfloat16 (low half first). An element is one chain of fma in the order of depth, from zero or from C. So
// tiles of any shape give the same bits.

constexpr int kGemmCols = kGemmVectors * kWidth;

// dst[i*ld_dst + j] = src[j*ld + i], i < k, j < n.
inline void transpose_by_fours(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) transpose4x4(dst + i * ld_dst + j, ld_dst, src + j * ld + i, ld);
    for (; i < k; ++i) {
      for (int64_t q = j; q < j + 4; ++q) dst[i * ld_dst + q] = src[q * ld + i];
    }
  }
  for (; j < n; ++j) {
    for (int64_t i = 0; i < k; ++i) dst[i * ld_dst + j] = src[j * ld + i];
  }
}

// The same, in the largest blocks that fit into the level's registers.
void transpose(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  const int64_t whole_k = k / kBlock * kBlock, whole_n = n / kBlock * kBlock;
  for (int64_t j = 0; j < whole_n; j += kBlock) {
    for (int64_t i = 0; i < whole_k; i += kBlock) {
      transpose_block(dst + i * ld_dst + j, ld_dst, src + j * ld + i, ld);
    }
  }
  transpose_by_fours(dst + whole_k * ld_dst, ld_dst, src + whole_k, ld, k - whole_k, whole_n);
  transpose_by_fours(dst + whole_n, ld_dst, src + whole_n * ld, ld, k, n - whole_n);
}

void mirror(float* c, int64_t ld, int64_t first, int64_t last, int64_t n) {
  for (int64_t i = first; i < last; i += kBlock) {
    const int64_t end = last - i < kBlock ? last : i + kBlock;
    for (int64_t row = i; row < end; ++row) {
      for (int64_t j = row + 1; j < end; ++j) c[j * ld + row] = c[row * ld + j];
    }
    transpose(c + end * ld + i, ld, c + i * ld + end, ld, n - end, end - i);
  }
}

// Writes zeros to columns [n, width) of k rows.
inline void clear_columns(float* dst, int64_t width, int64_t k, int64_t n) {
  for (int64_t i = 0; i < k && n < width; ++i) {
    for (int64_t j = n; j < width; ++j) dst[i * width + j] = 0.0f;
  }
}

// Prefetches n floats of a row that is read some rows later. Where each row has a line or a few, the processor's own
// prefetching sees no pattern.
constexpr int64_t kRowsAhead = 16;
inline void fetch_row(const float* row, int64_t n) {
  for (int64_t j = 0; j < n; j += 16) SOMA_FETCH(row + j);
}

template <int kPanels>
inline void pack_panels(float* dst, const float* src, int64_t ld, int64_t k) {
  for (int64_t p = 0; p < k; ++p) {
    fetch_row(src + (p + kRowsAhead) * ld, kPanels * kGemmCols);
    SOMA_UNROLL for (int i = 0; i < kPanels; ++i) {
      __builtin_memcpy(dst + (i * k + p) * kGemmCols, src + p * ld + i * kGemmCols, kGemmCols * sizeof(float));
    }
  }
}

// Some panels at a time: longer pieces of rows come faster from memory.
void pack_b_copy(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  constexpr int kTogether = kGemmCols < 64 ? 64 / kGemmCols : 1;
  int64_t j = 0;
  for (; j + kTogether * kGemmCols <= n; j += kTogether * kGemmCols) {
    pack_panels<kTogether>(dst + j * k, src + j, ld, k);
  }
  for (; j + kGemmCols <= n; j += kGemmCols) pack_panels<1>(dst + j * k, src + j, ld, k);
  for (int64_t p = 0; j < n && p < k; ++p) {
    for (int64_t i = 0; i < kGemmCols; ++i) dst[j * k + p * kGemmCols + i] = j + i < n ? src[p * ld + j + i] : 0.0f;
  }
}

void pack_b_transpose(float* dst, const float* src, int64_t ld, int64_t k, int64_t n) {
  transpose(dst, kGemmCols, src, ld, k, n);
  clear_columns(dst, kGemmCols, k, n);
}

// Takes a few rows of src at a time, so that cache lines that neighbouring tiles share are still in L1.
void pack_a_copy(float* dst, const float* src, int64_t ld, int64_t k, int64_t m) {
  constexpr int64_t kTogether = 16;
  for (int64_t p = 0; p < k; p += kTogether) {
    const int64_t count = k - p < kTogether ? k - p : kTogether;
    for (int64_t q = 0; q < kTogether; ++q) fetch_row(src + (p + kTogether + q) * ld, m);
    for (int64_t i = 0; i < m; i += kGemmRows) {
      const float* from = src + p * ld + i;
      float* to = dst + i * k + p * kGemmRows;
      for (int64_t q = 0; q < count; ++q, from += ld, to += kGemmRows) {
        if (i + kGemmRows <= m) {
          __builtin_memcpy(to, from, kGemmRows * sizeof(float));
        } else {
          for (int64_t j = 0; j < m - i; ++j) to[j] = from[j];
        }
      }
    }
  }
}

inline void round_row(float* dst, const float* src, int64_t k, int64_t units) {
  int64_t u = 0;
  for (; 2 * (u + kWidth) <= k; u += kWidth)
    store(dst + u, pair_adjacent(load(src + 2 * u), load(src + 2 * u + kWidth)));
  if (2 * u < k) {
    float tail[2 * kWidth] = {};
    for (int64_t i = 0; 2 * u + i < k; ++i) tail[i] = src[2 * u + i];
    float pairs[kWidth];
    store(pairs, pair_adjacent(load(tail), load(tail + kWidth)));
    for (int64_t i = 0; i < kWidth && u < units; ++i) dst[u++] = pairs[i];
  }
  for (; u < units; ++u) dst[u] = 0.0f;
}

void round_rows(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t rows, int64_t k, int64_t units) {
  for (int64_t r = 0; r < rows; ++r) round_row(dst + r * ld_dst, src + r * ld, k, units);
}

// Calls f(out, low, high) for each unit u of n columns, with rows 2u and 2u + 1 of src (null: no such row). Zeros
// follow to the full width, and from k on. A row of src has `row` floats.
template <typename F>
inline void each_two_rows(const Interleaving& how, int64_t row, F f) {
  const int64_t ld_dst = how.ld_dst, ld = how.ld, k = how.k, n = how.n, units = how.units, width = how.width;
  float* dst = how.dst;
  const float* src = how.src;
  for (int64_t u = 0; u < units; ++u, src += 2 * ld, dst += ld_dst) {
    const bool has_low = 2 * u < k;
    fetch_row(src + kRowsAhead * ld, row);
    fetch_row(src + (kRowsAhead + 1) * ld, row);
    if (has_low) f(dst, src, 2 * u + 1 < k ? src + ld : nullptr);
    for (int64_t j = has_low ? n : 0; j < width; ++j) dst[j] = 0.0f;
  }
}

void interleave_rows(const Interleaving* how) {
  const int64_t n = how->n;
  each_two_rows(*how, n, [n](float* out, const float* low, const float* high) {
    int64_t j = 0;
    if (high != nullptr) {
      for (; j + kWidth <= n; j += kWidth) store(out + j, pair(load(low + j), load(high + j)));
      if (j < n) store_n(out + j, pair(load_n(low + j, n - j), load_n(high + j, n - j)), n - j);
    } else {
      for (; j < n; j += kWidth) store_tail(out + j, pair(load_tail(low + j, n - j), set1(0.0f)), n - j);
    }
  });
}

// Element j of a row of pairs, moved to the low or the high half of a unit.
inline uint32_t half_of(const float* row, int64_t j) {
  uint32_t bits;
  __builtin_memcpy(&bits, row + j / 2, 4);
  return j % 2 == 0 ? bits & 0xffffu : bits >> 16;
}

void interleave_pairs(const Interleaving* how) {
  const int64_t n = how->n;
  each_two_rows(*how, n / 2, [n](float* out, const float* low, const float* high) {
    int64_t j = 0;
    Vec first, second;
    for (; j + 2 * kWidth <= n; j += 2 * kWidth) {
      interleave_halves(load(low + j / 2), high != nullptr ? load(high + j / 2) : set1(0.0f), &first, &second);
      store(out + j, first);
      store(out + j + kWidth, second);
    }
    if (j + kWidth <= n) {
      const Vec none = set1(0.0f);
      interleave_halves(load_n(low + j / 2, kWidth / 2), high != nullptr ? load_n(high + j / 2, kWidth / 2) : none,
                        &first, &second);
      store(out + j, first);
      j += kWidth;
    }
    for (; j < n; ++j) {
      const uint32_t bits = half_of(low, j) | (high != nullptr ? half_of(high, j) << 16 : 0);
      __builtin_memcpy(out + j, &bits, 4);
    }
  });
}

void transpose_pairs(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units) {
  constexpr int64_t kRows = 2 * kWidth;
  float block[kBlock * kRows];
  for (int64_t u = 0; u < units; u += kBlock) {
    const int64_t count = units - u < kBlock ? units - u : kBlock, left = k - 2 * u > 0 ? k - 2 * u : 0;
    for (int64_t i = 0; i < n; i += kRows) {
      const int64_t rows = n - i < kRows ? n - i : kRows;
      const Interleaving part{block, kRows, src + 2 * u * ld + i / 2, ld, left, rows, count, rows};
      interleave_pairs(&part);
      transpose(dst + i * ld_dst + u, ld_dst, block, kRows, rows, count);
    }
  }
}

void pack_pairs_transpose(float* dst, int64_t cols, const float* src, int64_t ld, int64_t given, int64_t units,
                          int64_t n) {
  transpose(dst, cols, src, ld, given, n);
  clear_columns(dst, cols, given, n);
  for (float* p = dst + given * cols; p < dst + units * cols; ++p) *p = 0.0f;
}

void pair_sums(float* out, const float* x, int64_t ld, int64_t units, int64_t n) {
  for (int64_t j = 0; j < n; j += kWidth) {
    Vec sum = load_tail(out + j, n - j);
    for (int64_t u = 0; u < units; ++u) {
      const char* pairs = reinterpret_cast<const char*>(x + u * ld + j);
      sum = add(add(sum, widen_low(pairs)), widen_high(pairs));
    }
    store_tail(out + j, sum, n - j);
  }
}

void widen_row(float* y, const float* x, int64_t n) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) store(y + j, widen_halves(reinterpret_cast<const char*>(x + j / 2)));
  for (; j < n; ++j) {
    const uint32_t bits = half_of(x, j) << 16;
    __builtin_memcpy(y + j, &bits, 4);
  }
}

// Takes a few columns at a time: rounds them along k into a small block, then transposes that as floats.
void pack_b_transpose_bf16(float* dst, int64_t cols, const float* src, int64_t ld, int64_t k, int64_t n,
                           int64_t units) {
  constexpr int64_t kUnits = 64;
  float block[kBlock * kUnits];
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t columns = n - j < kBlock ? n - j : kBlock;
    for (int64_t u = 0; u < units; u += kUnits) {
      const int64_t count = units - u < kUnits ? units - u : kUnits, left = k - 2 * u > 0 ? k - 2 * u : 0;
      round_rows(block, kUnits, src + j * ld + 2 * u, ld, columns, left < 2 * count ? left : 2 * count, count);
      transpose(dst + u * cols + j, cols, block, kUnits, count, columns);
    }
  }
  clear_columns(dst, cols, units, n);
}

// Likewise: interleaves neighbouring rows into a small block, then transposes it.
void transpose_rows(float* dst, int64_t ld_dst, const float* src, int64_t ld, int64_t k, int64_t n, int64_t units) {
  float block[kBlock * kBlock];
  for (int64_t u = 0; u < units; u += kBlock) {
    const int64_t count = units - u < kBlock ? units - u : kBlock, left = k - 2 * u > 0 ? k - 2 * u : 0;
    for (int64_t i = 0; i < n; i += kBlock) {
      const int64_t rows = n - i < kBlock ? n - i : kBlock;
      const Interleaving part{block, kBlock, src + 2 * u * ld + i, ld, left, rows, count, rows};
      interleave_rows(&part);
      transpose(dst + i * ld_dst + u, ld_dst, block, kBlock, rows, count);
    }
  }
}

// Stops the compiler from replacing a loop's pointer by another pointer plus an offset.
inline const float* separate(const float* p) {
#ifdef __GNUC__
  __asm__("" : "+r"(p));
#endif
  return p;
}

struct Floats {
  template <typename Factor>
  static Vec multiply_add(Factor a, Vec b, Vec c) {
    return fma(a, b, c);
  }
};
struct Pairs {
  template <typename Factor>
  static Vec multiply_add(Factor a, Vec b, Vec c) {
    return dot_pairs(a, b, c);
  }
};

// The operand A: element (i, p) is at data[i*row + p*depth].
struct TileA {
  const float* data;
  int64_t row, depth;
};

// No struct: it would be stored for each tile, since bias and residual move with the panel.
template <typename Units, int kRows, int kVectors, bool kFull>
void tile(float* c, int64_t ldc, const TileA& a, const float* b, int64_t k, int64_t n, const TileStore& how,
          const float* bias, const float* residual) {
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
  // One pointer serves three rows, at offsets 0, row and 2 row, which are addressing modes. Twelve pointers would not
  // fit into registers.
  const float* base[(kRows + 2) / 3];
  SOMA_UNROLL for (int g = 0; g < (kRows + 2) / 3; ++g) base[g] = a.data + 3 * g * a.row;
  for (int64_t p = 0; p < k; ++p) {
    Vec column[kVectors];
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) column[j] = in_register(load(b + p * kGemmCols + j * kWidth));
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      const auto x = element(base[i / 3] + (i % 3 == 0 ? 0 : i % 3 == 1 ? a.row : 2 * a.row));
      SOMA_UNROLL for (int j = 0; j < kVectors; ++j) sum[i][j] = Units::multiply_add(x, column[j], sum[i][j]);
    }
    SOMA_UNROLL for (int g = 0; g < (kRows + 2) / 3; ++g) base[g] = separate(base[g] + a.depth);
  }
  finish<kRows, kVectors, kFull>(c, ldc, sum, n, how, bias, residual);
}

// The next smaller tile for a remainder of rows: 8, 4, 2, 1. Few shapes keep compilation short.
constexpr int next_rows(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows / 2; }

// Prefetches the next tile of C, which is mostly in no near cache.
template <int kRows>
inline void fetch_tile(const float* c, int64_t ldc) {
#ifdef __GNUC__
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kGemmCols; j += 16) __builtin_prefetch(c + i * ldc + j, 1);
  }
#endif
}

// All panels of columns for kRows rows from `first` on, then for the remaining rows.
template <typename Units, int kRows>
inline void tile_rows(const RowOfTiles& t, int64_t first) {
  if (t.m - first >= kRows) {
    const TileStore& how = *t.store;
    const int64_t ldc = t.ldc, panel = t.panel, n = t.n, k = t.k;
    const TileA a{t.a + first * t.a_row, t.a_row, t.a_depth};
    const float* const residual = how.residual != nullptr ? how.residual + first * how.ld_residual : nullptr;
    float* const c = t.c + first * ldc;
    const float* b = t.b;
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
    first += kRows;
    if (first == t.m) return;
  }
  if constexpr (kRows > 1) tile_rows<Units, next_rows(kRows)>(t, first);
}

void gemm_rows_f32(const RowOfTiles* tiles) { tile_rows<Floats, kGemmRows>(*tiles, 0); }
#ifndef SOMA_SQUARES
void gemm_rows_bf16(const RowOfTiles* tiles) { tile_rows<Pairs, kGemmRows>(*tiles, 0); }
#endif

void enter_bf16() {}
void leave_bf16() {}
