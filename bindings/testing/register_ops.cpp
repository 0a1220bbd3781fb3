// The operations of ops/ops.h, one function each, so that a test finds a mistake of a kernel by name and size.
// Every function returns new arrays. They hold NaN until the operation fills them, so a forgotten element is seen.
#include <atomic>
#include <cmath>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "ops/ceilings.h"
#include "testing/ops_arrays.h"
#include "testing/ops_operand.h"
#include "registers.h"

namespace {

using namespace arrays;

Floats matmul(const Floats& a, const Floats& b, const std::string& layout, const MaybeFloats& bias,
              const MaybeFloats& residual, bool relu, const MaybeFloats& onto, const std::string& precision,
              const std::string& pairs, bool prepacked) {
  expect_dimensions("a", a, 2);
  expect_dimensions("b", b, 2);
  check(layout == "nn" || layout == "nt" || layout == "tn", "layout must be 'nn', 'nt' or 'tn', got '", layout, "'");
  expect_pairs(pairs, "abc", precision);
  const Operand kept_a = Operand::of(a, has(pairs, 'a')), kept_b = Operand::of(b, has(pairs, 'b'));
  const ConstMatrix stored_a = kept_a.get();
  ConstMatrix stored_b = kept_b.get();
  const ConstMatrix left = layout == "tn" ? stored_a.t() : stored_a;
  const auto right = [&] { return layout == "nt" ? stored_b.t() : stored_b; };
  check(left.width() == right().height(), "a and b must share their inner size, got ", left.width(), " and ",
        right().height());
  check(left.width() >= 1, "the inner size must be at least 1");
  const Shape shape{left.height(), right().width()};
  expect("bias", bias, {shape[1]});
  expect("residual", residual, shape);
  expect("onto", onto, shape);
  check(!onto || !(bias || residual || relu || has(pairs, 'c')),
        "onto goes with no bias, residual, relu or c in pairs");
  Floats c = onto ? copy(*onto) : unset(shape);
  const Operand out = Operand::into(c, has(pairs, 'c'));
  const soma::Epilogue epilogue{
      .bias = data(bias), .residual = data(residual), .relu = relu, .accumulate = onto.has_value()};
  std::vector<float> panels[2];
  run(
      [&](soma::Ops& ops) {
        if (prepacked) {  // in both layouts, as a training model packs it
          for (auto& p : panels) {
            const ConstMatrix m = &p == panels ? stored_b : stored_b.t();
            p.assign(static_cast<std::size_t>(ops.packed_floats(m.height(), m.width())), kNotANumber);
          }
          const soma::Packing list[] = {{stored_b, panels[0].data()}, {stored_b.t(), panels[1].data()}};
          ops.pack(list, 2);
          stored_b.panels = panels[0].data();
          stored_b.panels_transposed = panels[1].data();
        }
        ops.matmul(out.get(), left, right(), epilogue);
      },
      precision);
  out.finish();
  return c;
}

// A product with a function applied to its result: a gelu, or the gradient of a gelu or relu. Returns (c, the output of
// gelu). "relu'" reads relu's output; "gelu'" and "gelu_tanh'" read gelu's input. `y` in `pairs` is either's output.
Pair matmul_through(const Floats& a, const Floats& b, const std::string& function, const MaybeFloats& saved,
                    const std::string& precision, const std::string& pairs) {
  expect_dimensions("a", a, 2);
  expect_dimensions("b", b, 2);
  check(a.shape(1) == b.shape(0), "a and b must share their inner size, got ", a.shape(1), " and ", b.shape(0));
  const bool relu = function == "relu'", erf = function.rfind("gelu_tanh", 0) != 0, backward = function.back() == '\'';
  check(relu || function == "gelu" || function == "gelu'" || function == "gelu_tanh" || function == "gelu_tanh'",
        "no such function: '", function, "'");
  check(saved.has_value() == backward, "saved goes with a function backward");
  expect_pairs(pairs, "cy", precision);
  const Shape shape{a.shape(0), b.shape(1)};
  expect("saved", saved, shape);
  Floats c = unset(shape), y = unset(shape);
  const Operand out = Operand::into(c, has(pairs, 'c'));
  const Operand output = relu ? Operand::of(*saved, has(pairs, 'y')) : Operand::into(y, has(pairs, 'y'));
  const ConstMatrix relu_output = output.get();
  const bool through = backward && !relu;
  const soma::Epilogue epilogue{.gelu = backward ? nullptr : &output.get(),
                                .gelu_erf = erf,
                                .gelu_input = through ? data(saved) : nullptr,
                                .gelu_output = through ? &output.get() : nullptr,
                                .relu_output = relu ? &relu_output : nullptr};
  run([&](soma::Ops& ops) { ops.matmul(out.get(), matrix(a), matrix(b), epilogue); }, precision);
  out.finish();
  if (!relu) output.finish();
  return py::make_tuple(c, y);
}

using Gradients = std::vector<std::pair<Floats, MaybeFloats>>;

// For every (x, dy): onto + x^T dy. Where sums are given: sums + the sum over the rows of dy.
Gradients weight_gradients(const std::vector<std::pair<Floats, Floats>>& operands, const Gradients& onto,
                           const std::string& precision, const std::string& pairs) {
  check(!operands.empty() && operands.size() == onto.size(), "as many operands as results are needed, and at least 1");
  expect_pairs(pairs, "ab", precision);
  Gradients results;
  std::vector<Operand> kept;
  std::vector<soma::WeightGradient> list;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    const auto& [x, dy] = operands[i];
    const auto& [dw, sums] = onto[i];
    expect_dimensions("x", x, 2);
    expect("dy", dy, {operands[0].first.shape(0), dy.shape(dy.ndim() - 1)});
    expect("x", x, {operands[0].first.shape(0), x.shape(1)});
    expect("dw", dw, {x.shape(1), dy.shape(1)});
    expect("sums", sums, {dy.shape(1)});
    results.emplace_back(copy(dw), sums ? MaybeFloats(copy(*sums)) : MaybeFloats());
    kept.push_back(Operand::of(x, has(pairs, 'a')));
    kept.push_back(Operand::of(dy, has(pairs, 'b')));
    auto& [dw_out, sums_out] = results.back();
    list.push_back(
        {matrix(dw_out), kept[2 * i].get(), kept[2 * i + 1].get(), sums_out ? sums_out->mutable_data() : nullptr});
  }
  run([&](soma::Ops& ops) { ops.weight_gradients(list.data(), static_cast<int64_t>(list.size())); }, precision);
  return results;
}

// The column sums that a product takes while it packs its second operand: here x(M, N) in a (1, M) (M, N) product.
Floats column_sum(const Floats& x, const Floats& onto, const std::string& precision, bool pairs) {
  expect_dimensions("x", x, 2);
  check(x.shape(0) >= 1, "x has no rows: a matrix product sums at least one term");
  expect("onto", onto, {x.shape(1)});
  expect_pairs(pairs ? "b" : "", "b", precision);
  Floats sums = copy(onto);
  const Operand kept = Operand::of(x, pairs);
  std::vector<float> ones(static_cast<std::size_t>(x.shape(0)), 1.0f), product(static_cast<std::size_t>(x.shape(1)));
  const soma::Epilogue epilogue{.column_sums = sums.mutable_data()};
  run(
      [&](soma::Ops& ops) {
        ops.matmul({product.data(), 1, x.shape(1)}, ConstMatrix(ones.data(), 1, x.shape(0)), kept.get(), epilogue);
      },
      precision);
  return sums;
}

soma::NormWeights norm_weights(const MaybeFloats& gamma, const MaybeFloats& beta, bool rms) {
  return {data(gamma), data(beta), rms ? soma::NormKind::kRmsNorm : soma::NormKind::kLayerNorm};
}

Triple norm(const Floats& x, float eps, const MaybeFloats& gamma, const MaybeFloats& beta, bool in_place, bool pairs,
            bool rms) {
  expect_dimensions("x", x, 2);
  check(rms ? !beta : gamma.has_value() == beta.has_value(), "gamma and beta go together; RMSNorm has no beta");
  check(!(in_place && pairs), "pairs are no place for x");
  expect("gamma", gamma, {x.shape(1)});
  expect("beta", beta, {x.shape(1)});
  Floats y = in_place ? copy(x) : unset(shape_of(x)), mean = unset({x.shape(0)}), rstd = unset({x.shape(0)});
  const Operand out = Operand::into(y, pairs);
  const soma::NormStats saved{mean.mutable_data(), rstd.mutable_data()};
  const ConstMatrix in = in_place ? ConstMatrix(out.get()) : matrix(x);
  run([&](soma::Ops& ops) { ops.norm(out.get(), saved, in, norm_weights(gamma, beta, rms), eps); });
  out.finish();
  return py::make_tuple(y, mean, rstd);
}

// NormStats has no const version; the operations that read it write nothing.
soma::NormStats stats(const float* mean, const float* rstd) {
  return {const_cast<float*>(mean), const_cast<float*>(rstd)};
}

py::object norm_backward(const Floats& dy, const Floats& x, const Floats& rstd, const MaybeFloats& mean,
                         const MaybeFloats& gamma, const MaybeFloats& onto, const MaybeFloats& beta, bool pairs,
                         bool rms, bool again) {
  expect_dimensions("x", x, 2);
  expect("dy", dy, shape_of(x));
  expect("rstd", rstd, {x.shape(0)});
  expect("mean", mean, {x.shape(0)});
  expect("gamma", gamma, {x.shape(1)});
  expect("onto", onto, shape_of(x));
  expect("beta", beta, {x.shape(1)});
  check(rms ? !(mean || beta) : !beta || gamma, "beta goes with gamma; RMSNorm has neither mean nor beta");
  again = again || beta.has_value();
  check(again || !pairs, "pairs are of the output that beta asks for");
  Floats dx = onto ? copy(*onto) : unset(shape_of(x)), y = unset(shape_of(x));
  const Matrix out = matrix(dx);
  const Operand made = Operand::into(y, pairs);
  run([&](soma::Ops& ops) {
    ops.norm_backward(out, matrix(dy), matrix(x), stats(data(mean), rstd.data()), norm_weights(gamma, beta, rms),
                      onto ? out.data : nullptr, again ? &made.get() : nullptr);
  });
  if (!again) return dx;
  made.finish();
  return py::make_tuple(dx, y);
}

Floats rms_norm_grad(const Floats& dy, const Floats& x, const Floats& rstd, const Floats& dgamma) {
  expect_dimensions("x", x, 2);
  expect("dy", dy, shape_of(x));
  expect("rstd", rstd, {x.shape(0)});
  expect("dgamma", dgamma, {x.shape(1)});
  Floats gamma = copy(dgamma);
  float* out = gamma.mutable_data();
  run([&](soma::Ops& ops) {
    ops.norm_grad(out, nullptr, matrix(dy), matrix(x), stats(nullptr, rstd.data()), soma::NormKind::kRmsNorm);
  });
  return gamma;
}

Floats sum_rows(const Floats& x, const Floats& onto) {
  expect_dimensions("x", x, 2);
  expect("onto", onto, {x.shape(1)});
  Floats sums = copy(onto);
  float* out = sums.mutable_data();
  run([&](soma::Ops& ops) { ops.sum_rows(out, matrix(x)); });
  return sums;
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

// Applies an epilogue of a matrix product to x: the product is 1 * x, one row. `epilogue` gets the place of a second
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

bool is_erf(const std::string& activation) {
  check(activation == "gelu" || activation == "gelu_tanh", "activation must be 'gelu' or 'gelu_tanh', got '",
        activation, "'");
  return activation == "gelu";
}

Pair gelu_backward(const Floats& dy, const Floats& x, const std::string& activation) {
  return through_epilogue(dy, x, [&](const Matrix& y) {
    return soma::Epilogue{.gelu_erf = is_erf(activation), .gelu_input = x.data(), .gelu_output = &y};
  });
}

Floats relu_backward(const Floats& dy, const Floats& y) {
  const ConstMatrix output(y.data(), 1, y.size());
  return through_epilogue(dy, y, [&](const Matrix&) { return soma::Epilogue{.relu_output = &output}; })[py::int_(0)]
      .cast<Floats>();
}

Pair gelu(const Floats& x, const std::string& activation) {
  expect_dimensions("x", x, 2);
  return through_epilogue(
      x, x, [&](const Matrix& gelu) { return soma::Epilogue{.gelu = &gelu, .gelu_erf = is_erf(activation)}; });
}

void expect_embedding(const Ids& ids, const Floats& wte, const MaybeFloats& wpe) {
  expect_dimensions("ids", ids, 2);
  expect_dimensions("wte", wte, 2);
  expect_ids("ids", ids, wte.shape(0), false);
  if (!wpe) return;
  expect("wpe", *wpe, {wpe->shape(0), wte.shape(1)});
  check(ids.shape(1) <= wpe->shape(0), "ids are ", ids.shape(1), " long, but there are ", wpe->shape(0), " positions");
}

Floats embed(const Ids& ids, const Floats& wte, const MaybeFloats& wpe) {
  expect_embedding(ids, wte, wpe);
  Floats out = unset({ids.shape(0), ids.shape(1), wte.shape(1)});
  const Matrix result = matrix(out);
  const ConstMatrix positions = matrix(wpe ? *wpe : wte);
  run([&](soma::Ops& ops) { ops.embed(result, ids.data(), matrix(wte), wpe ? &positions : nullptr, ids.shape(1)); });
  return out;
}

py::typing::Tuple<Floats, MaybeFloats> embed_backward(const Floats& dout, const Ids& ids, const Floats& dwte,
                                                      const MaybeFloats& dwpe) {
  expect_embedding(ids, dwte, dwpe);
  expect("dout", dout, {ids.shape(0), ids.shape(1), dwte.shape(1)});
  Floats tokens = copy(dwte);
  MaybeFloats positions = dwpe ? MaybeFloats(copy(*dwpe)) : MaybeFloats();
  const Matrix token_out = matrix(tokens), position_out = positions ? matrix(*positions) : Matrix();
  run([&](soma::Ops& ops) {
    ops.embed_backward(token_out, dwpe ? &position_out : nullptr, matrix(dout), ids.data(), ids.data(), ids.shape(1));
  });
  return py::make_tuple(tokens, positions);
}

}  // namespace

namespace {

// Returns (threads of a call, different threads that took a part of one of its jobs). No part ends before all parts
// have begun, so no thread takes two.
std::pair<int, std::size_t> threads_at_work(const std::string& job) {
  check(job == "loop" || job == "pool" || job == "region", "job must be 'loop', 'pool' or 'region', got '", job, "'");
  return run([&](soma::Ops&) {
    const int threads = soma::call_threads();
    std::atomic<int> begun{0};
    std::mutex mutex;
    std::set<std::thread::id> seen;
    const auto part = [&](int64_t) {
      ++begun;
      while (begun.load() < threads) std::this_thread::yield();
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    };
    if (job == "loop") soma::parallel_for(threads, part);
    if (job == "pool") soma::with_thread_pool([&] { soma::parallel_for(threads, part); });
    if (job == "region") soma::parallel_region(threads, [&](const soma::ParallelRegion& region) { part(region.rank); });
    return std::make_pair(threads, seen.size());
  });
}

}  // namespace

void register_ops(py::module_& parent) {
  py::module_ m = parent.def_submodule("_ops", "Single operations of the core on float32 arrays, for its tests.");
  register_block_ops(m);
  register_loss_ops(m);
  register_decode_ops(m);
  register_optimizer_ops(m);
  register_noise_ops(m);
  register_memory(m);
  const auto none = py::none();
  m.def("matmul", &matmul, py::arg("a"), py::arg("b"), py::kw_only(), py::arg("layout") = "nn", py::arg("bias") = none,
        py::arg("residual") = none, py::arg("relu") = false, py::arg("onto") = none, py::arg("precision") = "float32",
        py::arg("pairs") = "", py::arg("prepacked") = false,
        "op(a) op(b) with what 't' in the layout transposes; then + bias + residual, then relu. Or onto + op(a) op(b). "
        "pairs: which of a, b and c are kept as pairs of bfloat16; prepacked: b is packed beforehand.");
  m.def("matmul_through", &matmul_through, py::arg("a"), py::arg("b"), py::kw_only(), py::arg("function"),
        py::arg("saved") = none, py::arg("precision") = "float32", py::arg("pairs") = "",
        "(f(a b), gelu's output) for f 'gelu' or 'gelu_tanh' (which leave a b as it is), \"gelu'\", \"gelu_tanh'\" or "
        "\"relu'\" with what they saved.");
  m.def("weight_gradients", &weight_gradients, py::arg("operands"), py::arg("onto"), py::kw_only(),
        py::arg("precision") = "float32", py::arg("pairs") = "",
        "(dw + a^T b, sums + sum of the rows of b) of every (a, b) with its (dw, sums or None), all at once.");
  m.def("column_sum", &column_sum, py::arg("x"), py::arg("onto"), py::arg("precision") = "float32",
        py::arg("pairs") = false, "onto + the sum over the rows of x.");
  m.def("norm", &norm, py::arg("x"), py::kw_only(), py::arg("eps"), py::arg("gamma") = none, py::arg("beta") = none,
        py::arg("in_place") = false, py::arg("pairs") = false, py::arg("rms") = false,
        "(y, mean, rstd) of a norm of every row; RMSNorm leaves mean.");
  m.def("norm_backward", &norm_backward, py::arg("dy"), py::arg("x"), py::arg("rstd"), py::kw_only(),
        py::arg("mean") = none, py::arg("gamma") = none, py::arg("onto") = none, py::arg("beta") = none,
        py::arg("pairs") = false, py::arg("rms") = false, py::arg("again") = false,
        "dx, or onto + dx; without mean, x is the normalised output itself. With beta or again, (dx, the output "
        "again).");
  m.def("norm_grad", &norm_grad, py::arg("dy"), py::arg("x"), py::arg("mean"), py::arg("rstd"), py::arg("dgamma"),
        py::arg("dbeta"), "(dgamma, dbeta) with what this batch adds.");
  m.def("rms_norm_grad", &rms_norm_grad, py::arg("dy"), py::arg("x"), py::arg("rstd"), py::arg("dgamma"),
        "dgamma with what this batch adds.");
  m.def("sum_rows", &sum_rows, py::arg("x"), py::arg("onto"), "onto + the sum of the rows of x.");
  m.def("gelu", &gelu, py::arg("x"), py::arg("activation") = "gelu_tanh",
        "(x, y) as a matrix product stores both: y is x Phi(x) for 'gelu', for 'gelu_tanh' its tanh form.");
  m.def("gelu_backward", &gelu_backward, py::arg("dy"), py::arg("x"), py::arg("activation") = "gelu_tanh",
        "(dy y', y) for the y of gelu.");
  m.def("relu_backward", &relu_backward, py::arg("dy"), py::arg("y"), "dy where y > 0, else 0.");
  m.def("embed", &embed, py::arg("ids"), py::arg("wte"), py::arg("wpe") = none, "wte[ids] + wpe[position], (B, T, C).");
  m.def("embed_backward", &embed_backward, py::arg("dout"), py::arg("ids"), py::arg("dwte"), py::arg("dwpe") = none,
        "(dwte, dwpe) with what this batch adds.");
  m.def(
      "multiply_add_registers",
      [](const std::string& precision, int64_t rounds) {
        float values[3] = {1.0f, 1.0f, 0.0f};
        const double operations = soma::multiply_add_registers(parse_precision(precision), values, rounds);
        return std::make_pair(operations, values[2]);
      },
      py::arg("precision"), py::arg("rounds"), "(floating-point operations, what all sums add up to) for ones.");
  m.def("threads_at_work", &threads_at_work, py::arg("job"),
        "(threads that a call gets, different threads that work on a 'loop', in a 'pool' or in a 'region').");
  m.def("widest_job", &soma::widest_job, "Threads of the largest parallel job since this was last asked.");
}
