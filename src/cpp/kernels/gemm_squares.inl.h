// The product of bfloat16 by BFMMLA, which adds four products to each sum of a square: two rows by two columns. It
// rounds as two BFDOT, one after the other. Both operands lie as it reads them: a vector has two neighbouring units of
// two rows of A, or of two columns of B. Included after gemm.inl.h.

constexpr int kSquareRows = 12;  // 24 sums, 4 vectors of B and 1 of A: 29 of 32 registers
constexpr int kSquareVectors = 2, kSquareCols = kSquareVectors * kWidth;
constexpr int64_t kSquareDepth = 384;  // units of A that are in order at once: 18 KB of L1

// Puts a packed panel into this order: unit u of column j goes to u/2*2*cols + 2j + u%2. A unit from `given` on becomes
// -0. Its product with +0 of A is -0, which leaves every sum as it is, that of -0 too.
void arrange_panel(float* panel, int64_t given, int64_t units) {
  const Vec nothing = pair(set1(-0.0f), set1(-0.0f));
  for (int64_t u = 0; u < units; u += 2, panel += 2 * kSquareCols) {
    Vec even[kSquareVectors], odd[kSquareVectors];
    SOMA_UNROLL for (int j = 0; j < kSquareVectors; ++j) {
      even[j] = load(panel + j * kWidth);
      odd[j] = u + 1 < given ? load(panel + kSquareCols + j * kWidth) : nothing;
    }
    SOMA_UNROLL for (int j = 0; j < kSquareVectors; ++j) {
      Vec left, right;
      interleave(even[j], odd[j], &left, &right);
      store(panel + 2 * j * kWidth, left);
      store(panel + (2 * j + 1) * kWidth, right);
    }
  }
}

// Some rows of C times all panels: their rows of A in order, k units deep.
struct SquareRows {
  float* c;
  int64_t ldc;
  const float* a;
  int64_t k;
  TileStore how;
};

// The second row of pair i. The last of an odd number stands beside itself.
template <int kRows>
constexpr int partner(int i) {
  return 2 * i + 1 < kRows ? 2 * i + 1 : 2 * i;
}

// Puts k units of kRows rows of A into order: vector q * kPairs + i has units 2q and 2q + 1 of the rows of pair i.
template <int kRows>
inline void arrange_rows(float* out, const float* a, int64_t row, int64_t k) {
  constexpr int64_t kPairs = (kRows + 1) / 2, kStep = kPairs * kWidth;
  for (int i = 0; i < kPairs; ++i) {
    const float *const p = a + 2 * i * row, *const q = a + partner<kRows>(i) * row;
    float* to = out + i * kWidth;
    int64_t u = 0;
    for (; u + kWidth <= k; u += kWidth, to += 2 * kStep) {
      Vec first, second;
      swap_middle(load(p + u), load(q + u), &first, &second);
      store(to, first);
      store(to + kStep, second);
    }
    if (u < k) store(to, two_of_each(p + u, q + u));
  }
}

// The tile of columns [j, j + n), whose panel is b.
template <int kRows, int kVectors, bool kFull>
void square_tile(const SquareRows& rows, int64_t j, int64_t n, const float* b) {
  constexpr int kPairs = (kRows + 1) / 2;
  const TileStore& how = rows.how;
  const int64_t ldc = rows.ldc;
  float* const c = rows.c + j;
  Vec sum[kRows][kVectors];
  SOMA_UNROLL for (int i = 0; i < kRows; ++i) { SOMA_UNROLL for (int v = 0; v < kVectors; ++v) sum[i][v] = set1(0.0f); }
  if (how.accumulate) {
    SOMA_UNROLL for (int i = 0; i < kRows; ++i) {
      SOMA_UNROLL for (int v = 0; v < kVectors; ++v) {
        sum[i][v] = load_cols<kFull>(c + i * ldc + v * kWidth, n - v * kWidth);
      }
    }
  }
  Vec square[kPairs][2 * kVectors];
  SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
    SOMA_UNROLL for (int v = 0; v < kVectors; ++v) {
      swap_middle(sum[2 * i][v], sum[partner<kRows>(i)][v], &square[i][2 * v], &square[i][2 * v + 1]);
    }
  }
  const float* a = rows.a;
  const float* const end = b + rows.k * kSquareCols;
  do {
    Vec columns[2 * kVectors];
    SOMA_UNROLL for (int v = 0; v < 2 * kVectors; ++v) columns[v] = load(b + v * kWidth);
    SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
      const Vec two_rows = load(a + i * kWidth);
      SOMA_UNROLL for (int v = 0; v < 2 * kVectors; ++v) {
        square[i][v] = dot_squares(two_rows, columns[v], square[i][v]);
      }
    }
    a += kPairs * kWidth;
    b += 2 * kSquareCols;
  } while (b != end);
  SOMA_UNROLL for (int i = 0; i < kPairs; ++i) {
    SOMA_UNROLL for (int v = 0; v < kVectors; ++v) {
      Vec second;
      swap_middle(square[i][2 * v], square[i][2 * v + 1], &sum[2 * i][v], &second);
      if (2 * i + 1 < kRows) sum[partner<kRows>(i)][v] = second;
    }
  }
  const float* const bias = how.bias != nullptr ? how.bias + j : nullptr;
  const float* const residual = how.residual != nullptr ? how.residual + j : nullptr;
  finish<kRows, kVectors, kFull>(c, ldc, sum, n, how, bias, residual);
}

// All panels of columns for kRows rows from `first` on, then for the remaining rows. Rows of A are put into order once
// for all panels, in `memory`.
template <int kRows>
inline void square_rows(const RowOfTiles& t, int64_t first, float* memory) {
  if (t.m - first >= kRows) {
    for (int64_t u = 0; u < t.k; u += kSquareDepth) {
      const int64_t k = t.k - u < kSquareDepth ? t.k - u : kSquareDepth;
      SquareRows rows{t.c + first * t.ldc, t.ldc, memory, k, *t.store};
      if (u > 0) rows.how.accumulate = 1;
      if (u + k < t.k) {
        rows.how.relu = 0;
        rows.how.bias = rows.how.residual = nullptr;
      }
      if (rows.how.residual != nullptr) rows.how.residual += first * rows.how.ld_residual;
      arrange_rows<kRows>(memory, t.a + first * t.a_row + u, t.a_row, k);
      const float* b = t.b + u * kSquareCols;
      for (int64_t j = 0; j < t.n; j += kSquareCols, b += t.panel) {
        const int64_t columns = t.n - j;
        if (columns > kSquareCols) fetch_tile<kRows>(rows.c + j + kSquareCols, t.ldc);
        if (columns >= kSquareCols) {
          square_tile<kRows, kSquareVectors, true>(rows, j, columns, b);
        } else if (columns > kWidth) {
          square_tile<kRows, kSquareVectors, false>(rows, j, columns, b);
        } else {
          square_tile<kRows, 1, false>(rows, j, columns, b);
        }
      }
    }
    first += kRows;
    if (first == t.m) return;
  }
  if constexpr (kRows > 1) square_rows<next_rows(kRows)>(t, first, memory);
}

void gemm_rows_bf16(const RowOfTiles* tiles) {
  alignas(64) float memory[kSquareRows * kSquareDepth];
  square_rows<kSquareRows>(*tiles, 0, memory);
}
