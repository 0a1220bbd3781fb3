// The operations of optimizers one by one, for tests; see register_ops.cpp.
#include <optional>
#include <tuple>

#include "registers.h"
#include "testing/ops_arrays.h"
#include "testing/ops_operand.h"

namespace {

using namespace arrays;

double sum_squares(const Floats& x) {
  return run([&](soma::Ops& ops) { return ops.sum_squares(x.data(), x.size()); });
}

Four adamw(const Floats& p, const Floats& g, const Floats& m, const Floats& v, float lr, float beta1, float beta2,
           float eps, float weight_decay, float grad_scale, int64_t step, bool cautious) {
  expect("g", g, shape_of(p));
  expect("m", m, shape_of(p));
  expect("v", v, shape_of(p));
  check(step >= 1, "step must be at least 1, got ", step);
  Floats new_p = copy(p), new_g = copy(g), new_m = copy(m), new_v = copy(v);
  float *p_out = new_p.mutable_data(), *g_out = new_g.mutable_data();
  float *m_out = new_m.mutable_data(), *v_out = new_v.mutable_data();
  const soma::AdamWOptions options{lr, beta1, beta2, eps, grad_scale, step, weight_decay, cautious};
  const soma::AdamWRange range{0, new_p.size(), true};
  run([&](soma::Ops& ops) { ops.adamw(p_out, g_out, m_out, v_out, &range, 1, options); });
  return py::make_tuple(new_p, new_g, new_m, new_v);
}

// x x^T, or x^T x where `transposed`; with coefficients (a, b, c), x being square and symmetric, a I + b x + c x x.
Floats symmetric_product(const Floats& x, bool transposed, const std::optional<std::tuple<float, float, float>>& abc,
                         const std::string& precision, bool pairs) {
  expect_dimensions("x", x, 2);
  check(!pairs || precision == "bfloat16", "only products in bfloat16 take pairs");
  check(!abc || x.shape(0) == x.shape(1), "x must be square where there are coefficients");
  const Operand kept = Operand::of(x, pairs);
  const ConstMatrix m = kept.get(), left = transposed ? m.t() : m;
  Floats c = unset({left.height(), left.height()});
  const Matrix out = matrix(c), plain(const_cast<float*>(x.data()), x.shape(0), x.shape(1));
  soma::Quadratic quadratic{0, 0, 0, &plain};
  if (abc) std::tie(quadratic.constant, quadratic.linear, quadratic.square) = *abc;
  run(
      [&](soma::Ops& ops) {
        ops.matmul(out, left, abc ? m : left.t(), {.symmetric = true, .quadratic = abc ? &quadratic : nullptr});
      },
      precision);
  return c;
}

py::typing::Tuple<Floats, Floats, py::float_> muon_momentum(const Floats& g, const Floats& m, float momentum,
                                                            float scale) {
  expect_dimensions("g", g, 2);
  expect("m", m, shape_of(g));
  Floats new_g = copy(g), new_m = copy(m);
  const Matrix g_out = matrix(new_g), m_out = matrix(new_m);
  const double sum = run([&](soma::Ops& ops) { return ops.muon_momentum(g_out, m_out, momentum, scale); });
  return py::make_tuple(new_g, new_m, sum);
}

Floats scale(const Floats& x, float s, bool pairs) {
  expect_dimensions("x", x, 2);
  Floats y = unset(shape_of(x));
  const Operand out = Operand::into(y, pairs);
  run([&](soma::Ops& ops) { ops.scale(out.get(), matrix(x), s); });
  out.finish();
  return y;
}

Pair muon(const Floats& p, const Floats& o, float lr, float scale, float weight_decay, bool cautious) {
  expect_dimensions("p", p, 2);
  expect("o", o, shape_of(p));
  Floats new_p = copy(p), new_o = copy(o);
  const Matrix p_out = matrix(new_p), o_out = matrix(new_o);
  run([&](soma::Ops& ops) { ops.muon(p_out, o_out, {lr, scale, weight_decay, cautious}); });
  return py::make_tuple(new_p, new_o);
}

Floats average(const Floats& y, const Floats& x, float rate) {
  expect("x", x, shape_of(y));
  Floats averaged = copy(y);
  float* const out = averaged.mutable_data();
  run([&](soma::Ops& ops) { ops.average(out, x.data(), rate, x.size()); });
  return averaged;
}

}  // namespace

void register_optimizer_ops(py::module_& m) {
  m.def("sum_squares", &sum_squares, py::arg("x"), "The sum of the squares.");
  m.def("adamw", &adamw, py::arg("p"), py::arg("g"), py::arg("m"), py::arg("v"), py::kw_only(), py::arg("lr"),
        py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"),
        py::arg("step"), py::arg("cautious") = false, "(p, g, m, v) after one step.");
  m.def("symmetric_product", &symmetric_product, py::arg("x"), py::kw_only(), py::arg("transposed") = false,
        py::arg("coefficients") = py::none(), py::arg("precision") = "float32", py::arg("pairs") = false,
        "x x^T, or x^T x; with coefficients (a, b, c), x being symmetric, a I + b x + c x x.");
  m.def("muon_momentum", &muon_momentum, py::arg("g"), py::arg("m"), py::kw_only(), py::arg("momentum"),
        py::arg("scale"), "(g, m, the sum of g^2) of Muon's momentum.");
  m.def("scale", &scale, py::arg("x"), py::arg("s"), py::kw_only(), py::arg("pairs") = false, "s x.");
  m.def("muon", &muon, py::arg("p"), py::arg("o"), py::kw_only(), py::arg("lr"), py::arg("scale"),
        py::arg("weight_decay"), py::arg("cautious") = false, "(p, o) after p -= lr (scale o + weight_decay p).");
  m.def("average", &average, py::arg("y"), py::arg("x"), py::arg("rate"), "y + rate (x - y).");
}
