// Sums of products of bfloat16 by BFMMLA, which adds four products to each sum of a square: two rows by two columns. It
// rounds as two BFDOT, one after the other, so a tile may go on by BFDOT, which takes a last odd unit. Included before
// gemm.inl.h.
#define SOMA_SQUARES 1

// sum (+)= A B for the rows and columns of a tile. Returns how many of the k units were taken: an even number where the
// units of A are neighbours, else none.
template <int kRows, int kVectors>
SOMA_INLINE int64_t multiply_squares(Vec (&sum)[kRows][kVectors], const float* a, int64_t row, int64_t depth,
                                     const float* b, int64_t k) {
  constexpr int64_t kCols = kGemmVectors * kWidth;
  if (depth != 1 || k < 2) return 0;
  Vec square[kRows / 2][2 * kVectors];
  SOMA_UNROLL for (int i = 0; i < kRows / 2; ++i) {
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
      swap_middle(sum[2 * i][j], sum[2 * i + 1][j], &square[i][2 * j], &square[i][2 * j + 1]);
    }
  }
  const float* rows[kRows];
  SOMA_UNROLL for (int i = 0; i < kRows; ++i) rows[i] = a + i * row;
  const float* const end = b + (k - k % 2) * kCols;
  do {
    Vec factor[kRows / 2];
    SOMA_UNROLL for (int i = 0; i < kRows / 2; ++i) {
      factor[i] = two_of_each(rows[2 * i], rows[2 * i + 1]);
      rows[2 * i] += 2;
      rows[2 * i + 1] += 2;
    }
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
      Vec left, right;
      interleave(load(b + j * kWidth), load(b + kCols + j * kWidth), &left, &right);
      SOMA_UNROLL for (int i = 0; i < kRows / 2; ++i) {
        square[i][2 * j] = dot_squares(factor[i], left, square[i][2 * j]);
        square[i][2 * j + 1] = dot_squares(factor[i], right, square[i][2 * j + 1]);
      }
    }
    b += 2 * kCols;
  } while (b != end);
  SOMA_UNROLL for (int i = 0; i < kRows / 2; ++i) {
    SOMA_UNROLL for (int j = 0; j < kVectors; ++j) {
      swap_middle(square[i][2 * j], square[i][2 * j + 1], &sum[2 * i][j], &sum[2 * i + 1][j]);
    }
  }
  return k - k % 2;
}
