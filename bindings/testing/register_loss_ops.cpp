// Losses and scores of logits, one function each, for tests. register_ops.cpp has the other operations.
#include "testing/ops_arrays.h"
#include "testing/ops_operand.h"
#include "registers.h"

namespace {

using namespace arrays;
using Numbers = py::array_t<int32_t, py::array::c_style>;

Pair cross_entropy(const Floats& logits, const Ids& targets, float grad_scale, bool pairs) {
  expect_dimensions("logits", logits, 2);
  expect("targets", targets, {logits.shape(0)});
  expect_ids("targets", targets, logits.shape(1), true);
  check(!pairs || grad_scale != 0.0f, "pairs are of the gradient, and grad_scale is 0");
  Floats gradient = copy(logits), losses = unset({logits.shape(0)}), lost = copy(logits);
  const Operand result = Operand::into(gradient, pairs);
  const Matrix scores = pairs ? matrix(lost) : result.get();
  float* out = losses.mutable_data();
  run([&](soma::Ops& ops) { ops.cross_entropy(out, scores, targets.data(), grad_scale, result.get()); });
  result.finish();
  return py::make_tuple(losses, gradient);
}

Pair soft_cross_entropy(const Floats& logits, const Floats& q, const Ids& targets, float share, float grad_scale,
                        bool pairs) {
  expect_dimensions("logits", logits, 2);
  expect("q", q, {logits.shape(0), logits.shape(1)});
  expect("targets", targets, {logits.shape(0)});
  expect_ids("targets", targets, logits.shape(1), true);
  Floats gradient = copy(logits), losses = unset({logits.shape(0)}), lost = copy(logits);
  const Operand result = Operand::into(gradient, pairs);
  const Matrix scores = pairs ? matrix(lost) : result.get();
  float* out = losses.mutable_data();
  run([&](soma::Ops& ops) {
    ops.soft_cross_entropy(out, scores, matrix(q), targets.data(), share, grad_scale, result.get());
  });
  result.finish();
  return py::make_tuple(losses, gradient);
}

Floats add_softmax(const Floats& logits, float share, const MaybeFloats& onto) {
  expect_dimensions("logits", logits, 2);
  if (onto) expect("onto", *onto, {logits.shape(0), logits.shape(1)});
  Floats lost = copy(logits), q = onto ? copy(*onto) : lost;
  const Matrix result = matrix(q), scores = matrix(lost);
  run([&](soma::Ops& ops) { ops.add_softmax(result, scores, share, onto.has_value()); });
  return q;
}

py::typing::Tuple<Floats, Numbers, Numbers, Floats> score(const Floats& logits, const Ids& targets, int64_t top) {
  expect_dimensions("logits", logits, 2);
  expect("targets", targets, {logits.shape(0)});
  expect_ids("targets", targets, logits.shape(1), false);
  check(top >= 0 && top <= logits.shape(1), "top must be from 0 to ", logits.shape(1), ", got ", top);
  const py::ssize_t rows = logits.shape(0);
  Floats logprobs = unset({rows}), top_logprobs = unset({rows, top});
  Numbers ranks(Shape{rows}), top_ids(Shape{rows, top});
  std::fill_n(top_ids.mutable_data(), top_ids.size(), -1);
  const soma::RowScores out{logprobs.mutable_data(), ranks.mutable_data(), top, top_ids.mutable_data(),
                            top_logprobs.mutable_data()};
  run([&](soma::Ops& ops) { ops.score(out, matrix(logits), targets.data()); });
  return py::make_tuple(logprobs, ranks, top_ids, top_logprobs);
}

}  // namespace

void register_loss_ops(py::module_& m) {
  const auto none = py::none();
  m.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"), py::arg("grad_scale") = 0.0f,
        py::arg("pairs") = false,
        "(losses (M), grad_scale (softmax - onehot)); the logits as they were where grad_scale is 0.");
  m.def("soft_cross_entropy", &soft_cross_entropy, py::arg("logits"), py::arg("q"), py::arg("targets"),
        py::arg("share"), py::arg("grad_scale"), py::arg("pairs") = false,
        "(losses (M), grad_scale (softmax - (1 - share) onehot - share q)).");
  m.def("add_softmax", &add_softmax, py::arg("logits"), py::arg("share"), py::arg("onto") = none,
        "onto + share softmax(logits).");
  m.def("score", &score, py::arg("logits"), py::arg("targets"), py::arg("top") = 0,
        "(log-probabilities (M), ranks (M), ids of the best (M, top), their log-probabilities).");
}
