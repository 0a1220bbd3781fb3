// The operations of ops/ops.h one by one, for tests: a mistake of a kernel shows here by name and at its own size.
// Every function returns new arrays; those an operation must fill hold NaN before, so that what it forgets is seen.
#include <string>
#include <vector>

#include "ops/ceilings.h"
#include "ops_arrays.h"
#include "registers.h"

namespace {

using namespace arrays;

Floats matmul(const Floats& a, const Floats& b, const std::string& layout, const MaybeFloats& bias,
              const MaybeFloats& residual, bool relu, const MaybeFloats& onto, const std::string& precision) {
  expect_dimensions("a", a, 2);
  expect_dimensions("b", b, 2);
  check(layout == "nn" || layout == "nt" || layout == "tn", "layout must be 'nn', 'nt' or 'tn', got '", layout, "'");
  const ConstMatrix left = layout == "tn" ? matrix(a).t() : matrix(a);
  const ConstMatrix right = layout == "nt" ? matrix(b).t() : matrix(b);
  check(left.width() == right.height(), "a and b must share their inner size, got ", left.width(), " and ",
        right.height());
  check(left.width() >= 1, "the inner size must be at least 1");
  const Shape shape{left.height(), right.width()};
  expect("bias", bias, {shape[1]});
  expect("residual", residual, shape);
  expect("onto", onto, shape);
  check(!onto || !(bias || residual || relu), "onto goes with no bias, residual or relu");
  Floats c = onto ? copy(*onto) : unset(shape);
  const Matrix out(c.mutable_data(), shape[0], shape[1]);
  const soma::Epilogue epilogue{
      .bias = data(bias), .residual = data(residual), .relu = relu, .accumulate = onto.has_value()};
  run([&](soma::Ops& ops) { ops.matmul(out, left, right, epilogue); }, precision);
  return c;
}

// The sums that a product takes of its second operand on the way: x(M, N) stands second in an (1, M) (M, N) product.
Floats column_sum(const Floats& x, const Floats& onto) {
  expect_dimensions("x", x, 2);
  check(x.shape(0) >= 1, "x has no rows: a matrix product sums at least one term");
  expect("onto", onto, {x.shape(1)});
  Floats sums = copy(onto);
  std::vector<float> ones(static_cast<std::size_t>(x.shape(0)), 1.0f), product(static_cast<std::size_t>(x.shape(1)));
  const soma::Epilogue epilogue{.column_sums = sums.mutable_data()};
  run([&](soma::Ops& ops) {
    ops.matmul({product.data(), 1, x.shape(1)}, ConstMatrix(ones.data(), 1, x.shape(0)), matrix(x), epilogue);
  });
  return sums;
}

Triple norm(const Floats& x, float eps, const MaybeFloats& gamma, const MaybeFloats& beta, bool in_place) {
  expect_dimensions("x", x, 2);
  check(gamma.has_value() == beta.has_value(), "gamma and beta go together");
  expect("gamma", gamma, {x.shape(1)});
  expect("beta", beta, {x.shape(1)});
  Floats y = in_place ? copy(x) : unset(shape_of(x)), mean = unset({x.shape(0)}), rstd = unset({x.shape(0)});
  const Matrix out = matrix(y);
  const soma::NormStats saved{mean.mutable_data(), rstd.mutable_data()};
  const ConstMatrix in = in_place ? ConstMatrix(out) : matrix(x);
  run([&](soma::Ops& ops) { ops.norm(out, saved, in, data(gamma), data(beta), eps); });
  return py::make_tuple(y, mean, rstd);
}

// NormStats has no const; the operations that read it write nothing.
soma::NormStats stats(const float* mean, const float* rstd) {
  return {const_cast<float*>(mean), const_cast<float*>(rstd)};
}

Floats norm_backward(const Floats& dy, const Floats& x, const Floats& rstd, const MaybeFloats& mean,
                     const MaybeFloats& gamma, const MaybeFloats& onto) {
  expect_dimensions("x", x, 2);
  expect("dy", dy, shape_of(x));
  expect("rstd", rstd, {x.shape(0)});
  expect("mean", mean, {x.shape(0)});
  expect("gamma", gamma, {x.shape(1)});
  expect("onto", onto, shape_of(x));
  Floats dx = onto ? copy(*onto) : unset(shape_of(x));
  const Matrix out = matrix(dx);
  run([&](soma::Ops& ops) {
    ops.norm_backward(out, matrix(dy), matrix(x), stats(data(mean), rstd.data()), data(gamma),
                      onto ? out.data : nullptr);
  });
  return dx;
}

Pair norm_grad(const Floats& dy, const Floats& x, const Floats& mean, const Floats& rstd, const Floats& dgamma,
               const Floats& dbeta) {
  expect_dimensions("x", x, 2);
  expect("dy", dy, shape_of(x));
  expect("mean", mean, {x.shape(0)});
  expect("rstd", rstd, {x.shape(0)});
  expect("dgamma", dgamma, {x.shape(1)});
  expect("dbeta", dbeta, {x.shape(1)});
  Floats gamma = copy(dgamma), beta = copy(dbeta);
  float *gamma_out = gamma.mutable_data(), *beta_out = beta.mutable_data();
  run([&](soma::Ops& ops) {
    ops.norm_grad(gamma_out, beta_out, matrix(dy), matrix(x), stats(mean.data(), rstd.data()));
  });
  return py::make_tuple(gamma, beta);
}

// What a matrix product does to its result: the product here is one row, 1 * x. `epilogue` gets the place of a second
// result.
template <typename MakeEpilogue>
Pair through_epilogue(const Floats& x, const Floats& other, MakeEpilogue&& make_epilogue) {
  expect("the other operand", other, shape_of(x));
  Floats y = unset(shape_of(x)), second = unset(shape_of(x));
  const Matrix out(y.mutable_data(), 1, y.size());
  const Matrix second_out(second.mutable_data(), 1, y.size());
  const soma::Epilogue epilogue = make_epilogue(second_out);
  const float one = 1.0f;
  run([&](soma::Ops& ops) { ops.matmul(out, ConstMatrix(&one, 1, 1), ConstMatrix(x.data(), 1, x.size()), epilogue); });
  return py::make_tuple(y, second);
}

Pair gelu_backward(const Floats& dy, const Floats& x) {
  return through_epilogue(dy, x,
                          [&](const Matrix& y) { return soma::Epilogue{.gelu_input = x.data(), .gelu_output = &y}; });
}

Floats relu_backward(const Floats& dy, const Floats& y) {
  const ConstMatrix output(y.data(), 1, y.size());
  return through_epilogue(dy, y, [&](const Matrix&) { return soma::Epilogue{.relu_output = &output}; })[py::int_(0)]
      .cast<Floats>();
}

Pair gelu(const Floats& x) {
  expect_dimensions("x", x, 2);
  return through_epilogue(x, x, [](const Matrix& gelu) { return soma::Epilogue{.gelu = &gelu}; });
}

soma::AttentionShape attention_shape(const Floats& qkv, int64_t heads) {
  expect_dimensions("qkv", qkv, 3);
  check(heads >= 1 && qkv.shape(2) % (3 * heads) == 0, "qkv must be 3 * heads * head_size wide, got ", qkv.shape(2),
        " for ", heads, " heads");
  return {qkv.shape(0), qkv.shape(1), heads, qkv.shape(2) / 3 / heads};
}

Pair attention(const Floats& qkv, int64_t heads, const std::string& precision) {
  const soma::AttentionShape shape = attention_shape(qkv, heads);
  Floats out = unset({shape.batch, shape.length, shape.channels()}), lse = unset({shape.batch, heads, shape.length});
  const Matrix result = matrix(out);
  float* saved = lse.mutable_data();
  run([&](soma::Ops& ops) { ops.attention(result, saved, matrix(qkv), shape); }, precision);
  return py::make_tuple(out, lse);
}

Floats attention_backward(const Floats& dout, const Floats& qkv, const Floats& out, const Floats& lse,
                          const std::string& precision) {
  expect_dimensions("lse", lse, 3);
  const soma::AttentionShape shape = attention_shape(qkv, lse.shape(1));
  expect("lse", lse, {shape.batch, shape.heads, shape.length});
  expect("dout", dout, {shape.batch, shape.length, shape.channels()});
  expect("out", out, shape_of(dout));
  Floats dqkv = unset(shape_of(qkv));
  const Matrix result = matrix(dqkv);
  run(
      [&](soma::Ops& ops) {
        ops.attention_backward(result, matrix(dout), matrix(qkv), matrix(out), lse.data(), shape);
      },
      precision);
  return dqkv;
}

void expect_embedding(const Ids& ids, const Floats& wte, const Floats& wpe) {
  expect_dimensions("ids", ids, 2);
  expect_dimensions("wte", wte, 2);
  expect("wpe", wpe, {wpe.shape(0), wte.shape(1)});
  check(ids.shape(1) <= wpe.shape(0), "ids are ", ids.shape(1), " long, but there are ", wpe.shape(0), " positions");
  expect_ids("ids", ids, wte.shape(0), false);
}

Floats embed(const Ids& ids, const Floats& wte, const Floats& wpe) {
  expect_embedding(ids, wte, wpe);
  Floats out = unset({ids.shape(0), ids.shape(1), wte.shape(1)});
  const Matrix result = matrix(out);
  run([&](soma::Ops& ops) { ops.embed(result, ids.data(), matrix(wte), matrix(wpe), ids.shape(1)); });
  return out;
}

Pair embed_backward(const Floats& dout, const Ids& ids, const Floats& dwte, const Floats& dwpe) {
  expect_embedding(ids, dwte, dwpe);
  expect("dout", dout, {ids.shape(0), ids.shape(1), dwte.shape(1)});
  Floats tokens = copy(dwte), positions = copy(dwpe);
  const Matrix token_out = matrix(tokens), position_out = matrix(positions);
  run([&](soma::Ops& ops) { ops.embed_backward(token_out, position_out, matrix(dout), ids.data(), ids.shape(1)); });
  return py::make_tuple(tokens, positions);
}

Pair cross_entropy(const Floats& logits, const Ids& targets, float grad_scale) {
  expect_dimensions("logits", logits, 2);
  expect("targets", targets, {logits.shape(0)});
  expect_ids("targets", targets, logits.shape(1), true);
  Floats gradient = copy(logits), losses = unset({logits.shape(0)});
  const Matrix result = matrix(gradient);
  float* out = losses.mutable_data();
  run([&](soma::Ops& ops) { ops.cross_entropy(out, result, targets.data(), grad_scale, result); });
  return py::make_tuple(losses, gradient);
}

double sum_squares(const Floats& x) {
  return run([&](soma::Ops& ops) { return ops.sum_squares(x.data(), x.size()); });
}

Four adamw(const Floats& p, const Floats& g, const Floats& m, const Floats& v, float lr, float beta1, float beta2,
           float eps, float weight_decay, float grad_scale, int64_t step) {
  expect("g", g, shape_of(p));
  expect("m", m, shape_of(p));
  expect("v", v, shape_of(p));
  check(step >= 1, "step must be at least 1, got ", step);
  Floats new_p = copy(p), new_g = copy(g), new_m = copy(m), new_v = copy(v);
  float *p_out = new_p.mutable_data(), *g_out = new_g.mutable_data();
  float *m_out = new_m.mutable_data(), *v_out = new_v.mutable_data();
  const soma::AdamWOptions options{lr, beta1, beta2, eps, grad_scale, step};
  const soma::AdamWRange range{0, new_p.size(), weight_decay};
  run([&](soma::Ops& ops) { ops.adamw(p_out, g_out, m_out, v_out, &range, 1, options); });
  return py::make_tuple(new_p, new_g, new_m, new_v);
}

}  // namespace

void register_ops(py::module_& parent) {
  py::module_ m = parent.def_submodule("_ops", "Single operations of the core on float32 arrays, for its tests.");
  register_decode_ops(m);
  const auto none = py::none();
  m.def(
      "matmul", &matmul, py::arg("a"), py::arg("b"), py::kw_only(), py::arg("layout") = "nn", py::arg("bias") = none,
      py::arg("residual") = none, py::arg("relu") = false, py::arg("onto") = none, py::arg("precision") = "float32",
      "op(a) op(b) with what 't' in the layout transposes; then + bias + residual, then relu. Or onto + op(a) op(b).");
  m.def("column_sum", &column_sum, py::arg("x"), py::arg("onto"), "onto + the sum over the rows of x.");
  m.def("norm", &norm, py::arg("x"), py::kw_only(), py::arg("eps"), py::arg("gamma") = none, py::arg("beta") = none,
        py::arg("in_place") = false, "(y, mean, rstd) of a norm of every row.");
  m.def("norm_backward", &norm_backward, py::arg("dy"), py::arg("x"), py::arg("rstd"), py::kw_only(),
        py::arg("mean") = none, py::arg("gamma") = none, py::arg("onto") = none,
        "dx, or onto + dx; without mean, x is the normalised output itself.");
  m.def("norm_grad", &norm_grad, py::arg("dy"), py::arg("x"), py::arg("mean"), py::arg("rstd"), py::arg("dgamma"),
        py::arg("dbeta"), "(dgamma, dbeta) with what this batch adds.");
  m.def("gelu", &gelu, py::arg("x"), "(x, gelu(x)) in the tanh form, as a matrix product stores both.");
  m.def("gelu_backward", &gelu_backward, py::arg("dy"), py::arg("x"), "(dy gelu'(x), gelu(x)).");
  m.def("relu_backward", &relu_backward, py::arg("dy"), py::arg("y"), "dy where y > 0, else 0.");
  m.def("attention", &attention, py::arg("qkv"), py::arg("heads"), py::arg("precision") = "float32",
        "(out (B, T, C), log-sum-exp of the scaled scores (B, H, T)) of causal attention over qkv (B, T, 3C).");
  m.def("attention_backward", &attention_backward, py::arg("dout"), py::arg("qkv"), py::arg("out"), py::arg("lse"),
        py::arg("precision") = "float32", "dqkv, from what attention returned.");
  m.def("embed", &embed, py::arg("ids"), py::arg("wte"), py::arg("wpe"), "wte[ids] + wpe[position], (B, T, C).");
  m.def("embed_backward", &embed_backward, py::arg("dout"), py::arg("ids"), py::arg("dwte"), py::arg("dwpe"),
        "(dwte, dwpe) with what this batch adds.");
  m.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"), py::arg("grad_scale") = 0.0f,
        "(losses (M), grad_scale (softmax - onehot)); the logits as they were where grad_scale is 0.");
  m.def(
      "multiply_add_registers",
      [](const std::string& precision, int64_t rounds) {
        float values[3] = {1.0f, 1.0f, 0.0f};
        const double operations = soma::multiply_add_registers(parse_precision(precision), values, rounds);
        return std::make_pair(operations, values[2]);
      },
      py::arg("precision"), py::arg("rounds"), "(floating-point operations, what all sums add up to) for ones.");
  m.def("sum_squares", &sum_squares, py::arg("x"), "The sum of the squares.");
  m.def("adamw", &adamw, py::arg("p"), py::arg("g"), py::arg("m"), py::arg("v"), py::kw_only(), py::arg("lr"),
        py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"),
        py::arg("step"), "(p, g, m, v) after one step.");
}
