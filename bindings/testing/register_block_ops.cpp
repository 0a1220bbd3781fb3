// Attention, rotary positions and SwiGLU, one function each, for tests. register_ops.cpp has the other operations.
#include <cmath>
#include <optional>
#include <string>

#include "testing/ops_arrays.h"
#include "testing/ops_operand.h"
#include "registers.h"

namespace {

using namespace arrays;
using MaybeInt = std::optional<int64_t>;

// The shape of attention over qkv(B, T, q | k | v).
soma::AttentionShape attention_shape(const Floats& qkv, int64_t heads, const MaybeInt& kv_heads,
                                     std::optional<float> scale = std::nullopt) {
  expect_dimensions("qkv", qkv, 3);
  const int64_t shared = kv_heads.value_or(heads);
  check(heads >= 1 && shared >= 1 && heads % shared == 0, "kv_heads must divide heads, got ", shared, " and ", heads);
  const int64_t all = heads + 2 * shared;
  check(qkv.shape(2) % all == 0, "qkv must be ", shared == heads ? "3 * heads" : "(heads + 2 * kv_heads)",
        " * head_size wide, got ", qkv.shape(2), " for ", heads, " heads");
  const int64_t head_size = qkv.shape(2) / all;
  return {qkv.shape(0), qkv.shape(1), heads,
          head_size,    shared,       scale.value_or(1.0f / std::sqrt(static_cast<float>(head_size)))};
}

void expect_even_heads(const std::string& pairs, const soma::AttentionShape& shape) {
  check(pairs.empty() || shape.head_size % 2 == 0, "pairs need heads of an even size, got ", shape.head_size);
}

soma::Rotation rotation_of(const Floats& turns, const MaybeFloats& q_gain, const MaybeFloats& k_gain, float eps,
                           const soma::AttentionShape& s) {
  check(s.head_size % 2 == 0, "rotation needs heads of an even size, got ", s.head_size);
  expect("turns", turns, {s.length, s.head_size});
  check(q_gain.has_value() == k_gain.has_value(), "q_gain and k_gain go together");
  expect("q_gain", q_gain, {s.head_size});
  expect("k_gain", k_gain, {s.head_size});
  return {turns.data(), data(q_gain), data(k_gain), eps};
}

Pair attention(const Floats& qkv, int64_t heads, const std::string& precision, const std::string& pairs,
               const MaybeInt& kv_heads, std::optional<float> scale) {
  const soma::AttentionShape shape = attention_shape(qkv, heads, kv_heads, scale);
  expect_pairs(pairs, "a", precision);
  expect_even_heads(pairs, shape);
  const Operand in = Operand::of(qkv, has(pairs, 'a'));
  Floats out = unset({shape.batch, shape.length, shape.q_dim()}), lse = unset({shape.batch, heads, shape.length});
  const Matrix result = matrix(out);
  float* saved = lse.mutable_data();
  run([&](soma::Ops& ops) { ops.attention(result, saved, in.get(), shape); }, precision);
  return py::make_tuple(out, lse);
}

py::object attention_backward(const Floats& dout, const Floats& qkv, const Floats& lse, const std::string& precision,
                              const std::string& pairs, const MaybeInt& kv_heads, const MaybeFloats& turns,
                              const MaybeFloats& before, const MaybeFloats& q_gain, const MaybeFloats& k_gain,
                              float eps, std::optional<float> scale) {
  expect_dimensions("lse", lse, 3);
  const soma::AttentionShape shape = attention_shape(qkv, lse.shape(1), kv_heads, scale);
  expect_pairs(pairs, "ac", precision);
  expect_even_heads(pairs, shape);
  expect("lse", lse, {shape.batch, shape.heads, shape.length});
  expect("dout", dout, {shape.batch, shape.length, shape.q_dim()});
  expect("before", before, shape_of(qkv));
  check(before.has_value() == q_gain.has_value() && (turns || !q_gain), "q_gain goes with before and turns");
  Floats dqkv = unset(shape_of(qkv)), out = unset(shape_of(dout)), again = unset(shape_of(lse));
  Floats dq_gain = unset({shape.batch * shape.heads, shape.head_size});
  Floats dk_gain = unset({shape.batch * shape.kv_heads, shape.head_size});
  const Operand result = Operand::into(dqkv, has(pairs, 'c')), in = Operand::of(qkv, has(pairs, 'a'));
  const soma::RotationGradient rotated{turns ? rotation_of(*turns, q_gain, k_gain, eps, shape) : soma::Rotation{},
                                       before ? matrix(*before) : ConstMatrix(nullptr, 0, 0), dq_gain.mutable_data(),
                                       dk_gain.mutable_data()};
  run(
      [&](soma::Ops& ops) {
        ops.attention(matrix(out), again.mutable_data(), in.get(), shape);
        ops.attention_backward(result.get(), matrix(dout), matrix(out), in.get(), lse.data(), shape,
                               turns ? &rotated : nullptr);
      },
      precision);
  result.finish();
  if (!q_gain) return dqkv;
  return py::make_tuple(dqkv, dq_gain, dk_gain);
}

// (x w, the same with q and k rotated) for x (B, T, K).
Pair rotated_product(const Floats& x, const Floats& w, const Floats& turns, int64_t heads, const MaybeInt& kv_heads,
                     const MaybeFloats& q_gain, const MaybeFloats& k_gain, float eps, const std::string& precision,
                     const std::string& pairs) {
  expect_dimensions("x", x, 3);
  expect("w", w, {x.shape(2), w.shape(w.ndim() - 1)});
  expect_pairs(pairs, "c", precision);
  Floats c = unset({x.shape(0), x.shape(1), w.shape(1)}), qkv = unset(shape_of(c));
  const soma::AttentionShape shape = attention_shape(c, heads, kv_heads);
  const Operand out = Operand::into(qkv, has(pairs, 'c'));
  const bool in_place = !q_gain && !out.get().pairs;
  const Matrix before = in_place ? out.get() : matrix(c);
  const soma::RotatedHeads rotated{rotation_of(turns, q_gain, k_gain, eps, shape), shape, out.get()};
  run([&](soma::Ops& ops) { ops.matmul(before, matrix(x), matrix(w), {.rotated = &rotated}); }, precision);
  out.finish();
  return py::make_tuple(c, qkv);
}

// (x w, silu(gate) up) for x w = gate | up.
Pair swiglu_product(const Floats& x, const Floats& w, const std::string& precision, const std::string& pairs) {
  expect_dimensions("x", x, 2);
  expect("w", w, {x.shape(1), w.shape(w.ndim() - 1)});
  check(w.shape(1) % 2 == 0, "w must have an even number of columns, got ", w.shape(1));
  expect_pairs(pairs, "y", precision);
  Floats hidden = unset({x.shape(0), w.shape(1)}), y = unset({x.shape(0), w.shape(1) / 2});
  const Matrix out = matrix(hidden);
  const Operand activated = Operand::into(y, has(pairs, 'y'));
  run([&](soma::Ops& ops) { ops.matmul(out, matrix(x), matrix(w), {.swiglu = &activated.get()}); }, precision);
  activated.finish();
  return py::make_tuple(hidden, y);
}

// (the gradient of hidden, silu(gate) up again) where x w is the gradient of silu(gate) up.
Pair swiglu_gradient_product(const Floats& x, const Floats& w, const Floats& hidden, const std::string& precision,
                             const std::string& pairs) {
  expect_dimensions("x", x, 2);
  expect("w", w, {x.shape(1), w.shape(w.ndim() - 1)});
  expect("hidden", hidden, {x.shape(0), 2 * w.shape(1)});
  expect_pairs(pairs, "cy", precision);
  check(!has(pairs, 'c') || w.shape(1) % 2 == 0, "pairs need an even number of columns, got ", w.shape(1));
  Floats d_hidden = unset(shape_of(hidden)), y = unset({x.shape(0), w.shape(1)});
  const Operand gradient = Operand::into(d_hidden, has(pairs, 'c')), activated = Operand::into(y, has(pairs, 'y'));
  const soma::SwigluGradient through{matrix(hidden), gradient.get(), activated.get()};
  run(
      [&](soma::Ops& ops) {
        ops.matmul({nullptr, x.shape(0), w.shape(1)}, matrix(x), matrix(w), {.swiglu_gradient = &through});
      },
      precision);
  gradient.finish();
  activated.finish();
  return py::make_tuple(d_hidden, y);
}

}  // namespace

void register_block_ops(py::module_& m) {
  const auto none = py::none();
  m.def("attention", &attention, py::arg("qkv"), py::arg("heads"), py::arg("precision") = "float32",
        py::arg("pairs") = "", py::arg("kv_heads") = none, py::arg("scale") = none,
        "(out (B, T, H*D), log-sum-exp of the scaled scores (B, H, T)) of causal attention over qkv (B, T, q | k | v); "
        "scale is 1 / sqrt(D) where it is not given.");
  m.def("attention_backward", &attention_backward, py::arg("dout"), py::arg("qkv"), py::arg("lse"),
        py::arg("precision") = "float32", py::arg("pairs") = "", py::arg("kv_heads") = none, py::kw_only(),
        py::arg("turns") = none, py::arg("before") = none, py::arg("q_gain") = none, py::arg("k_gain") = none,
        py::arg("eps") = 0.0f, py::arg("scale") = none,
        "dqkv, from the results of attention. With turns, dqkv is the gradient before the rotation. With gains, (dqkv, "
        "gradients of q_gain by head of queries, of k_gain by head of keys).");
  m.def("rotated_product", &rotated_product, py::arg("x"), py::arg("w"), py::arg("turns"), py::arg("heads"),
        py::kw_only(), py::arg("kv_heads") = none, py::arg("q_gain") = none, py::arg("k_gain") = none,
        py::arg("eps") = 0.0f, py::arg("precision") = "float32", py::arg("pairs") = "",
        "(x w = q | k | v, unset where it is rotated in place; the same, heads of q and k normed and rotated).");
  m.def("swiglu_product", &swiglu_product, py::arg("x"), py::arg("w"), py::kw_only(), py::arg("precision") = "float32",
        py::arg("pairs") = "", "(x w = gate | up, silu(gate) up).");
  m.def("swiglu_gradient_product", &swiglu_gradient_product, py::arg("x"), py::arg("w"), py::arg("hidden"),
        py::kw_only(), py::arg("precision") = "float32", py::arg("pairs") = "",
        "(the gradient of hidden = gate | up, silu(gate) up) where x w is the gradient of silu(gate) up.");
}
