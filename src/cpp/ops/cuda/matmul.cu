// Matrix products. bfloat16: tensor cores on tiles of 128 x 128, 32 deep, with three stages of copies ahead of them.
// float32: tiles of 128 x 128, 16 deep; sums in the order of k, as on the processor.
#include <stdexcept>
#include <type_traits>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/epilogue.h"

namespace soma::cuda {
namespace {

constexpr int kTile = 128, kDepth = 32, kStages = 3, kPieces = kTile * kDepth / 8;  // a piece: 16 bytes

// An operand in the tiles of a block. Its stored rows run along M or N (kDeep), or along K.
template <bool kDeep>
struct Tiles {
  const uint16_t* data;
  int64_t rows, cols, ld;  // as stored, in bfloat16 numbers
  int64_t first;           // of the block's rows of C, or columns

  // Pieces are permuted, so that the eight rows of a matrix that load_tiles reads lie in eight different banks.
  __device__ static int place(int row, int piece) {
    return kDeep ? row * kDepth + (piece ^ (row / 2 % 4)) * 8 : row * kTile + (piece ^ (row % 8)) * 8;
  }
  // Copies depths [k, k + kDepth) of the block, zeros beyond the matrix.
  __device__ void fetch(uint16_t* to, int64_t k) const {
    constexpr int kAcross = kDeep ? kDepth / 8 : kTile / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kPieces; i += static_cast<int>(kThreads)) {
      const int row = i / kAcross, piece = i % kAcross;
      const int64_t r = (kDeep ? first : k) + row, c = (kDeep ? k : first) + piece * 8;
      const bool inside = r < rows && c < cols;
      copy_16(to + place(row, piece), data + (inside ? r * ld + c : 0), inside);
    }
  }
  // The four 8 x 8 matrices of 16 rows (or columns) of C from `at` on and 16 depths from k on. Their order: along C
  // first for A, along the depth first for B.
  template <bool kAlongC>
  __device__ static void load(uint32_t (&r)[4], const uint16_t* tile, int at, int k) {
    const int lane = static_cast<int>(threadIdx.x % 32), matrix = lane / 8;
    const int along = (kAlongC ? matrix % 2 : matrix / 2) * 8, deep = (kAlongC ? matrix / 2 : matrix % 2) * 8;
    if constexpr (kDeep) {
      load_tiles<false>(r, tile + place(at + along + lane % 8, (k + deep) / 8));
    } else {
      load_tiles<true>(r, tile + place(k + deep + lane % 8, (at + along) / 8));
    }
  }
};

// Finishes half the rows of a tile, which lie in shared memory: row s there is row row_of(s) of C. A warp takes
// neighbouring columns. The loop is not unrolled, since the epilogue is long.
constexpr int kHalf = kTile / 2;
template <typename RowOf>
__device__ inline void store_half(const Finish& finish, const float* staged, int64_t col0, int64_t m, int64_t n,
                                  bool accumulate, RowOf row_of) {
  SOMA_ROLLED
  for (int i = static_cast<int>(threadIdx.x); i < kHalf * kHalf; i += static_cast<int>(kThreads)) {
    const int64_t r = row_of(i / kHalf), col = col0 + i % kHalf * 2;
    if (r >= m || col >= n) continue;
    const bool both = col + 1 < n;
    float2 v = load_2(staged + i * 2);
    if (accumulate) {
      const float2 before = read_two(finish.c.row(r) + col, both);
      v = {before.x + v.x, before.y + v.y};
    }
    finish.store(r, col, v, both);
  }
}

// A warp makes 64 x 32 of C.
template <bool kDeepA, bool kDeepB>
__global__ void __launch_bounds__(kThreads)
    multiply_bfloat16(Finish finish, Tiles<kDeepA> a, Tiles<kDeepB> b, int64_t m, int64_t n, int64_t depth) {
  SOMA_SHARED(uint16_t, tiles, 2 * kStages * kTile * kDepth);
  uint16_t *const a_tiles = tiles, *const b_tiles = tiles + kStages * kTile * kDepth;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile, col0 = static_cast<int64_t>(blockIdx.x) * kTile;
  if (finish.symmetric && col0 + kTile <= row0) return;
  a.first = row0;
  b.first = col0;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
  const int64_t steps = (depth + kDepth - 1) / kDepth;
  const auto fetch = [&](int64_t step) {
    if (step < steps) {
      const int64_t at = step % kStages * kTile * kDepth;
      a.fetch(a_tiles + at, step * kDepth);
      b.fetch(b_tiles + at, step * kDepth);
    }
    end_copies();  // an empty group too, so that all steps count alike
  };

  float sums[4][4][4] = {};
  for (int64_t step = 0; step < kStages - 1; ++step) fetch(step);
  for (int64_t step = 0; step < steps; ++step) {
    await_copies<kStages - 2>();
    __syncthreads();  // the copies of all threads are there, and nobody reads the stage that is fetched next
    fetch(step + kStages - 1);
    const uint16_t* const at = a_tiles + step % kStages * kTile * kDepth;
    const uint16_t* const bt = b_tiles + step % kStages * kTile * kDepth;
    SOMA_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t left[4][4], right[2][4];
      SOMA_UNROLL
      for (int i = 0; i < 4; ++i) Tiles<kDeepA>::template load<true>(left[i], at, warp_row + i * 16, k);
      SOMA_UNROLL
      for (int j = 0; j < 2; ++j) Tiles<kDeepB>::template load<false>(right[j], bt, warp_col + j * 16, k);
      SOMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        SOMA_UNROLL
        for (int j = 0; j < 4; ++j) {
          multiply_tile(sums[i][j], left[i], {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]});
        }
      }
    }
  }
  await_copies<0>();
  float* const staged = reinterpret_cast<float*>(tiles);
  SOMA_UNROLL
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
    SOMA_UNROLL
    for (int i = 0; i < 4; ++i) {
      SOMA_UNROLL
      for (int j = 0; j < 4; ++j) {
        float* const to = staged + (warp / 4 * 32 + i * 8 + lane / 4) * kTile + warp_col + j * 8 + lane % 4 * 2;
        store_2(to, {sums[i][j][half * 2], sums[i][j][half * 2 + 1]});
      }
    }
    __syncthreads();
    store_half(finish, staged, col0, m, n, finish.accumulate,
               [&](int s) { return row0 + s / 32 * 64 + s % 32 / 8 * 16 + half * 8 + s % 8; });
  }
}

constexpr int kFloatDepth = 16, kPadded = kTile + 4;

// Element (along, deep) of an operand in floats: along M or N, and along K.
struct Floats {
  const float* data;
  int64_t along, deep;  // distances
  int64_t count;        // along
};

// A thread makes 8 x 8 of C: rows one below the other, columns in pairs 32 apart.
__global__ void __launch_bounds__(kThreads)
    multiply_float32(Finish finish, Floats a, Floats b, int64_t m, int64_t n, int64_t depth) {
  SOMA_SHARED(float, shared, kHalf* kTile);
  static_assert(2 * kFloatDepth * kPadded <= kHalf * kTile);
  float *const a_tile = shared, *const b_tile = shared + kFloatDepth * kPadded;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile, col0 = static_cast<int64_t>(blockIdx.x) * kTile;
  if (finish.symmetric && col0 + kTile <= row0) return;
  const int thread = static_cast<int>(threadIdx.x), my_row = thread / 16 * 8, my_col = thread % 16 * 2;
  // Neighbouring threads take what is neighbouring in memory.
  const auto fetch = [&](float* tile, const Floats& f, int64_t first, int64_t k0) {
    for (int i = thread; i < kTile * kFloatDepth; i += static_cast<int>(kThreads)) {
      const int along = f.deep == 1 ? i / kFloatDepth : i % kTile, k = f.deep == 1 ? i % kFloatDepth : i / kTile;
      const bool inside = first + along < f.count && k0 + k < depth;
      tile[k * kPadded + along] = inside ? f.data[(first + along) * f.along + (k0 + k) * f.deep] : 0.0f;
    }
  };

  float sums[8][8];
  SOMA_UNROLL
  for (int i = 0; i < 8; ++i) {
    SOMA_UNROLL
    for (int j = 0; j < 8; ++j) {
      const int64_t r = row0 + my_row + i, col = col0 + my_col + j / 2 * 32 + j % 2;
      sums[i][j] = finish.accumulate && r < m && col < n ? finish.c.row(r)[col] : 0.0f;
    }
  }
  for (int64_t k0 = 0; k0 < depth; k0 += kFloatDepth) {
    __syncthreads();
    fetch(a_tile, a, row0, k0);
    fetch(b_tile, b, col0, k0);
    __syncthreads();
    const int count = depth - k0 < kFloatDepth ? static_cast<int>(depth - k0) : kFloatDepth;
    for (int k = 0; k < count; ++k) {
      float left[8], right[8];
      SOMA_UNROLL
      for (int i = 0; i < 8; ++i) left[i] = a_tile[k * kPadded + my_row + i];
      SOMA_UNROLL
      for (int j = 0; j < 8; ++j) right[j] = b_tile[k * kPadded + my_col + j / 2 * 32 + j % 2];
      SOMA_UNROLL
      for (int i = 0; i < 8; ++i) {
        SOMA_UNROLL
        for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
      }
    }
  }
  SOMA_UNROLL
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
    SOMA_UNROLL
    for (int i = 0; i < 4; ++i) {
      SOMA_UNROLL
      for (int j = 0; j < 8; j += 2) {
        float* const to = shared + (thread / 16 * 4 + i) * kTile + my_col + j / 2 * 32;
        store_2(to, {sums[half * 4 + i][j], sums[half * 4 + i][j + 1]});
      }
    }
    __syncthreads();
    store_half(finish, shared, col0, m, n, false, [&](int s) { return row0 + s / 4 * 8 + half * 4 + s % 4; });
  }
}

// A block finishes a row of C, from `first` on, of a product in floats.
__global__ void __launch_bounds__(kThreads)
    finish_rows(Finish finish, const float* product, int64_t ld, int64_t first, int64_t n) {
  const float* const row = product + blockIdx.x * ld;
  for (int64_t j = 2 * threadIdx.x; j < n; j += 2 * kThreads) {
    const bool both = j + 1 < n;
    finish.store(first + blockIdx.x, j, read_two(row + j, both), both);
  }
}

// The zeros behind rows in pairs.
__global__ void __launch_bounds__(kThreads) clear_padding(Rows y, int64_t rows) {
  const int64_t r = row_of_warp();
  if (r < rows) y.finish(r, threadIdx.x % 32, 32);
}

Rows rows_of(const Matrix* m) { return m != nullptr ? Rows(*m) : Rows(); }

Finish finish_of(const Matrix& c, const Epilogue& e) {
  Finish f{};
  f.c = c;
  f.bias = e.bias;
  if (e.residual != nullptr) f.residual = {e.residual, c.cols};
  if (e.dropout) f.drop = drop_of(e.dropout);
  f.relu = e.relu;
  f.erf = e.gelu_erf;
  f.accumulate = e.accumulate;
  f.symmetric = e.symmetric;
  f.gelu = rows_of(e.gelu);
  if (e.gelu_input != nullptr) f.gelu_input = {e.gelu_input, c.cols};
  f.gelu_output = rows_of(e.gelu_output);
  if (e.relu_output != nullptr) f.relu_output = *e.relu_output;
  if (const SwigluGradient* const s = e.swiglu_gradient) {
    f.hidden = s->hidden;
    f.d_hidden = s->d_hidden;
    f.swiglu_output = s->output;
  }
  if (const Quadratic* const q = e.quadratic) {
    f.polynomial = true;
    f.constant = q->constant, f.linear = q->linear, f.square = q->square;
    f.x = {q->x->data, q->x->ld};
  }
  return f;
}

// Whether a product is stored as it is.
bool plain(const Matrix& c, const Epilogue& e) {
  return c.data != nullptr && !c.pairs && e.bias == nullptr && e.residual == nullptr && !e.dropout && !e.relu &&
         e.gelu == nullptr && e.gelu_input == nullptr && e.relu_output == nullptr && e.swiglu_gradient == nullptr;
}

// What waits for its epilogue, in products of `large`: some rows.
int64_t staged_ld(int64_t n) { return (n + 3) / 4 * 4; }
int64_t staged_rows(const Cublas& large, int64_t m, int64_t n) {
  return std::min(m, std::max<int64_t>(large.staged_floats() / staged_ld(n) / kTile, 1) * kTile);
}

// Where in scratch what lies, in floats.
struct Scratch {
  int64_t workspace = 0, staged = 0, a = 0, b = 0, sums = 0;
  int64_t all() const { return workspace + staged + a + b + sums; }
};
Scratch scratch_of(const ConstMatrix& a, const ConstMatrix& b, const Epilogue& e, Precision precision,
                   const Cublas* large) {
  const Operands pairs{.pairs = true};
  const bool rounds = precision == Precision::kBfloat16;
  const int64_t m = a.height(), n = b.width();
  return {.workspace = large != nullptr ? Cublas::kWorkspaceFloats : 0,
          .staged = large != nullptr ? staged_rows(*large, m, n) * staged_ld(n) : 0,
          .a = rounds && !a.pairs ? pairs.floats(a.rows, a.cols) : 0,
          .b = rounds && !b.pairs ? pairs.floats(b.rows, b.cols) : 0,
          .sums = e.column_sums != nullptr ? sum_rows_floats(b.rows, b.cols) : 0};
}

template <bool kDeep>
Tiles<kDeep> tiles_of(const ConstMatrix& x) {
  return {reinterpret_cast<const uint16_t*>(x.data), x.rows, x.cols, 2 * x.ld, 0};
}

// The product by own kernels. In bfloat16, the operands are pairs.
void multiply_own(const Finish& finish, const ConstMatrix& a, const ConstMatrix& b, Precision precision,
                  cudaStream_t stream) {
  const int64_t m = a.height(), n = b.width(), depth = a.width();
  const dim3 grid(static_cast<unsigned>(ceil_div(n, kTile)), static_cast<unsigned>(ceil_div(m, kTile)));
  if (precision == Precision::kFloat32) {
    const Floats left{a.data, a.transposed ? 1 : a.ld, a.transposed ? a.ld : 1, m};
    const Floats right{b.data, b.transposed ? b.ld : 1, b.transposed ? 1 : b.ld, n};
    return Kernel{multiply_float32, grid, kThreads, stream}(finish, left, right, m, n, depth);
  }
  const auto multiply = [&](auto deep_a, auto deep_b) {
    constexpr bool kDeepA = decltype(deep_a)::value, kDeepB = decltype(deep_b)::value;
    Kernel{multiply_bfloat16<kDeepA, kDeepB>, grid, kThreads, stream}(finish, tiles_of<kDeepA>(a), tiles_of<kDeepB>(b),
                                                                      m, n, depth);
  };
  const auto with_a = [&](auto deep_b) {
    a.transposed ? multiply(std::false_type{}, deep_b) : multiply(std::true_type{}, deep_b);
  };
  b.transposed ? with_a(std::true_type{}) : with_a(std::false_type{});
}

// The product by `large`, with its epilogue; false: it has no algorithm, and nothing is done.
bool multiply_large(Cublas& large, const Matrix& c, const ConstMatrix& a, const ConstMatrix& b, const Epilogue& e,
                    const Finish& finish, Precision precision, float* workspace, cudaStream_t stream) {
  if (e.symmetric) return false;  // own kernels make half of it
  if (plain(c, e)) return large.multiply(c, a, b, e.accumulate, workspace, stream);
  const int64_t n = c.cols, ld = staged_ld(n), most = staged_rows(large, c.rows, n);
  float* const staged = workspace + Cublas::kWorkspaceFloats;
  for (int64_t first = 0; first < c.rows; first += most) {
    const int64_t rows = std::min(most, c.rows - first);
    ConstMatrix part = a;
    part.data = a.transposed ? a.at(0, first) : a.at(first, 0);
    (a.transposed ? part.cols : part.rows) = rows;
    const Matrix product{staged, rows, n, ld};
    if (!large.multiply(product, part, b, false, workspace, stream)) {
      if (first == 0) return false;
      multiply_own(finish_of(product, {}), part, b, precision, stream);  // the last rows are fewer
    }
    Kernel{finish_rows, dim3(static_cast<unsigned>(rows)), kThreads, stream}(finish, staged, ld, first, n);
  }
  return true;
}

// The operand as pairs: itself, or rounded into `scratch`.
ConstMatrix as_pairs(const ConstMatrix& x, float* scratch, cudaStream_t stream) {
  if (x.pairs) return x;
  const Matrix rounded = Operands{.pairs = true}.matrix(scratch, x.rows, x.cols);
  scale(rounded, x, 1.0f, stream);
  ConstMatrix kept = rounded;
  kept.transposed = x.transposed;
  return kept;
}

}  // namespace

int64_t matmul_floats(ConstMatrix a, ConstMatrix b, const Epilogue& e, Precision precision, const Cublas* large) {
  return scratch_of(a, b, e, precision, large).all();
}

void matmul(Matrix c, ConstMatrix a, ConstMatrix b, const Epilogue& e, Precision precision, float* scratch,
            cudaStream_t stream, Cublas* large) {
  const int64_t m = c.rows;
  if (m == 0 || c.cols == 0) return;
  if (e.column_sums != nullptr && b.transposed) throw std::invalid_argument("CUDA: column sums of a transposed matrix");
  const Scratch s = scratch_of(a, b, e, precision, large);
  float* const rounded = scratch + s.workspace + s.staged;
  const Finish finish = finish_of(c, e);
  if (precision == Precision::kBfloat16) {
    a = as_pairs(a, rounded, stream);
    b = as_pairs(b, rounded + s.a, stream);
  }
  if (large == nullptr || !multiply_large(*large, c, a, b, e, finish, precision, scratch, stream)) {
    multiply_own(finish, a, b, precision, stream);
  }
  if (e.column_sums != nullptr) sum_rows(e.column_sums, b, rounded + s.a + s.b, stream);
  if (e.swiglu != nullptr) swiglu(*e.swiglu, c, stream);
  if (e.rotated != nullptr) rotate(*e.rotated, c, stream);
  const Rows rotated = e.rotated != nullptr ? Rows(e.rotated->qkv) : Rows();
  for (const Rows& y : {finish.c, finish.gelu, finish.gelu_output, finish.d_hidden, finish.swiglu_output, rotated}) {
    if (y.data != nullptr && y.pairs && y.cols % 32 != 0) {
      Kernel{clear_padding, grid_of_rows(m), kThreads, stream}(y, m);
    }
  }
}

}  // namespace soma::cuda
