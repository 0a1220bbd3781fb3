// Generation: attention to cached positions by parts of 256, which are joined in order.
#include "ops/cuda/decode.h"
#include "ops/cuda/rows.h"

namespace soma::cuda {
namespace {

// The place of a row in the cache, and the positions that it has.
struct Place {
  float *keys, *values;
  int64_t length;
};
using Places = VaryingList<Place, kRowsOfLaunch>;

struct Cached {
  int64_t capacity;
  int heads, kv, d;
  float scale;
};

// Where the number i of a key or of a value lies in a head, by its position. kernels::CachedHead has the layout.
struct Floats {
  __device__ static int64_t key(int64_t j, int64_t i, int64_t d) { return (j / 16 * d + i) * 16 + j % 16; }
  __device__ static int64_t value(int64_t j, int64_t i, int64_t d) { return j * d + i; }
  __device__ static float read(const float* cache, int64_t at) { return cache[at]; }
  __device__ static float2 read_two(const float* p, int64_t at, bool both) { return cuda::read_two(p + at, both); }
  __device__ static void write(float* cache, int64_t at, float x) { cache[at] = x; }
};
struct Halves {
  __device__ static int64_t key(int64_t j, int64_t i, int64_t d) {
    return ((j / 32 * d + i) * 16 + j % 16) * 2 + j % 32 / 16;
  }
  __device__ static int64_t value(int64_t j, int64_t i, int64_t d) { return (j / 2 * d + i) * 2 + j % 2; }
  __device__ static float read(const float* cache, int64_t at) {
    return __uint_as_float(uint32_t{reinterpret_cast<const uint16_t*>(cache)[at]} << 16);
  }
  __device__ static float2 read_two(const float* cache, int64_t at, bool both) {
    return {read(cache, at), both ? read(cache, at + 2) : 0.0f};
  }
  __device__ static void write(float* cache, int64_t at, float x) {
    reinterpret_cast<uint16_t*>(cache)[at] = static_cast<uint16_t>(pair_of(x, 0.0f));
  }
};

// One warp a head of a row, of all heads of q, k and v. Queries are turned in place, keys and values go to the cache.
template <typename Format>
__global__ void __launch_bounds__(kThreads)
    append_heads(Rows qkv, Places places, Cached shape, Rotation rotation, int64_t rows) {
  const int all = shape.heads + 2 * shape.kv, warp = static_cast<int>(row_of_warp());
  const int r = warp / all, head = warp % all, lane = static_cast<int>(threadIdx.x % 32), d = shape.d;
  if (r >= rows) return;
  float* const x = qkv.row(r) + head * d;
  const Place place = places[r];
  const int position = static_cast<int>(place.length), key = head - shape.heads, value = key - shape.kv;
  const int64_t start = (value >= 0 ? value : key) * shape.capacity * d;
  const auto write = [&](int i, float v) {
    if (key < 0) {
      x[i] = v;
    } else if (value < 0) {
      Format::write(place.keys, start + Format::key(position, i, d), v);
    } else {
      Format::write(place.values, start + Format::value(position, i, d), v);
    }
  };
  if (value < 0 && rotation.turns != nullptr) {
    turn_head(x, key < 0 ? rotation.q_gain : rotation.k_gain, rotation.turns + int64_t{position} * d, d, rotation.eps,
              write);
  } else if (key >= 0) {
    for (int i = lane; i < d; i += 32) write(i, x[i]);
  }
}

// What all threads of a block combine their numbers to; f combines two. Each call has a row of `of_warps` of its own.
template <typename F>
__device__ inline float over_block(float x, float* of_warps, F f) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = f(__shfl_xor_sync(kAllLanes, x, lanes), x);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warps[0];
  for (unsigned w = 1; w < kWarps; ++w) x = f(of_warps[w], x);
  return x;
}

constexpr int kColumns = 128;  // of a head at a time

// A block has a head (x) of a row (y) and a part (z) of its positions, one a thread. Without `parts` it writes to
// `out`, else the largest score, the sum of weights and the weighted values.
template <typename Format>
__global__ void __launch_bounds__(kThreads) attend_part(Rows out, float* parts, Rows qkv, Places places, Cached shape) {
  SOMA_SHARED(float, weights, kThreads);
  SOMA_SHARED(float, sums, kWarps* kColumns);
  SOMA_SHARED(float, of_warps, 2 * kWarps);
  const int64_t h = blockIdx.x, r = blockIdx.y, d = shape.d, first = static_cast<int64_t>(blockIdx.z) * kThreads;
  const Place place = places[r];
  const int64_t rest = place.length + 1 - first, n = rest < kThreads ? rest : kThreads;
  if (n <= 0) return;
  const int64_t start = (h / (shape.heads / shape.kv) * shape.capacity + first) * d;
  const float* const q = qkv.row(r) + h * d;
  const int64_t t = threadIdx.x, lane = t % 32, warp = t / 32;
  const float lowest = __uint_as_float(0xff800000u);

  float score = 0.0f;
  for (int64_t i = 0; i < d && t < n; ++i) {
    score = fmaf(q[i], Format::read(place.keys, start + Format::key(t, i, d)), score);
  }
  const float most = over_block(t < n ? score : lowest, of_warps, [](float a, float b) { return larger(a, b); });
  const float weight = t < n ? exp_of((score - most) * shape.scale) : 0.0f;
  weights[t] = weight;
  const float sum = over_block(weight, of_warps + kWarps, [](float a, float b) { return a + b; });

  float* const to =
      parts == nullptr ? out.row(r) + h * d : parts + ((r * shape.heads + h) * gridDim.z + blockIdx.z) * (d + 2) + 2;
  const float factor = parts == nullptr ? 1.0f / sum : 1.0f;
  for (int64_t c = 0; c < d; c += kColumns) {
    const int64_t count = d - c < kColumns ? d - c : kColumns;
    __syncthreads();  // the weights are there, and nobody reads the sums of the columns before
    each_two(count, static_cast<unsigned>(lane), 32, [&](int64_t i, bool both) {
      float2 mixed{0, 0};
      for (int64_t p = warp * 32; p < warp * 32 + 32 && p < n; ++p) {
        const float2 v = Format::read_two(place.values, start + Format::value(p, c + i, d), both);
        mixed = {fmaf(weights[p], v.x, mixed.x), fmaf(weights[p], v.y, mixed.y)};
      }
      write_two(sums + warp * kColumns + i, mixed, both);
    });
    __syncthreads();
    if (t >= count) continue;
    float mixed = 0.0f;
    for (unsigned w = 0; w < kWarps; ++w) mixed += sums[w * kColumns + t];
    to[c + t] = mixed * factor;
  }
  if (parts != nullptr && t == 0) to[-2] = most, to[-1] = sum;
}

// One warp a head of a row.
__global__ void __launch_bounds__(kThreads)
    join_parts(Rows out, const float* parts, Places places, Cached shape, int64_t most_parts, int64_t rows) {
  const int64_t r = row_of_warp() / shape.heads, h = row_of_warp() % shape.heads, d = shape.d;
  if (r >= rows) return;
  const float* const first = parts + row_of_warp() * most_parts * (d + 2);
  const float* const end = first + (places[r].length / kThreads + 1) * (d + 2);
  float most = first[0], sum = 0.0f;
  for (const float* p = first; p < end; p += d + 2) most = larger(p[0], most);
  const auto factor = [&](const float* p) { return exp_of((p[0] - most) * shape.scale); };
  for (const float* p = first; p < end; p += d + 2) sum = fmaf(p[1], factor(p), sum);
  const float share = 1.0f / sum;
  for (int64_t i = threadIdx.x % 32; i < d; i += 32) {
    float mixed = 0.0f;
    for (const float* p = first; p < end; p += d + 2) mixed = fmaf(p[2 + i], factor(p), mixed);
    out.row(r)[h * d + i] = mixed * share;
  }
}

int64_t parts_of(int64_t rows, const CacheRow* cache) {
  int64_t longest = 0;
  for (const CacheRow* row = cache; row < cache + rows; ++row) longest = std::max(longest, row->length + 1);
  return ceil_div(longest, kThreads);
}

}  // namespace

int64_t attention_floats(int64_t rows, const CacheRow* cache, const HeadShape& s) {
  const int64_t parts = parts_of(rows, cache);
  return parts > 1 ? std::min<int64_t>(rows, kRowsOfLaunch) * s.heads * parts * (s.head_size + 2) : 0;
}

void attention(Matrix out, Matrix qkv, const CacheRow* cache, const HeadShape& s, const Rotation* rotation,
               float* scratch, cudaStream_t stream) {
  const Cached shape{cache[0].capacity, static_cast<int>(s.heads), static_cast<int>(s.kv_heads),
                     static_cast<int>(s.head_size), s.scale};
  const int64_t all = s.heads + 2 * s.kv_heads;
  each_launch(out.rows, [&](int64_t first, int64_t count) {
    Place list[kRowsOfLaunch];
    for (int64_t r = 0; r < count; ++r)
      list[r] = {cache[first + r].keys, cache[first + r].values, cache[first + r].length};
    const Places places(list, count);
    const Rows to = out.part(first, first + count), from = qkv.part(first, first + count);
    const bool halves = cache[0].format == CacheFormat::kBfloat16;
    Kernel{halves ? append_heads<Halves> : append_heads<Floats>, grid_of_rows(count * all), kThreads, stream}(
        from, places, shape, rotation != nullptr ? *rotation : Rotation{}, count);
    const int64_t parts = parts_of(count, cache + first);
    const dim3 grid(static_cast<unsigned>(s.heads), static_cast<unsigned>(count), static_cast<unsigned>(parts));
    float* const partials = parts > 1 ? scratch : nullptr;
    Kernel{halves ? attend_part<Halves> : attend_part<Floats>, grid, kThreads, stream}(to, partials, from, places,
                                                                                       shape);
    if (parts == 1) return;
    Kernel{join_parts, grid_of_rows(count * s.heads), kThreads, stream}(to, partials, places, shape, parts, count);
  });
}

}  // namespace soma::cuda
