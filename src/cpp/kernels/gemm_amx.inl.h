// The register tile of the bfloat16 matrix product on AMX. Tiles 0 to 3 hold 32 x 32 sums, tiles 4 and 5 are of A, 6
// and 7 of B: four products for four loads. Each product adds 16 units (32 of k) to C, in the order of depth.

constexpr int kAmxRows = 2 * kTileRows, kAmxCols = 2 * kTileRows, kAmxUnits = kTileBytes / 4;
// Units of depth of one tile: 32 x 192 units of A take 24 KB of an L1 of 48 KB. B passes through the rest.
constexpr int kAmxDepth = 192;

template <int kRows, int kCols>
SOMA_INLINE void load_sums(const float* c, int64_t ldc) {
  const int64_t stride = ldc * 4;
  tile_load<0>(c, stride);
  if constexpr (kCols == 2) tile_load<1>(c + kTileRows, stride);
  if constexpr (kRows == 2) tile_load<2>(c + kTileRows * ldc, stride);
  if constexpr (kRows == 2 && kCols == 2) tile_load<3>(c + kTileRows * ldc + kTileRows, stride);
}

template <int kRows, int kCols>
SOMA_INLINE void store_sums(float* c, int64_t ldc) {
  const int64_t stride = ldc * 4;
  tile_store<0>(c, stride);
  if constexpr (kCols == 2) tile_store<1>(c + kTileRows, stride);
  if constexpr (kRows == 2) tile_store<2>(c + kTileRows * ldc, stride);
  if constexpr (kRows == 2 && kCols == 2) tile_store<3>(c + kTileRows * ldc + kTileRows, stride);
}

template <int kRows, int kCols>
SOMA_INLINE void zero_sums() {
  tile_zero<0>();
  if constexpr (kCols == 2) tile_zero<1>();
  if constexpr (kRows == 2) tile_zero<2>();
  if constexpr (kRows == 2 && kCols == 2) tile_zero<3>();
}

template <int kRows, int kCols>
SOMA_INLINE void add_products(const float* a, int64_t a_row, const float* b, int64_t k) {
  constexpr int64_t kStrideB = kAmxCols * 4;
  for (int64_t u = 0; u < k; u += kAmxUnits, a += kAmxUnits, b += kAmxUnits * kAmxCols) {
    tile_load<4>(a, a_row * 4);
    tile_load<6>(b, kStrideB);
    tile_dot<0, 4, 6>();
    if constexpr (kCols == 2) {
      tile_load<7>(b + kTileRows, kStrideB);
      tile_dot<1, 4, 7>();
    }
    if constexpr (kRows == 2) {
      tile_load<5>(a + kTileRows * a_row, a_row * 4);
      tile_dot<2, 5, 6>();
    }
    if constexpr (kRows == 2 && kCols == 2) tile_dot<3, 5, 7>();
  }
}

// The tile of columns [j, j + n), whose panel is b. A full tile without an epilogue is loaded from C and stored to it.
// Any other goes through a buffer.
template <int kRows, int kCols>
void amx_tile(const RowOfTiles& t, int64_t j, int64_t n, const float* b) {
  const TileStore& how = *t.store;
  const int64_t ldc = t.ldc, m = t.m;
  float* const c = t.c + j;
  const float* const bias = how.bias != nullptr ? how.bias + j : nullptr;
  const float* residual = how.residual != nullptr ? how.residual + j : nullptr;
  const bool whole = m == kRows * kTileRows && n == kCols * kTileRows;
  alignas(64) float buffer[kAmxRows * kAmxCols];
  const bool direct = whole && bias == nullptr && residual == nullptr && !how.relu;
  float* sums = direct ? c : buffer;
  const int64_t ld = direct ? ldc : kAmxCols;
  if (how.accumulate) {
    if (!direct) {
      for (int64_t i = 0; i < kRows * kTileRows; ++i) {  // rows beyond m are not used
        for (int64_t q = 0; q < n; q += kWidth) {
          store(buffer + i * kAmxCols + q, load_tail(c + (i < m ? i : m - 1) * ldc + q, n - q));
        }
      }
    }
    load_sums<kRows, kCols>(sums, ld);
  } else {
    zero_sums<kRows, kCols>();
  }
  add_products<kRows, kCols>(t.a, t.a_row, b, t.k);
  store_sums<kRows, kCols>(sums, ld);
  if (direct) return;
  constexpr int kVectors = kCols * kTileRows / kWidth;
  for (int64_t i = 0; i < m; ++i) {
    Vec sum[1][kVectors];
    SOMA_UNROLL for (int q = 0; q < kVectors; ++q) sum[0][q] = load(buffer + i * kAmxCols + q * kWidth);
    if (n == kCols * kTileRows) {
      finish<1, kVectors, true>(c + i * ldc, ldc, sum, n, how, bias, residual);
    } else {
      finish<1, kVectors, false>(c + i * ldc, ldc, sum, n, how, bias, residual);
    }
    if (residual != nullptr) residual += how.ld_residual;
  }
}

void gemm_rows_bf16(const RowOfTiles* tiles) {
  const RowOfTiles& t = *tiles;
  const float* b = t.b;
  for (int64_t j = 0; j < t.n; j += kAmxCols, b += t.panel) {
    const int64_t columns = t.n - j < kAmxCols ? t.n - j : kAmxCols;
    const auto tile = t.m > kTileRows ? (columns > kTileRows ? amx_tile<2, 2> : amx_tile<2, 1>)
                                      : (columns > kTileRows ? amx_tile<1, 2> : amx_tile<1, 1>);
    tile(t, j, columns, b);
  }
}

void enter_bf16() { tile_configure(kWholeTiles); }
void leave_bf16() { tile_release(); }

// Products of tiles that are loaded once: the peak of arithmetic.
int64_t peak_bf16(float* values, int64_t rounds) {
  alignas(64) float a[kTileRows * kAmxUnits], b[kTileRows * kAmxUnits], sums[kAmxRows * kAmxCols];
  for (int64_t i = 0; i < kTileRows * kAmxUnits; i += kWidth) {
    store(a + i, set1(values[0]));
    store(b + i, set1(values[1]));
  }
  enter_bf16();
  zero_sums<2, 2>();
  tile_load<4>(a, kTileBytes);
  tile_load<5>(a, kTileBytes);
  tile_load<6>(b, kTileBytes);
  tile_load<7>(b, kTileBytes);
  for (int64_t r = 0; r < rounds; ++r) {
    tile_dot<0, 4, 6>();
    tile_dot<1, 4, 7>();
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }
  store_sums<2, 2>(sums, kAmxCols);
  leave_bf16();
  for (const float sum : sums) values[2] += sum;
  return rounds * 4 * kTileRows * kTileRows * kAmxUnits * 4;
}
