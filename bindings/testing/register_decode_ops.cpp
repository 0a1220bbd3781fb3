// The operations of ops/decode.h, one function each, for tests. register_ops.cpp has those of ops/ops.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "ops/decode.h"
#include "testing/ops_arrays.h"
#include "registers.h"

namespace {

using namespace arrays;

soma::Matrix rows_of(const Floats& x) {
  return {const_cast<float*>(x.data()), x.shape(0), x.shape(1), x.shape(1)};  // inputs are only read
}

// Runs f() on every thread of a region of at most `most` threads, without the GIL.
template <typename F>
void run_region(int64_t most, F&& f) {
  without_gil([&] { soma::parallel_region(most, f); });
}

Floats decode_linear(const Floats& x, const Floats& w, const std::string& weights, bool by_output,
                     const MaybeFloats& bias, const MaybeFloats& residual, const std::string& activation, bool prompt) {
  expect_dimensions("x", x, 2);
  expect_dimensions("w", w, 2);
  const ConstMatrix matrix_w = by_output ? matrix(w).t() : matrix(w);
  check(matrix_w.height() == x.shape(1), "x and w must share their inner size, got ", x.shape(1), " and ",
        matrix_w.height());
  const int64_t inner = matrix_w.height(), outer = matrix_w.width();
  const Shape shape{x.shape(0), outer};
  expect("bias", bias, {outer});
  expect("residual", residual, shape);
  const soma::Activation last = activation == "none" ? soma::Activation::kNone : soma::find_activation(activation);
  check(last != soma::Activation::kSilu, "no product applies 'silu' alone; use decode_swiglu");
  const bool live = weights == "live";
  const soma::WeightFormat format = live ? soma::WeightFormat::kFloat32 : parse_weight_format(weights);
  Floats y = unset(shape);
  const soma::Matrix out = rows_of(y), in = rows_of(x), added = residual ? rows_of(*residual) : out;
  const soma::RowEpilogue epilogue{data(bias), residual ? &added : nullptr, last};
  std::vector<float> packed(static_cast<std::size_t>(soma::packed_size(format, inner, outer)) + 16);
  std::vector<float> scales(static_cast<std::size_t>(outer));
  const soma::DecodeMatrix kept =
      live ? soma::live_weights(matrix_w) : soma::pack_weights(packed.data(), scales.data(), format, matrix_w);
  const int64_t threads = soma::call_threads();
  std::vector<float> panels(static_cast<std::size_t>(prompt ? threads * soma::kPromptPanels : 0));
  std::vector<float> rows(static_cast<std::size_t>(soma::prompt_floats(x.shape(0), inner)));
  const soma::PromptMemory memory{panels.data(), rows.data()};
  run_region(threads, [&](const soma::ParallelRegion& region) {
    soma::decode_linear(region, out, in, kept, epilogue, prompt ? &memory : nullptr);
  });
  return y;
}

// Converts keys and values (R, capacity, C) to the layout of the cache, or back. Bfloat16 takes the upper halves.
void to_cache_layout(Floats& cache, Floats& plain, int64_t heads, bool keys, bool back, soma::CacheFormat format) {
  const int64_t rows = plain.shape(0), capacity = plain.shape(1), channels = plain.shape(2), d = channels / heads;
  const bool halves = format == soma::CacheFormat::kBfloat16;
  const int64_t block = soma::cache_block(format);
  for (int64_t i = 0; i < rows * capacity * channels; ++i) {
    const int64_t r = i / channels / capacity, j = i / channels % capacity, h = i % channels / d, at = i % d;
    const int64_t dword = keys ? (j / block * d + at) * 16 + j % 16 : (halves ? j / 2 : j) * d + at;
    float* const cached = cache.mutable_data() + soma::cache_floats(format, (r * heads + h) * capacity, d) + dword;
    auto* const number = reinterpret_cast<char*>(plain.mutable_data() + i);
    char* const kept = reinterpret_cast<char*>(cached) + (halves ? 2 * (keys ? j % 32 / 16 : j % 2) : 0);
    char* const plain_part = number + (halves ? 2 : 0);
    std::memcpy(back ? plain_part : kept, back ? kept : plain_part, halves ? 2 : 4);
    if (back && halves) std::memset(number, 0, 2);
  }
}

Triple decode_attention(const Floats& qkv, const Floats& keys, const Floats& values, const Ids& lengths, int64_t heads,
                        const std::optional<int64_t>& kv_heads, const MaybeFloats& turns, const MaybeFloats& q_gain,
                        const MaybeFloats& k_gain, float eps, std::optional<float> scale, const std::string& kv_cache) {
  expect_dimensions("qkv", qkv, 2);
  expect_dimensions("keys", keys, 3);
  const int64_t shared = kv_heads.value_or(heads);
  check(shared >= 1 && heads >= 1 && heads % shared == 0, "kv_heads must divide heads");
  check(qkv.shape(1) % (heads + 2 * shared) == 0, "qkv must be (heads + 2 * kv_heads) * head_size wide");
  const int64_t rows = qkv.shape(0), capacity = keys.shape(1), head_size = qkv.shape(1) / (heads + 2 * shared);
  const soma::HeadShape shape{heads, head_size, shared,
                              scale.value_or(1.0f / std::sqrt(static_cast<float>(head_size)))};
  const soma::CacheFormat format = parse_cache_format(kv_cache);
  const int64_t block = soma::cache_block(format);
  check(capacity % block == 0, "keys must hold a multiple of ", block, " positions, got ", capacity);
  expect("keys", keys, {rows, capacity, shape.kv_dim()});
  expect("values", values, shape_of(keys));
  expect("lengths", lengths, {rows});
  expect_ids("lengths", lengths, capacity, false);
  expect("turns", turns, {capacity, shape.head_size});
  Floats out = unset({rows, shape.q_dim()}), k = copy(keys), v = copy(values), rotated = copy(qkv);
  Floats cached_k = unset(shape_of(k)), cached_v = unset(shape_of(v));
  to_cache_layout(cached_k, k, shared, true, false, format);
  to_cache_layout(cached_v, v, shared, false, false, format);
  std::vector<soma::CacheRow> cache;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = soma::cache_floats(format, r * capacity * shared, head_size);
    cache.push_back({cached_k.mutable_data() + at, cached_v.mutable_data() + at, lengths.data()[r], capacity, format});
  }
  const soma::Matrix result = rows_of(out), in = rows_of(rotated);
  const soma::Rotation rotation{data(turns), data(q_gain), data(k_gain), eps};
  const int64_t threads = soma::call_threads();
  std::vector<float> scores(static_cast<std::size_t>(threads * (capacity + 16)));
  run_region(threads, [&](const soma::ParallelRegion& region) {
    soma::decode_attention(region, result, in, cache.data(), shape, scores.data(), turns ? &rotation : nullptr);
  });
  to_cache_layout(cached_k, k, shared, true, true, format);
  to_cache_layout(cached_v, v, shared, false, true, format);
  return py::make_tuple(out, k, v);
}

Floats decode_swiglu(const Floats& x, const Floats& w, const std::string& weights, bool prompt) {
  expect_dimensions("x", x, 2);
  expect("w", w, {x.shape(1), w.shape(w.ndim() - 1)});
  check(w.shape(1) % 2 == 0, "w must have an even number of columns, got ", w.shape(1));
  const bool live = weights == "live";
  const soma::WeightFormat format = live ? soma::WeightFormat::kFloat32 : parse_weight_format(weights);
  const ConstMatrix matrix_w = matrix(w);
  Floats y = unset({x.shape(0), w.shape(1) / 2}), hidden = unset({x.shape(0), w.shape(1)});
  const soma::Matrix out = rows_of(y), between = rows_of(hidden), in = rows_of(x);
  std::vector<float> packed(static_cast<std::size_t>(soma::packed_size(format, w.shape(0), w.shape(1))) + 16);
  std::vector<float> scales(static_cast<std::size_t>(w.shape(1)));
  const soma::DecodeMatrix kept =
      live ? soma::live_weights(matrix_w) : soma::pack_weights(packed.data(), scales.data(), format, matrix_w);
  const int64_t threads = soma::call_threads();
  std::vector<float> panels(static_cast<std::size_t>(prompt ? threads * soma::kPromptPanels : 0));
  std::vector<float> rows(static_cast<std::size_t>(soma::prompt_floats(x.shape(0), w.shape(0))));
  const soma::PromptMemory memory{panels.data(), rows.data()};
  run_region(threads, [&](const soma::ParallelRegion& region) {
    soma::decode_swiglu(region, out, between, in, kept, prompt ? &memory : nullptr);
  });
  return y;
}

}  // namespace

void register_decode_ops(py::module_& m) {
  const auto none = py::none();
  m.def("decode_linear", &decode_linear, py::arg("x"), py::arg("w"), py::kw_only(), py::arg("weights") = "live",
        py::arg("by_output") = false, py::arg("bias") = none, py::arg("residual") = none,
        py::arg("activation") = "none", py::arg("prompt") = false,
        "x w + bias + residual, then 'relu', 'gelu_tanh' or 'gelu', as generation does it; by_output: w is (out, in).");
  m.def("decode_attention", &decode_attention, py::arg("qkv"), py::arg("keys"), py::arg("values"), py::arg("lengths"),
        py::arg("heads"), py::arg("kv_heads") = none, py::kw_only(), py::arg("turns") = none, py::arg("q_gain") = none,
        py::arg("k_gain") = none, py::arg("eps") = 0.0f, py::arg("scale") = none, py::arg("kv_cache") = "float32",
        "(out (R, H*D), keys, values (R, S, K*D)): one more position of each cached row, rotated if turns are given.");
  m.def("decode_swiglu", &decode_swiglu, py::arg("x"), py::arg("w"), py::kw_only(), py::arg("weights") = "live",
        py::arg("prompt") = false, "silu(gate) up for x w = gate | up, as generation does it.");
}
