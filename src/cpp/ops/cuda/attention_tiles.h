// Tiles of attention for a block of threads. Scores are products of a tile of rows with a tile of columns, along the
// head; results are products of scores with a tile of columns. TensorTiles: bfloat16 by tensor cores. FloatTiles:
// float32. Both name a thread's numbers at(r, c), and say in which row and column of the tile they lie.
#pragma once

#include "ops/cuda/rows.h"

namespace soma::cuda {

// What tiles are read from: heads side by side, the first one at column `first`.
struct Heads {
  const float* data = nullptr;
  int64_t ld = 0, first = 0;
  bool pairs = false, copies = false;  // copies: pieces of 16 bytes are aligned and within one head

  Heads() = default;
  Heads(const ConstMatrix& m, int64_t column, int64_t head_size)
      : data(m.data),
        ld(m.ld),
        first(column),
        pairs(m.pairs),
        copies(m.pairs && head_size % 8 == 0 && m.ld % 4 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0) {}
  // Columns j and j + 1 of a row, of which `left` are in the head.
  __device__ float2 two(int64_t r, int64_t j, int64_t left) const {
    if (left <= 0) return {0.0f, 0.0f};
    if (!pairs) return read_two(data + r * ld + j, left > 1);
    const uint32_t pair = __float_as_uint(data[r * ld + j / 2]);
    return {low_of(pair), high_of(pair)};
  }
};

// A part of a matrix that a tile takes: `rows` and `cols` of it are there, the rest of the tile is zero.
struct Part {
  int64_t row;
  int rows;
  int64_t col;
  int cols;
};

// A warp has 16 kGroups rows. Neighbouring columns lie in one thread, four threads share a row.
template <int kHeadColumns, int kGroups, int kColumns>
struct TensorTiles {
  static constexpr int kDepth = kHeadColumns, kRows = 64 * kGroups, kCols = kColumns;
  static constexpr unsigned kBlock = 128;
  static constexpr int kStages = 2, kRowLanes = 4, kKept = 0;
  static constexpr int kMyRows = 2 * kGroups, kScores = kCols / 4, kResults = kDepth / 4;
  __host__ __device__ static constexpr int floats(int rows) { return rows * kDepth / 2; }

  template <int kCount>
  struct Sums {
    float x[kGroups][kCount / 2][4];
    __device__ float& at(int r, int c) { return x[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int first_row() { return static_cast<int>(threadIdx.x / 32) * 16 * kGroups; }
  __device__ static int row_of(int r) { return first_row() + r / 2 * 16 + r % 2 * 8 + lane() / 4; }
  __device__ static int score_column(int c) { return c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  __device__ static int result_column(int c) { return score_column(c); }

  // Pieces of 16 bytes are permuted, so that the eight rows that load_tiles reads lie in eight different banks.
  __device__ static int place(int row, int piece) { return row * kDepth / 2 + (piece ^ row % 8) * 4; }

  __device__ static void fetch(float* to, int rows, const Heads& x, const Part& p) {
    constexpr int kPieces = kDepth / 8, kWords = kDepth / 2;
    if (x.copies) {
      for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += static_cast<int>(kBlock)) {
        const int r = i / kPieces, piece = i % kPieces;
        const bool inside = r < p.rows && piece * 8 < p.cols;
        copy_16(to + place(r, piece), x.data + (inside ? (p.row + r) * x.ld + (p.col + piece * 8) / 2 : 0), inside);
      }
      return;
    }
    for (int i = static_cast<int>(threadIdx.x); i < rows * kWords; i += static_cast<int>(kBlock)) {
      const int r = i / kWords, word = i % kWords;
      const float2 v = x.two(p.row + r, p.col + word * 2, r < p.rows ? p.cols - word * 2 : 0);
      to[place(r, word / 4) + word % 4] = __uint_as_float(pair_of(v.x, v.y));
    }
  }

  // s += a b^T
  __device__ static void scores(Sums<kScores>& s, const float* a, const float* b) {
    const int matrix = lane() / 8, row = lane() % 8;
    constexpr int kTogether = kDepth > 64 ? 32 : kDepth;  // all addresses of a long head would take too many registers
    SOMA_ROLLED
    for (int first = 0; first < kDepth; first += kTogether) {
      SOMA_UNROLL
      for (int k = first; k < first + kTogether; k += 16) {
        uint32_t left[kGroups][4];
        SOMA_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          load_tiles<false>(left[g], a + place(first_row() + g * 16 + matrix % 2 * 8 + row, k / 8 + matrix / 2));
        }
        SOMA_UNROLL
        for (int j = 0; j < kCols / 16; ++j) {
          uint32_t right[4];
          load_tiles<false>(right, b + place(j * 16 + matrix / 2 * 8 + row, k / 8 + matrix % 2));
          SOMA_UNROLL
          for (int g = 0; g < kGroups; ++g) {
            multiply_tile(s.x[g][2 * j], left[g], {right[0], right[1]});
            multiply_tile(s.x[g][2 * j + 1], left[g], {right[2], right[3]});
          }
        }
      }
    }
  }

  // y += s b, s rounded to bfloat16
  __device__ static void results(Sums<kResults>& y, const Sums<kScores>& s, const float* b, float*) {
    const int matrix = lane() / 8, row = lane() % 8;
    SOMA_UNROLL
    for (int k = 0; k < kCols / 16; ++k) {
      uint32_t left[kGroups][4];
      SOMA_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        SOMA_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float* const two = s.x[g][2 * k + i / 2] + i % 2 * 2;
          left[g][i] = pair_of(two[0], two[1]);
        }
      }
      SOMA_UNROLL
      for (int j = 0; j < kDepth / 16; ++j) {
        uint32_t right[4];
        load_tiles<true>(right, b + place(k * 16 + matrix % 2 * 8 + row, j * 2 + matrix / 2));
        SOMA_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          multiply_tile(y.x[g][2 * j], left[g], {right[0], right[1]});
          multiply_tile(y.x[g][2 * j + 1], left[g], {right[2], right[3]});
        }
      }
    }
  }
};

// A thread has four rows of 64, one below the other, and every sixteenth column. Half a warp shares a row.
struct FloatTiles {
  static constexpr int kDepth = 64, kRows = 64, kCols = 64, kPadded = kDepth + 2;  // rows in different banks
  static constexpr unsigned kBlock = 256;
  static constexpr int kStages = 1, kRowLanes = 16, kKept = kRows * kPadded;  // scores in shared memory
  static constexpr int kMyRows = 4, kScores = 4, kResults = 4;
  __host__ __device__ static constexpr int floats(int rows) { return rows * kPadded; }

  template <int kCount>
  struct Sums {
    float x[kMyRows][kCount];
    __device__ float& at(int r, int c) { return x[r][c]; }
  };

  __device__ static int column() { return static_cast<int>(threadIdx.x % 16); }
  __device__ static int row_of(int r) { return static_cast<int>(threadIdx.x / 16) * 4 + r; }
  __device__ static int score_column(int c) { return column() + 16 * c; }
  __device__ static int result_column(int c) { return column() * 2 + c / 2 * 32 + c % 2; }

  __device__ static void fetch(float* to, int rows, const Heads& x, const Part& p) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * kDepth / 2; i += static_cast<int>(kBlock)) {
      const int r = i / (kDepth / 2), j = i % (kDepth / 2) * 2;
      store_2(to + r * kPadded + j, x.two(p.row + r, p.col + j, r < p.rows ? p.cols - j : 0));
    }
  }

  // s += a b^T, in the order of the head's columns
  __device__ static void scores(Sums<kScores>& s, const float* a, const float* b) {
    SOMA_ROLLED
    for (int k = 0; k < kDepth; k += 2) {
      float2 left[kMyRows], right[kScores];
      SOMA_UNROLL
      for (int i = 0; i < kMyRows; ++i) left[i] = load_2(a + row_of(i) * kPadded + k);
      SOMA_UNROLL
      for (int j = 0; j < kScores; ++j) right[j] = load_2(b + score_column(j) * kPadded + k);
      SOMA_UNROLL
      for (int i = 0; i < kMyRows; ++i) {
        SOMA_UNROLL
        for (int j = 0; j < kScores; ++j) {
          s.x[i][j] = fmaf(left[i].y, right[j].y, fmaf(left[i].x, right[j].x, s.x[i][j]));
        }
      }
    }
  }

  // y += s b, in the order of the columns of s. Its rows go through `kept`, to the threads of the same half warp.
  __device__ static void results(Sums<kResults>& y, const Sums<kScores>& s, const float* b, float* kept) {
    __syncwarp();
    SOMA_UNROLL
    for (int i = 0; i < kMyRows; ++i) {
      SOMA_UNROLL
      for (int j = 0; j < kScores; ++j) kept[row_of(i) * kPadded + score_column(j)] = s.x[i][j];
    }
    __syncwarp();
    SOMA_ROLLED
    for (int k = 0; k < kCols; k += 2) {
      float2 left[kMyRows];
      SOMA_UNROLL
      for (int i = 0; i < kMyRows; ++i) left[i] = load_2(kept + row_of(i) * kPadded + k);
      SOMA_UNROLL
      for (int half = 0; half < kResults / 2; ++half) {
        const float* const from = b + k * kPadded + result_column(2 * half);
        const float2 first = load_2(from), second = load_2(from + kPadded);
        SOMA_UNROLL
        for (int i = 0; i < kMyRows; ++i) {
          float* const to = y.x[i] + 2 * half;
          to[0] = fmaf(left[i].y, second.x, fmaf(left[i].x, first.x, to[0]));
          to[1] = fmaf(left[i].y, second.y, fmaf(left[i].x, first.y, to[1]));
        }
      }
    }
  }
};

}  // namespace soma::cuda
