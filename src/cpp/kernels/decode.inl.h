// Products of few rows with weights that are read once and in order, and attention to a cache, over the Vec of the
// level that includes this file. An element is one chain of fma in the order of k, as in gemm_rows_f32. So a row has
// the same bits alone, among others, and as a row of a matrix product.

// How a format's weights become two vectors: outputs [g * kWidth, ..) and [16 + g * kWidth, ..) of half a panel. A
// panel is 64 outputs: one stream of memory and, on AVX-512, four chains of sums, enough to hide the latency of fma.
// kAhead: the distance in bytes at which panels are prefetched, as measured.
struct Float32Weights {
  static constexpr int64_t kHalfBytes = 128;
  static constexpr int64_t kGroupBytes = 4 * kWidth;
  static constexpr int64_t kAhead = 4096;
  static Vec low(const char* p) { return load(reinterpret_cast<const float*>(p)); }
  static Vec high(const char* p) { return load(reinterpret_cast<const float*>(p) + 16); }
  static Vec low_n(const char* p, int64_t n) { return load_tail(reinterpret_cast<const float*>(p), n); }
  static Vec high_n(const char* p, int64_t n) { return load_tail(reinterpret_cast<const float*>(p) + 16, n - 16); }
};
struct Bfloat16Weights {
  static constexpr int64_t kHalfBytes = 64;
  static constexpr int64_t kGroupBytes = 4 * kWidth;  // a dword holds outputs i and 16 + i
  static constexpr int64_t kAhead = 2048;
  static Vec low(const char* p) { return widen_low(p); }
  static Vec high(const char* p) { return widen_high(p); }
  static Vec low_n(const char* p, int64_t) { return low(p); }  // panels are padded
  static Vec high_n(const char* p, int64_t) { return high(p); }
};
struct Int8Weights {
  static constexpr int64_t kHalfBytes = 32;
  static constexpr int64_t kGroupBytes = kWidth;
  static constexpr int64_t kAhead = 8192;
  static Vec low(const char* p) { return widen_bytes(p); }
  static Vec high(const char* p) { return widen_bytes(p + 16); }
  static Vec low_n(const char* p, int64_t) { return low(p); }
  static Vec high_n(const char* p, int64_t) { return high(p); }
};

constexpr int64_t kGroups = 16 / kWidth;  // pairs of vectors in half a panel

// Stores columns [j, j + n) of row r of the result; n <= kWidth unless full.
inline void store_product(const RowsProduct& p, Vec sum, int64_t r, int64_t j, int64_t n) {
  if (p.scales != nullptr) sum = mul(sum, load_tail(p.scales + j, n));
  if (p.bias != nullptr) sum = add(sum, load_tail(p.bias + j, n));
  if (p.residual != nullptr) sum = add(sum, load_tail(p.residual + r * p.ld_residual + j, n));
  if (p.activation == Activation::kRelu) sum = max(set1(0.0f), sum);  // keeps a NaN
  if (p.activation == Activation::kGeluTanh) sum = gelu(sum);
  store_tail(p.y + r * p.ldy + j, sum, n);
}

// Applies an activation that is too long for the end of every tile, to all rows once they are stored.
inline void activate_rows(const RowsProduct& p) {
  if (p.activation != Activation::kGeluErf) return;
  for (int64_t r = 0; r < p.m; ++r) gelu_erf_forward(p.y + r * p.ldy, p.y + r * p.ldy, p.n);
}

// kRows rows from `row`, kPairs pairs of vectors from pair `pair`, counted over all panels.
template <typename Weights, int kRows, int kPairs, bool kFull>
void product_tile(const RowsProduct& p, int64_t row, int64_t pair) {
  const float* x = p.x + row * p.ldx;
  const char* w[kPairs];
  int64_t column[kPairs];
  SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
    const int64_t half = (pair + i) / kGroups, group = (pair + i) % kGroups;
    w[i] = p.w + half / 2 * p.panel_stride + half % 2 * Weights::kHalfBytes + group * Weights::kGroupBytes;
    column[i] = half * 32 + group * kWidth;
  }
  Vec low[kRows][kPairs], high[kRows][kPairs];
  SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
    SOMA_UNROLL for (int i = 0; i < kPairs; ++i) low[r][i] = high[r][i] = set1(0.0f);
  }
  const int64_t stride = p.row_stride;
  constexpr int64_t kAhead = (kRows > 4 ? 4 : 1) * Weights::kAhead;  // while many rows compute, more lines can come
  const bool fetch = kFull && p.fetch && row == 0;                   // later rows find the panel in L2
  for (int64_t k = 0, at = 0; k < p.k; ++k, at += stride) {
    if (fetch) {
      SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
        SOMA_FETCH(w[i] + at + kAhead);
        if (Weights::kHalfBytes > 64) SOMA_FETCH(w[i] + at + kAhead + 64);
      }
    }
    SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
      Vec a = kFull ? Weights::low(w[i] + at) : Weights::low_n(w[i] + at, p.n - column[i]);
      Vec b = kFull ? Weights::high(w[i] + at) : Weights::high_n(w[i] + at, p.n - column[i]);
      if (kRows > 2) {
        a = in_register(a);
        b = in_register(b);
      }
      SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto s = element(x + (r * p.ldx + k));
        low[r][i] = fma(s, a, low[r][i]);
        high[r][i] = fma(s, b, high[r][i]);
      }
    }
  }
  SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
    SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
      const int64_t n = kFull ? 32 : p.n - column[i];
      store_product(p, low[r][i], row + r, column[i], n);
      if (n > 16) store_product(p, high[r][i], row + r, column[i] + 16, n - 16);
    }
  }
}

// The most pairs whose sums fit into registers, at most a panel.
constexpr int kSums = kGemmRows * kGemmVectors;
constexpr int pairs_of(int rows) { return rows == 1 && kWidth < 16 ? 4 : rows <= kSums / 4 ? 2 : 1; }

// Rows from `row` in tiles of kRows, 8, 4, 2, 1; pairs [first, last).
template <typename Weights, int kRows>
inline void product_rows(const RowsProduct& p, int64_t row, int64_t first, int64_t last) {
  constexpr int kPairs = pairs_of(kRows);
  for (; p.m - row >= kRows; row += kRows) {
    int64_t pair = first;
    for (; pair + kPairs <= last; pair += kPairs) product_tile<Weights, kRows, kPairs, true>(p, row, pair);
    for (; pair < last; ++pair) product_tile<Weights, kRows, 1, true>(p, row, pair);
  }
  if constexpr (kRows > 1) {
    if (row < p.m) product_rows<Weights, next_rows(kRows)>(p, row, first, last);
  }
}

template <typename Weights>
inline void product(const RowsProduct& p) {
  const int64_t full = p.n / 32 * kGroups;
  for (int64_t pair = 0; pair < full; pair += 2 * kGroups) {
    product_rows<Weights, kGemmRows>(p, 0, pair, full - pair < 2 * kGroups ? full : pair + 2 * kGroups);
  }
  for (int64_t pair = full; p.n % 32 != 0 && pair < full + kGroups; ++pair) {
    if (pair / kGroups * 32 + pair % kGroups * kWidth >= p.n) break;
    for (int64_t row = 0; row < p.m; ++row) product_tile<Weights, 1, 1, false>(p, row, pair);
  }
  activate_rows(p);
}

// Float32 weights stay in the model's own (k, n). Short pieces of rows are the slowest way to read memory. So some rows
// are read from end to end, while the sums of the few rows of y stay in L1 and the next rows come into L2. With more
// rows of y the pieces are shorter, so that the sums still fit. kRows rows of y share a load of weights.
template <int kCount, int kRows>
inline void stream_rows(const RowsProduct& p, int64_t k, int64_t row, int64_t column, int64_t columns) {
  const float* w = reinterpret_cast<const float*>(p.w + k * p.row_stride) + column;
  const int64_t ld = p.row_stride / 4;
  float* y = p.y + row * p.ldy + column;
  Vec x[kRows][kCount];
  SOMA_UNROLL for (int r = 0; r < kRows; ++r) {
    SOMA_UNROLL for (int i = 0; i < kCount; ++i) x[r][i] = set1(p.x[(row + r) * p.ldx + k + i]);
  }
  each(columns, [&](int64_t j, int64_t n) {
    Vec sum[kRows];
    SOMA_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = k == 0 ? set1(0.0f) : load_tail(y + r * p.ldy + j, n);
    SOMA_UNROLL for (int i = 0; i < kCount; ++i) {
      if (kCount > 1 && row == 0) SOMA_FETCH(w + (kCount + i) * ld + j);
      const Vec weights = load_tail(w + i * ld + j, n);
      SOMA_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = fma(x[r][i], weights, sum[r]);
    }
    SOMA_UNROLL for (int r = 0; r < kRows; ++r) store_tail(y + r * p.ldy + j, sum[r], n);
  });
}

template <int kCount>
inline void stream_all_rows(const RowsProduct& p, int64_t k, int64_t column, int64_t columns) {
  constexpr int kShared = kWidth == 16 ? 2 : 1;  // rows whose inputs fit into registers
  int64_t row = 0;
  for (; row + kShared <= p.m; row += kShared) stream_rows<kCount, kShared>(p, k, row, column, columns);
  for (; row < p.m; ++row) stream_rows<kCount, 1>(p, k, row, column, columns);
}

void finish_product(const RowsProduct* p) {
  for (int64_t r = 0; r < p->m; ++r) {
    each(p->n, [&](int64_t j, int64_t n) { store_product(*p, load_tail(p->y + r * p->ldy + j, n), r, j, n); });
  }
  activate_rows(*p);
}

void stream_float32(const RowsProduct& p) {
  const int64_t piece = p.m <= 4 ? p.n : 256;
  for (int64_t column = 0; column < p.n; column += piece) {
    const int64_t columns = p.n - column < piece ? p.n - column : piece;
    int64_t k = 0;
    for (; k + 8 <= p.k; k += 8) stream_all_rows<8>(p, k, column, columns);
    for (; k < p.k; ++k) stream_all_rows<1>(p, k, column, columns);
  }
  finish_product(&p);
}

void product_float32(const RowsProduct* p) {
  constexpr int64_t kStreamedRows = 32, kStreamedBytes = 1 << 20;  // smaller weights stay in a cache
  const bool live = p->panel_stride == 2 * Float32Weights::kHalfBytes;
  const bool stream = live && p->m <= kStreamedRows && p->k * p->row_stride > kStreamedBytes;
  stream ? stream_float32(*p) : product<Float32Weights>(*p);
}
void product_bfloat16(const RowsProduct* p) { product<Bfloat16Weights>(*p); }
void product_int8(const RowsProduct* p) { product<Int8Weights>(*p); }

void round_row_bfloat16(float* y, const float* x, int64_t n) {
  each(n, [&](int64_t j, int64_t count) {
    float pairs[kWidth];
    store(pairs, pair(load_tail(x + j, count), set1(0.0f)));
    store_tail(y + j, widen_low(reinterpret_cast<const char*>(pairs)), count);
  });
}

// A panel as pairs. It prefetches as the products do.
template <typename Weights>
inline void pair_panel(float* dst, int64_t cols, const char* w, int64_t k, int64_t units) {
  constexpr int64_t kRowBytes = 2 * Weights::kHalfBytes;
  const auto place = [&](int64_t j) { return dst + j / cols * units * cols + j % cols; };
  float* out[2 * kGroups][2];
  for (int64_t i = 0; i < 2 * kGroups; ++i) {
    const int64_t j = i / kGroups * 32 + i % kGroups * kWidth;
    out[i][0] = place(j);
    out[i][1] = place(j + 16);
  }
  for (int64_t u = 0; u < units; ++u, w += 2 * kRowBytes) {
    SOMA_UNROLL for (int64_t i = 0; i < 2 * kRowBytes; i += 64) SOMA_FETCH(w + 2048 + i);
    SOMA_UNROLL for (int64_t i = 0; i < 2 * kGroups; ++i) {
      const char* first = w + i / kGroups * Weights::kHalfBytes + i % kGroups * Weights::kGroupBytes;
      const char* second = first + kRowBytes;
      const Vec zero = set1(0.0f);
      Vec low = zero, high = zero;
      if (2 * u + 1 < k) {
        low = pair(Weights::low(first), Weights::low(second));
        high = pair(Weights::high(first), Weights::high(second));
      } else if (2 * u < k) {
        low = pair(Weights::low(first), zero);
        high = pair(Weights::high(first), zero);
      }
      store(out[i][0] + u * cols, low);
      store(out[i][1] + u * cols, high);
    }
  }
}

void pair_bfloat16(float* dst, int64_t cols, const char* w, int64_t k, int64_t units) {
  pair_panel<Bfloat16Weights>(dst, cols, w, k, units);
}
void pair_int8(float* dst, int64_t cols, const char* w, int64_t k, int64_t units) {
  pair_panel<Int8Weights>(dst, cols, w, k, units);
}

void dot_rows(float* y, const float* x, const float* w, int64_t ld, int64_t rows, int64_t k) {
  for (int64_t r = 0; r < rows; ++r) y[r] = dot_of<true>(w + r * ld, x, k, Float32Weights::kAhead / 4);
}

// How attention reads a cache (CachedHead). A lane of keys has kHalves positions. A pair of positions of values begins
// at p: `odd` says which, ld is the distance of two positions.
struct Float32Cache {
  static constexpr int kHalves = 1;
  static Vec keys(const float* p, int) { return load(p); }
  static Vec values(const float* p, int64_t ld, int odd, int64_t n) { return load_tail(p + odd * ld, n); }
  static const float* pair_of(const float* values, int64_t j, int64_t ld) { return values + j * ld; }
};
struct Bfloat16Cache {
  static constexpr int kHalves = 2;
  static Vec keys(const float* p, int half) {
    const auto* dwords = reinterpret_cast<const char*>(p);
    return half == 0 ? widen_low(dwords) : widen_high(dwords);
  }
  static Vec values(const float* p, int64_t, int odd, int64_t n) {
    if (n >= kWidth) return keys(p, odd);
    float some[kWidth];
    store(some, load_tail(p, n));
    return keys(some, odd);
  }
  static const float* pair_of(const float* values, int64_t j, int64_t ld) { return values + j / 2 * ld; }
};

// Scores of kBlocks blocks of positions. The keys of a block are side by side.
template <typename Cache, int kBlocks>
inline void attend_scores(float* scores, const float* q, const float* keys, int64_t head_size) {
  Vec sum[kBlocks][Cache::kHalves][kGroups];
  const auto each_sum = [&](auto&& f) {
    SOMA_UNROLL for (int b = 0; b < kBlocks; ++b) {
      SOMA_UNROLL for (int h = 0; h < Cache::kHalves; ++h) {
        SOMA_UNROLL for (int g = 0; g < kGroups; ++g) f(sum[b][h][g], b, h, g);
      }
    }
  };
  each_sum([](Vec& s, int, int, int) { s = set1(0.0f); });
  for (int64_t i = 0; i < head_size; ++i) {
    const auto x = element(q + i);
    each_sum([&](Vec& s, int b, int h, int g) {
      s = fma(x, Cache::keys(keys + (b * head_size + i) * 16 + g * kWidth, h), s);
    });
  }
  each_sum([&](Vec& s, int b, int h, int g) { store(scores + (b * Cache::kHalves + h) * 16 + g * kWidth, s); });
}

// out(kVectors) = sum_j scores[j] values[j]. Even and odd positions have sums of their own: more chains run at once.
template <typename Cache, int kVectors>
inline void attend_values(float* out, const float* scores, const float* values, int64_t n, int64_t ld, int64_t width) {
  Vec even[kVectors], odd[kVectors];
  SOMA_UNROLL for (int v = 0; v < kVectors; ++v) even[v] = odd[v] = set1(0.0f);
  if (kVectors > 1) width = kWidth;
  int64_t j = 0;
  for (; j + 2 <= n; j += 2) {
    const float* const p = Cache::pair_of(values, j, ld);
    const Vec a = set1(scores[j]), b = set1(scores[j + 1]);
    SOMA_UNROLL for (int v = 0; v < kVectors; ++v) {
      even[v] = fma(a, Cache::values(p + v * kWidth, ld, 0, width), even[v]);
      odd[v] = fma(b, Cache::values(p + v * kWidth, ld, 1, width), odd[v]);
    }
  }
  if (j < n) {
    const float* const p = Cache::pair_of(values, j, ld);
    SOMA_UNROLL for (int v = 0; v < kVectors; ++v) {
      even[v] = fma(set1(scores[j]), Cache::values(p + v * kWidth, ld, 0, width), even[v]);
    }
  }
  SOMA_UNROLL for (int v = 0; v < kVectors; ++v) store_tail(out + v * kWidth, add(even[v], odd[v]), width);
}

template <typename Cache>
inline void attend(const CachedHead& head) {
  float *const out = head.out, *const scores = head.scores;
  const float *const q = head.q, *const keys = head.keys, *const values = head.values;
  const int64_t n = head.n, head_size = head.head_size;
  constexpr int64_t kBlock = 16 * Cache::kHalves;  // positions
  constexpr int kFit = (kSums >= 24 ? 4 : kWidth == 8 ? 2 : 1) / Cache::kHalves, kBlocks = kFit > 1 ? kFit : 1;
  int64_t j = 0;
  const auto block = [&] { return keys + j / Cache::kHalves * head_size; };
  for (; j + kBlock * kBlocks <= n; j += kBlock * kBlocks) {
    attend_scores<Cache, kBlocks>(scores + j, q, block(), head_size);
  }
  for (; j < n; j += kBlock) attend_scores<Cache, 1>(scores + j, q, block(), head_size);
  softmax_row(scores, n, head.scale);
  int64_t i = 0;
  for (; i + 4 * kWidth <= head_size; i += 4 * kWidth) {
    attend_values<Cache, 4>(out + i, scores, values + i, n, head_size, kWidth);
  }
  for (; i + 2 * kWidth <= head_size; i += 2 * kWidth) {
    attend_values<Cache, 2>(out + i, scores, values + i, n, head_size, kWidth);
  }
  for (; i < head_size; i += kWidth) {
    attend_values<Cache, 1>(out + i, scores, values + i, n, head_size, head_size - i);
  }
}

void attend_float32(const CachedHead* head) { attend<Float32Cache>(*head); }
void attend_bfloat16(const CachedHead* head) { attend<Bfloat16Cache>(*head); }
