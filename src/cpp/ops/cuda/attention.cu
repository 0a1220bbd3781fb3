// Causal attention and its gradient by tiles (FlashAttention-2, Dao 2023): scores exist in registers alone. A block has
// a tile of rows of a head and visits the tiles of columns in order. Backward runs once over rows of queries and once
// over rows of keys, and computes scores again, so that each result belongs to one block.
#include <algorithm>

#include "ops/cuda/attention_tiles.h"
#include "ops/cuda/cuda_ops.h"

namespace soma::cuda {
namespace {

// What the rows of a block are: queries in forward, and in backward queries (dq) or keys (dk and dv).
enum class Role { kForward, kQueries, kKeys };

// The columns of a matrix that heads side by side write, the first one at column `first`.
struct Results {
  Rows rows;
  int64_t first = 0;
};

struct Attention {
  // Scores are a[0] b[0]^T. Backward: gradients of probabilities are a[1] b[1]^T.
  Heads a[2]{}, b[2]{};
  Results to[2]{};
  float* lse = nullptr;  // of forward, may be null
  // Of backward: lse, and of each query the mean of the gradients of its probabilities.
  const float *saved = nullptr, *means = nullptr;
  int batch, length, heads, kv_heads, head_size, row_tiles = 0, parts = 0;
  float scale;
};

template <Role kRole, typename T>
struct Layout {
  static constexpr bool kBackward = kRole != Role::kForward;
  static constexpr int kA = T::floats(T::kRows) * (kBackward ? 2 : 1), kB = T::floats(T::kCols) * 2;
  static constexpr int kStats = kRole == Role::kKeys ? 2 * T::kCols : 0;
  // Rows of a head in one part are read once. Those of a longer head come with each step.
  __host__ __device__ static constexpr int stages_of_a(int parts) { return parts == 1 ? 1 : T::kStages; }
  __host__ __device__ static constexpr int floats(int parts) {
    return stages_of_a(parts) * kA + T::kStages * (kB + kStats) + T::kKept;
  }
};

template <typename T, typename F>
__device__ inline float over_row(float x, F f) {
  SOMA_UNROLL
  for (int lanes = T::kRowLanes / 2; lanes > 0; lanes /= 2) x = f(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

// blockIdx.y: the part of the head's columns that the block writes. A head has parts of T::kDepth columns. Scores are
// sums over all parts, the block's own part last: its tiles are then there for the results.
template <Role kRole, typename T>
__global__ void __launch_bounds__(T::kBlock) attend(Attention a) {
  using L = Layout<kRole, T>;
  constexpr bool kBackward = L::kBackward, kOfKeys = kRole == Role::kKeys;
  SOMA_DYNAMIC_SHARED(float, memory);
  const int length = a.length, d = a.head_size, parts = a.parts, part = static_cast<int>(blockIdx.y);
  const int heads = kOfKeys ? a.kv_heads : a.heads, shared = a.heads / a.kv_heads;
  const int all = a.batch * heads, tile = static_cast<int>(blockIdx.x) / all,
            index = static_cast<int>(blockIdx.x) % all;
  const int head = index % heads, sequence = index / heads;
  const int64_t first = static_cast<int64_t>(sequence) * length;
  const int row0 = (kOfKeys ? tile : a.row_tiles - 1 - tile) * T::kRows;  // the longest way first
  const int last = kOfKeys || row0 + T::kRows > length ? length : row0 + T::kRows;
  const int begin = kOfKeys ? row0 / T::kCols : 0, tiles = (last + T::kCols - 1) / T::kCols - begin;
  const int steps = (kOfKeys ? shared : 1) * tiles * parts;

  const int a_stages = L::stages_of_a(parts);
  float* const b_tiles = memory + a_stages * L::kA;
  float* const stats = b_tiles + T::kStages * L::kB;
  float* const kept = stats + T::kStages * L::kStats;
  const auto a_at = [&](int step) { return memory + step % a_stages * L::kA; };
  const auto b_at = [&](int step) { return b_tiles + step % T::kStages * L::kB; };
  const auto stats_at = [&](int step) { return stats + step % T::kStages * L::kStats; };
  const auto part_of = [&](int step) { return (part + 1 + step % parts) % parts; };
  const auto column_of = [&](int step) { return (begin + step / parts % tiles) * T::kCols; };

  const auto fetch = [&](int step) {
    if (step < steps) {
      const int now = part_of(step), col0 = column_of(step), at = now * T::kDepth;
      const int b_head = kOfKeys ? head * shared + step / parts / tiles : head / shared;
      const auto take = [&](float* to, int rows, const Heads& x, int of, int row) {
        T::fetch(to, rows, x, {first + row, length - row, x.first + static_cast<int64_t>(of) * d + at, d - at});
      };
      if (parts > 1 || step == 0) {
        take(a_at(step), T::kRows, a.a[0], head, row0);
        if (kBackward) take(a_at(step) + T::floats(T::kRows), T::kRows, a.a[1], head, row0);
      }
      take(b_at(step), T::kCols, a.b[0], b_head, col0);
      if (kBackward || now == part) take(b_at(step) + T::floats(T::kCols), T::kCols, a.b[1], b_head, col0);
      if constexpr (kOfKeys) {
        for (int i = static_cast<int>(threadIdx.x); i < T::kCols; i += static_cast<int>(T::kBlock)) {
          const int64_t from = (static_cast<int64_t>(sequence) * a.heads + b_head) * length + col0 + i;
          stats_at(step)[i] = col0 + i < length ? a.saved[from] : 0.0f;
          stats_at(step)[T::kCols + i] = col0 + i < length ? a.means[from] : 0.0f;
        }
      }
    }
    end_copies();
  };

  typename T::template Sums<T::kResults> y[kOfKeys ? 2 : 1] = {};
  typename T::template Sums<T::kScores> s, gradients;
  // Of each row. Forward: the largest score, and the thread's sum of weights. Backward: lse, and the mean gradient.
  float top[T::kMyRows], sum[T::kMyRows];
  SOMA_UNROLL
  for (int r = 0; r < T::kMyRows; ++r) {
    const int row = row0 + T::row_of(r);
    const int64_t from = static_cast<int64_t>(index) * length + row;
    const bool saved = kRole == Role::kQueries && row < length;
    top[r] = saved ? a.saved[from] : kBackward ? 0.0f : __uint_as_float(0xff800000u);
    sum[r] = saved ? a.means[from] : 0.0f;
  }

  fetch(0);
  for (int step = 0; step < steps; ++step) {
    if constexpr (T::kStages == 1) {
      __syncthreads();  // nobody reads the step before
      if (step > 0) fetch(step);
    }
    await_copies<0>();
    __syncthreads();  // the copies of all threads are there, and nobody reads the stage that is fetched next
    if constexpr (T::kStages > 1) fetch(step + 1);
    const float *const a_tile = a_at(step), *const b_tile = b_at(step);
    const float* const second = b_tile + T::floats(T::kCols);
    if (step % parts == 0) {
      s = {};
      if constexpr (kBackward) gradients = {};
    }
    T::scores(s, a_tile, b_tile);
    if constexpr (kBackward) T::scores(gradients, a_tile + T::floats(T::kRows), second);
    if (part_of(step) != part) continue;

    const int col0 = column_of(step);
    const bool whole = kOfKeys ? col0 + 1 >= row0 + T::kRows : col0 + T::kCols <= row0 + 1;
    const auto seen = [&](int r, int c) {
      const int row = row0 + T::row_of(r), col = col0 + T::score_column(c);
      return whole || (kOfKeys ? row <= col : col <= row);
    };
    if constexpr (kBackward) {
      SOMA_UNROLL
      for (int c = 0; c < T::kScores; ++c) {
        float lse = 0.0f, mean = 0.0f;
        if constexpr (kOfKeys) {
          const float* const of_column = stats_at(step) + T::score_column(c);
          lse = of_column[0], mean = of_column[T::kCols];
        }
        SOMA_UNROLL
        for (int r = 0; r < T::kMyRows; ++r) {
          const bool sees = seen(r, c);
          const float p = sees ? exp_of(fmaf(s.at(r, c), a.scale, -(kOfKeys ? lse : top[r]))) : 0.0f;
          const float apart = gradients.at(r, c) - (kOfKeys ? mean : sum[r]);
          s.at(r, c) = p;
          gradients.at(r, c) = sees ? a.scale * p * apart : 0.0f;
        }
      }
      T::results(y[0], gradients, b_tile, kept);
      if constexpr (kOfKeys) T::results(y[1], s, second, kept);
    } else {
      SOMA_UNROLL
      for (int r = 0; r < T::kMyRows; ++r) {
        float most = top[r], weights = 0.0f;
        SOMA_UNROLL
        for (int c = 0; c < T::kScores; ++c) {
          if (seen(r, c)) most = larger(s.at(r, c), most);
        }
        most = over_row<T>(most, [](float x, float other) { return larger(x, other); });
        const float before = exp_of((top[r] - most) * a.scale);
        SOMA_UNROLL
        for (int c = 0; c < T::kScores; ++c) {
          s.at(r, c) = seen(r, c) ? exp_of((s.at(r, c) - most) * a.scale) : 0.0f;
          weights += s.at(r, c);
        }
        top[r] = most;
        sum[r] = fmaf(sum[r], before, weights);
        SOMA_UNROLL
        for (int c = 0; c < T::kResults; ++c) y[0].at(r, c) *= before;
      }
      T::results(y[0], s, second, kept);
    }
  }

  SOMA_UNROLL
  for (int r = 0; r < T::kMyRows; ++r) {
    const int row = row0 + T::row_of(r);
    float factor = 1.0f;
    if constexpr (!kBackward) {
      const float whole = over_row<T>(sum[r], [](float x, float other) { return x + other; });
      factor = 1.0f / whole;
      if (a.lse != nullptr && part == 0 && row < length && T::score_column(0) == 0) {
        a.lse[static_cast<int64_t>(index) * length + row] = a.scale * top[r] + log_of(whole);
      }
    }
    if (row >= length) continue;
    SOMA_UNROLL
    for (int i = 0; i < (kOfKeys ? 2 : 1); ++i) {
      SOMA_UNROLL
      for (int c = 0; c < T::kResults; c += 2) {
        const int col = part * T::kDepth + T::result_column(c);
        const float2 v{y[i].at(r, c) * factor, y[i].at(r, c + 1) * factor};
        if (col < d)
          a.to[i].rows.write(first + row, a.to[i].first + static_cast<int64_t>(head) * d + col, v, col + 1 < d);
      }
    }
  }
}

template <Role kRole, typename T>
void launch_on(Attention a, cudaStream_t stream) {
  a.row_tiles = (a.length + T::kRows - 1) / T::kRows;
  a.parts = (a.head_size + T::kDepth - 1) / T::kDepth;
  const int64_t blocks = int64_t{a.batch} * (kRole == Role::kKeys ? a.kv_heads : a.heads) * a.row_tiles;
  const auto bytes_of = [](int parts) {
    return sizeof(float) * static_cast<std::size_t>(Layout<kRole, T>::floats(parts));
  };
  const std::size_t bytes = bytes_of(a.parts);
  // The limit is the kernel's, on all threads: one that is large enough for any other call as well.
  const auto most = static_cast<int>(bytes_of(std::max(a.parts, 2)));
  check(cudaFuncSetAttribute(attend<kRole, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(a.parts));
  Kernel{attend<kRole, T>, grid, T::kBlock, stream, bytes}(a);
}

// The tiles whose sums fit into the registers of a thread. More rows read a tile of columns less often.
template <Role kRole>
void launch(const Attention& a, Precision precision, cudaStream_t stream) {
  if (precision == Precision::kFloat32) return launch_on<kRole, FloatTiles>(a, stream);
  if (a.head_size > 64) return launch_on<kRole, TensorTiles<128, kRole == Role::kForward ? 2 : 1, 32>>(a, stream);
  launch_on<kRole, TensorTiles<64, kRole == Role::kKeys ? 1 : 2, kRole == Role::kQueries ? 32 : 64>>(a, stream);
}

// Of each query of each head: the sum of dout out, which is the mean of the gradients of its probabilities. `rounds`:
// of dout as bfloat16, which `rounded` becomes where it has memory. Zeros come behind rows of dqkv in pairs.
__global__ void __launch_bounds__(kThreads)
    mean_gradients(float* means, Rows rounded, Rows dqkv, const float* dout, int64_t ld_dout, const float* out,
                   int64_t ld_out, int64_t heads, int64_t d, int64_t length, int64_t rows, bool rounds) {
  const int64_t r = row_of_warp() / heads, h = row_of_warp() % heads;
  if (r >= rows) return;
  const float *const g = dout + r * ld_dout + h * d, *const y = out + r * ld_out + h * d;
  const float mean = row_sum(d, [&](int64_t j, bool both) {
    float2 v = read_two(g + j, both);
    const float2 x = read_two(y + j, both);
    if (rounds) {
      if (rounded.data != nullptr) rounded.write(r, h * d + j, v, both);
      const uint32_t pair = pair_of(v.x, v.y);
      v = {low_of(pair), high_of(pair)};
    }
    return fmaf(v.y, x.y, v.x * x.x);
  });
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) means[(r / length * heads + h) * length + r % length] = mean;
  if (h == 0) dqkv.finish(r, lane, 32);
}

// The rotation of the heads of q and k, backwards. Row r of dx has their gradients side by side.
struct Turn {
  Rows dqkv;
  const float *dx, *before, *turns, *q_gain, *k_gain;
  float *q_gains, *k_gains;
  int64_t ld_dx, ld_before, rows, length, heads, all, d;  // all: heads of q and k
  float eps;

  // Element j of a head's gradient in row r, turned back.
  __device__ float turned(int64_t r, int64_t h, int64_t j) const {
    const int64_t half = d / 2, i = j < half ? j : j - half;
    const float *const dy = dx + r * ld_dx + h * d, *const turn = turns + r % length * d;
    const float x = dy[i], y = dy[half + i], cosine = turn[i], sine = turn[half + i];
    return j < half ? x * cosine + y * sine : y * cosine - x * sine;
  }
  __device__ const float* input(int64_t r, int64_t h) const { return before + r * ld_before + h * d; }
  __device__ float rstd(int64_t r, int64_t h) const {  // by a warp
    const float squares = row_sum(d, [&](int64_t j, bool both) {
      const float2 v = read_two(input(r, h) + j, both);
      return v.x * v.x + v.y * v.y;
    });
    return 1.0f / sqrtf(squares / static_cast<float>(d) + eps);
  }
};

__global__ void __launch_bounds__(kThreads) turn_back(Turn t) {
  const int64_t r = row_of_warp() / t.all, h = row_of_warp() % t.all, d = t.d;
  if (r >= t.rows) return;
  const float *const gain = h < t.heads ? t.q_gain : t.k_gain, *const x = t.input(r, h);
  const float rstd = gain != nullptr ? t.rstd(r, h) : 1.0f;
  const auto through = [&](int64_t j) { return t.turned(r, h, j) * (gain != nullptr ? gain[j] : 1.0f); };
  float mean = 0.0f;
  if (gain != nullptr) {
    mean =
        row_sum(d, [&](int64_t j, bool) { return through(j) * (x[j] * rstd) + through(j + 1) * (x[j + 1] * rstd); }) /
        static_cast<float>(d);
  }
  each_two(d, threadIdx.x % 32, 32, [&](int64_t j, bool both) {
    float2 v{through(j), through(j + 1)};
    if (gain != nullptr) v = {rstd * (v.x - x[j] * rstd * mean), rstd * (v.y - x[j + 1] * rstd * mean)};
    t.dqkv.write(r, h * d + j, v, both);
  });
}

// The gradients of the gains of one head of a sequence: the sum over its rows, in order.
__global__ void __launch_bounds__(kThreads) gain_gradients(Turn t) {
  SOMA_SHARED(float, rstd, kWarps);
  const int64_t h = blockIdx.x % t.all, sequence = blockIdx.x / t.all, first = sequence * t.length;
  const int64_t j = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, warp = threadIdx.x / 32;
  float sum = 0.0f;
  for (int64_t row = 0; row < t.length; row += kWarps) {
    __syncthreads();
    if (row + warp < t.length) {
      const float mine = t.rstd(first + row + warp, h);
      if (threadIdx.x % 32 == 0) rstd[warp] = mine;
    }
    __syncthreads();
    for (int64_t i = 0; i < kWarps && row + i < t.length && j < t.d; ++i) {
      const int64_t r = first + row + i;
      sum = fmaf(t.turned(r, h, j), t.input(r, h)[j] * rstd[i], sum);
    }
  }
  if (j >= t.d) return;
  const int64_t k = h - t.heads, kv_heads = t.all - t.heads;
  float* const to = k < 0 ? t.q_gains + (sequence * t.heads + h) * t.d : t.k_gains + (sequence * kv_heads + k) * t.d;
  to[j] = sum;
}

Attention attention_of(const AttentionShape& s) {
  const auto number = [](int64_t n) { return static_cast<int>(n); };
  return {.batch = number(s.batch),
          .length = number(s.length),
          .heads = number(s.heads),
          .kv_heads = number(s.kv_heads),
          .head_size = number(s.head_size),
          .scale = s.scale};
}

// q, k and v in a row of qkv.
struct PackedHeads {
  Heads q, k, v;
};
PackedHeads heads_of(const ConstMatrix& qkv, const AttentionShape& s) {
  return {Heads(qkv, 0, s.head_size), Heads(qkv, s.q_dim(), s.head_size),
          Heads(qkv, s.q_dim() + s.kv_dim(), s.head_size)};
}

// Where in scratch what lies, in floats: dout as pairs, means, and the gradients of q | k before they are turned back.
struct Scratch {
  int64_t rounded, means, turned;
};
Scratch scratch_of(const AttentionShape& s, Precision precision, bool rotated) {
  const int64_t rows = s.batch * s.length;
  const bool rounds = precision == Precision::kBfloat16 && s.head_size % 8 == 0;
  return {.rounded = rounds ? rows * pairs_ld(s.q_dim()) : 0,
          .means = rows * s.heads,
          .turned = rotated ? rows * (s.q_dim() + s.kv_dim()) : 0};
}

}  // namespace

void attention(Matrix out, float* lse, ConstMatrix qkv, const AttentionShape& s, Precision precision,
               cudaStream_t stream) {
  if (s.batch == 0 || s.length == 0) return;
  Attention a = attention_of(s);
  const PackedHeads x = heads_of(qkv, s);
  a.a[0] = x.q, a.b[0] = x.k, a.b[1] = x.v;
  a.to[0].rows = out;
  a.lse = lse;
  launch<Role::kForward>(a, precision, stream);
}

int64_t attention_backward_floats(const AttentionShape& shape, Precision precision, bool rotated) {
  const Scratch s = scratch_of(shape, precision, rotated);
  return s.rounded + s.means + s.turned;
}

void attention_backward(Matrix dqkv, ConstMatrix dout, ConstMatrix out, ConstMatrix qkv, const float* lse,
                        const AttentionShape& s, const RotationGradient* rotated, Precision precision, float* scratch,
                        cudaStream_t stream) {
  const int64_t rows = s.batch * s.length, d = s.head_size;
  if (rows == 0) return;
  const Scratch sizes = scratch_of(s, precision, rotated != nullptr);
  float* const means = scratch + sizes.rounded;
  Matrix rounded;
  if (sizes.rounded > 0) {
    rounded = {scratch, rows, s.q_dim(), pairs_ld(s.q_dim())};
    rounded.pairs = true;
  }
  Kernel{mean_gradients, grid_of_rows(rows * s.heads), kThreads, stream}(means, rounded, dqkv, dout.data, dout.ld,
                                                                         out.data, out.ld, s.heads, d, s.length, rows,
                                                                         precision == Precision::kBfloat16);

  Attention a = attention_of(s);
  const PackedHeads x = heads_of(qkv, s);
  const Heads go(sizes.rounded > 0 ? ConstMatrix(rounded) : dout, 0, d);
  const int64_t q_and_k = s.q_dim() + s.kv_dim();
  const Matrix turned{means + sizes.means, rows, q_and_k};
  const Rows to = rotated != nullptr ? turned : dqkv;
  a.saved = lse;
  a.means = means;
  a.a[0] = x.q, a.a[1] = go, a.b[0] = x.k, a.b[1] = x.v;
  a.to[0] = {to, 0};
  launch<Role::kQueries>(a, precision, stream);
  a.a[0] = x.k, a.a[1] = x.v, a.b[0] = x.q, a.b[1] = go;
  a.to[0] = {to, s.q_dim()};
  a.to[1] = {dqkv, q_and_k};
  launch<Role::kKeys>(a, precision, stream);
  if (rotated == nullptr) return;

  const Rotation& how = rotated->rotation;
  const Turn t{.dqkv = dqkv,
               .dx = turned.data,
               .before = rotated->before.data,
               .turns = how.turns,
               .q_gain = how.q_gain,
               .k_gain = how.k_gain,
               .q_gains = rotated->q_gain,
               .k_gains = rotated->k_gain,
               .ld_dx = q_and_k,
               .ld_before = rotated->before.ld,
               .rows = rows,
               .length = s.length,
               .heads = s.heads,
               .all = s.heads + s.kv_heads,
               .d = d,
               .eps = how.eps};
  if (how.q_gain != nullptr) {
    const dim3 grid(static_cast<unsigned>(s.batch * t.all), static_cast<unsigned>(ceil_div(d, kThreads)));
    Kernel{gain_gradients, grid, kThreads, stream}(t);
  }
  Kernel{turn_back, grid_of_rows(rows * t.all), kThreads, stream}(t);
}

}  // namespace soma::cuda
