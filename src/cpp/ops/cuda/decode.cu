// Generation: packing, embeddings, and products of few rows. A warp makes one output of up to eight rows, so that
// weights are read once and in order.
#include "ops/cuda/decode.h"

#include "ops/cuda/epilogue.h"

namespace soma::cuda {
namespace {

constexpr int kNumbers = 4, kDepth = 32 * kNumbers;  // neighbouring weights of a lane, and of a warp
constexpr int kMostRows = 8;                         // of a warp

// Weights by outputs: row j has those of output j.
struct Outputs {
  const char* data;
  int64_t ld;  // bytes
  __device__ const char* row(int64_t j) const { return data + j * ld; }
};

// The `count` weights from k on, at most four. Rows in bfloat16 and int8 have zeros behind the last one.
template <WeightFormat kFormat>
__device__ inline void load_weights(float (&w)[kNumbers], const char* row, int64_t k, int64_t count) {
  if constexpr (kFormat == WeightFormat::kFloat32) {
    const float* const p = reinterpret_cast<const float*>(row) + k;
    const float2 a = read_two(p, count > 1), b = count > 2 ? read_two(p + 2, count > 3) : float2{0, 0};
    w[0] = a.x, w[1] = a.y, w[2] = b.x, w[3] = b.y;
  } else if constexpr (kFormat == WeightFormat::kBfloat16) {
    const float2 p = load_2(reinterpret_cast<const float*>(row) + k / 2);
    const uint32_t a = __float_as_uint(p.x), b = __float_as_uint(p.y);
    w[0] = low_of(a), w[1] = high_of(a), w[2] = low_of(b), w[3] = high_of(b);
  } else {
    const uint32_t bytes = *reinterpret_cast<const uint32_t*>(row + k);
    SOMA_UNROLL
    for (int i = 0; i < kNumbers; ++i) w[i] = static_cast<float>(static_cast<int8_t>(bytes >> 8 * i));
  }
}

__device__ inline int64_t at_most_four(int64_t n) { return n < kNumbers ? n : kNumbers; }

// Calls f with the format as a constant.
template <typename F>
void with_format(WeightFormat format, F f) {
  switch (format) {
    case WeightFormat::kFloat32:
      return f(std::integral_constant<WeightFormat, WeightFormat::kFloat32>());
    case WeightFormat::kBfloat16:
      return f(std::integral_constant<WeightFormat, WeightFormat::kBfloat16>());
    case WeightFormat::kInt8:
      return f(std::integral_constant<WeightFormat, WeightFormat::kInt8>());
  }
}

// One warp an output. Element k of output j is w[j * along + k * deep].
template <WeightFormat kFormat>
__global__ void __launch_bounds__(kThreads) pack_outputs(float* packed, float* scales, int64_t ld, const float* w,
                                                         int64_t along, int64_t deep, int64_t outer, int64_t inner) {
  const int64_t j = row_of_warp(), lane = threadIdx.x % 32;
  if (j >= outer) return;
  const auto weight = [&](int64_t k) { return k < inner ? w[j * along + k * deep] : 0.0f; };
  float* const row = packed + j * ld;
  float inverse = 0.0f;
  if constexpr (kFormat == WeightFormat::kInt8) {
    float most = 0.0f, infinite = 0.0f;
    for (int64_t k = lane; k < inner; k += 32) {
      const float x = weight(k);
      most = larger(fabsf(x), most);
      infinite += 0.0f * x;  // NaN once a weight is not finite
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) most = larger(__shfl_xor_sync(kAllLanes, most, lanes), most);
    const float scale = most / 127.0f + warp_sum(infinite);
    if (lane == 0) scales[j] = scale;
    inverse = 1.0f / scale;
    if (!(inverse - inverse == 0.0f)) inverse = 0.0f;  // the weights are 0, or too small to scale
  }
  const auto rounded = [&](int64_t k) {
    const float q = inverse == 0.0f ? 0.0f : weight(k) * inverse;
    return static_cast<uint32_t>(static_cast<int>(rintf(smaller(127.0f, larger(-127.0f, q))))) & 0xffu;
  };
  for (int64_t i = lane; i < ld; i += 32) {
    if constexpr (kFormat == WeightFormat::kFloat32) {
      row[i] = weight(i);
    } else if constexpr (kFormat == WeightFormat::kBfloat16) {
      row[i] = __uint_as_float(pair_of(weight(2 * i), weight(2 * i + 1)));
    } else {
      const int64_t k = 4 * i;
      row[i] = __uint_as_float(rounded(k) | rounded(k + 1) << 8 | rounded(k + 2) << 16 | rounded(k + 3) << 24);
    }
  }
}

__global__ void __launch_bounds__(kThreads) widen_rows(Rows pairs, Outputs w, int64_t outer) {
  const int64_t j = row_of_warp(), lane = threadIdx.x % 32;
  if (j >= outer) return;
  for (int64_t k = kNumbers * lane; k < (pairs.cols + 31) / 32 * 32; k += kDepth) {  // also the zeros behind a row
    float x[kNumbers] = {};
    if (k < pairs.cols) load_weights<WeightFormat::kInt8>(x, w.row(j), k, kNumbers);
    store_2(pairs.row(j) + k / 2, {__uint_as_float(pair_of(x[0], x[1])), __uint_as_float(pair_of(x[2], x[3]))});
  }
}

struct Token {
  int32_t id, position;
};
using Tokens = VaryingList<Token, kRowsOfLaunch>;

template <WeightFormat kFormat>
__global__ void __launch_bounds__(kThreads)
    embed_tokens(Rows out, Outputs table, const float* scales, const float* wpe, Tokens tokens, int64_t rows) {
  const int64_t r = row_of_warp(), lane = threadIdx.x % 32, c = out.cols;
  if (r >= rows) return;
  const Token token = tokens[r];
  const int64_t id = token.id, position = token.position;
  const float scale = scales != nullptr ? scales[id] : 1.0f;
  for (int64_t k = kNumbers * lane; k < c; k += kDepth) {
    float x[kNumbers];
    const int64_t count = at_most_four(c - k);
    load_weights<kFormat>(x, table.row(id), k, count);
    SOMA_UNROLL
    for (int i = 0; i < kNumbers; ++i) {
      if (i >= count) continue;
      if (scales != nullptr) x[i] = scale * x[i];
      out.row(r)[k + i] = wpe != nullptr ? x[i] + wpe[position * c + k + i] : x[i];
    }
  }
}

// What comes after a sum, in the order of RowEpilogue.
struct RowFinish {
  float* y;
  int64_t ld;
  const float *scales, *bias, *residual;
  int64_t ld_residual;
  soma::Activation activation;

  __device__ void store(int64_t r, int64_t j, float v) const {
    if (scales != nullptr) v *= scales[j];
    if (bias != nullptr) v += bias[j];
    if (residual != nullptr) v += residual[r * ld_residual + j];
    if (activation == soma::Activation::kRelu) v = larger(0.0f, v);  // keeps a NaN
    if (activation == soma::Activation::kGeluTanh) v = gelu_tanh(v).y;
    if (activation == soma::Activation::kGeluErf) v = gelu_erf(v).y;
    y[r * ld + j] = v;
  }
};

RowFinish finish_of(const Matrix& y, const DecodeMatrix& w, const RowEpilogue& e) {
  const bool adds = e.residual != nullptr;
  return {y.data, y.ld, w.scales, e.bias, adds ? e.residual->data : nullptr, adds ? e.residual->ld : 0, e.activation};
}

__global__ void __launch_bounds__(kThreads) finish_rows(RowFinish finish, int64_t rows, int64_t cols) {
  const int64_t i = index_of_thread(), r = i / cols, j = i % cols;
  if (r < rows) finish.store(r, j, finish.y[r * finish.ld + j]);
}

// The rows of x that a warp takes. Those behind the last one are the first one again.
template <int kRows>
struct Inputs {
  const float* x[kRows];

  __device__ Inputs(const float* data, int64_t ld, int64_t row0, int64_t rows) {
    SOMA_UNROLL
    for (int r = 0; r < kRows; ++r) x[r] = data + (row0 + r < rows ? row0 + r : row0) * ld;
  }
  // sums[r] += x[r][k + i] w[i], in the order of i < count
  __device__ void add(float (&sums)[kRows], int64_t k, const float (&w)[kNumbers], int64_t count) const {
    SOMA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float2 a = read_two(x[r] + k, count > 1), b = count > 2 ? read_two(x[r] + k + 2, count > 3) : float2{0, 0};
      const float given[kNumbers] = {a.x, a.y, b.x, b.y};
      SOMA_UNROLL
      for (int i = 0; i < kNumbers; ++i) {
        if (i < count) sums[r] = fmaf(given[i], w[i], sums[r]);
      }
    }
  }
};

template <WeightFormat kFormat, int kRows>
__global__ void __launch_bounds__(kThreads) multiply_outputs(RowFinish finish, const float* x, int64_t ld, Outputs w,
                                                             int64_t rows, int64_t outer, int64_t inner) {
  const int64_t j = row_of_warp(), row0 = static_cast<int64_t>(blockIdx.y) * kRows, lane = threadIdx.x % 32;
  if (j >= outer) return;
  const Inputs<kRows> inputs(x, ld, row0, rows);
  const char* const row = w.row(j);
  float sums[kRows] = {}, mine = 0.0f;
  for (int64_t k = kNumbers * lane; k < inner; k += kDepth) {
    float weights[kNumbers];
    const int64_t count = at_most_four(inner - k);
    load_weights<kFormat>(weights, row, k, count);
    inputs.add(sums, k, weights, count);
  }
  SOMA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane == r) mine = sum;
  }
  if (lane < kRows && row0 + lane < rows) finish.store(row0 + lane, j, mine);
}

// Live weights w (inner, outer): a lane has an output, and a warp what lane `warp` has in multiply_outputs. The sums
// are exchanged through shared memory and added as there.
constexpr unsigned kLiveThreads = 1024;
template <int kRows>
__global__ void __launch_bounds__(kLiveThreads)
    multiply_live(RowFinish finish, const float* x, int64_t ld, const float* w, int64_t rows, int64_t outer,
                  int64_t inner) {
  SOMA_SHARED(float, partials, 32 * 33);
  const int64_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t col0 = static_cast<int64_t>(blockIdx.x) * 32, j = col0 + lane;
  const Inputs<kRows> inputs(x, ld, row0, rows);
  float sums[kRows] = {};
  for (int64_t k = kNumbers * warp; k < inner && j < outer; k += kDepth) {
    float weights[kNumbers] = {};
    const int64_t count = at_most_four(inner - k);
    SOMA_UNROLL
    for (int i = 0; i < kNumbers; ++i) {
      if (i < count) weights[i] = w[(k + i) * outer + j];
    }
    inputs.add(sums, k, weights, count);
  }
  SOMA_UNROLL
  for (int r = 0; r < kRows; ++r) {
    __syncthreads();
    partials[warp * 33 + lane] = sums[r];
    __syncthreads();
    const float sum = warp_sum(partials[lane * 33 + warp]);
    if (lane == 0 && col0 + warp < outer && row0 + r < rows) finish.store(row0 + r, col0 + warp, sum);
  }
}

Outputs outputs_of(const DecodeMatrix& w) {
  const int64_t ld = w.layout == WeightLayout::kPanels ? row_floats(w.format, w.inner) : w.inner;
  return {w.data, ld * static_cast<int64_t>(sizeof(float))};
}

// Calls f with as many rows as a warp takes, as a constant.
template <typename F>
void with_rows(int64_t rows, F f) {
  rows == 1   ? f(std::integral_constant<int, 1>())
  : rows == 2 ? f(std::integral_constant<int, 2>())
  : rows <= 4 ? f(std::integral_constant<int, 4>())
              : f(std::integral_constant<int, kMostRows>());
}

}  // namespace

int64_t row_floats(WeightFormat format, int64_t inner) {
  return format == WeightFormat::kFloat32    ? ceil_div(inner, 4) * 4
         : format == WeightFormat::kBfloat16 ? pairs_ld(inner)
                                             : ceil_div(inner, 16) * 4;
}

void pack(float* packed, float* scales, WeightFormat format, ConstMatrix w, cudaStream_t stream) {
  const int64_t inner = w.height(), outer = w.width();
  with_format(format, [&](auto f) {
    Kernel{pack_outputs<decltype(f)::value>, grid_of_rows(outer), kThreads, stream}(
        packed, scales, row_floats(format, inner), w.data, w.transposed ? w.ld : 1, w.transposed ? 1 : w.ld, outer,
        inner);
  });
}

void widen(Matrix pairs, const DecodeMatrix& w, cudaStream_t stream) {
  Kernel{widen_rows, grid_of_rows(w.outer), kThreads, stream}(pairs, outputs_of(w), w.outer);
}

void embed(Matrix out, const DecodeMatrix& table, const float* wpe, const int32_t* ids, const int64_t* positions,
           cudaStream_t stream) {
  each_launch(out.rows, [&](int64_t first, int64_t count) {
    Token list[kRowsOfLaunch];
    for (int64_t r = 0; r < count; ++r) list[r] = {ids[first + r], static_cast<int32_t>(positions[first + r])};
    const Tokens tokens(list, count);
    with_format(table.format, [&](auto f) {
      Kernel{embed_tokens<decltype(f)::value>, grid_of_rows(count), kThreads, stream}(
          out.part(first, first + count), outputs_of(table), table.scales, wpe, tokens, count);
    });
  });
}

void linear(Matrix y, ConstMatrix x, const DecodeMatrix& w, const RowEpilogue& e, cudaStream_t stream) {
  const RowFinish finish = finish_of(y, w, e);
  with_rows(x.rows, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const auto high = static_cast<unsigned>(ceil_div(x.rows, kRows));
    if (w.layout == WeightLayout::kLive) {
      const dim3 grid(static_cast<unsigned>(ceil_div(w.outer, 32)), high);
      const auto* const data = reinterpret_cast<const float*>(w.data);
      return Kernel{multiply_live<kRows>, grid, kLiveThreads, stream}(finish, x.data, x.ld, data, x.rows, w.outer,
                                                                      w.inner);
    }
    with_format(w.format, [&](auto f) {
      const dim3 grid(grid_of_rows(w.outer).x, high);
      Kernel{multiply_outputs<decltype(f)::value, kRows>, grid, kThreads, stream}(finish, x.data, x.ld, outputs_of(w),
                                                                                  x.rows, w.outer, w.inner);
    });
  });
}

void finish_linear(Matrix y, const DecodeMatrix& w, const RowEpilogue& e, cudaStream_t stream) {
  Kernel{finish_rows, grid_of(y.rows * y.cols), kThreads, stream}(finish_of(y, w, e), y.rows, y.cols);
}

}  // namespace soma::cuda
