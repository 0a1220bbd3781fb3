// Dropout and masked tokens, for tests: the masks of a step as arrays, and the operations that apply them.
#include <string>
#include <utility>
#include <vector>

#include "model/noise.h"
#include "testing/ops_arrays.h"
#include "testing/ops_operand.h"
#include "registers.h"

namespace {

using namespace arrays;

soma::Dropout find_dropout(const soma::Noise& noise, const std::string& site, int64_t layer, int64_t first_row) {
  const std::pair<const char*, soma::DropoutSite> sites[] = {{"embedding", soma::DropoutSite::kEmbedding},
                                                             {"attention", soma::DropoutSite::kAttention},
                                                             {"mlp", soma::DropoutSite::kMlp}};
  for (const auto& [name, value] : sites) {
    if (site == name) return noise.dropout(layer, value, first_row);
  }
  throw std::invalid_argument("site must be 'embedding', 'attention' or 'mlp', got '" + site + "'");
}

Floats dropout(const Floats& x, const soma::Noise& noise, const std::string& site, int64_t layer, int64_t first_row,
               bool pairs) {
  expect_dimensions("x", x, 2);
  Floats y = unset(shape_of(x));
  const Operand out = Operand::into(y, pairs);
  const soma::Dropout how = find_dropout(noise, site, layer, first_row);
  run([&](soma::Ops& ops) { ops.dropout(out.get(), matrix(x), how); });
  out.finish();
  return y;
}

Floats matmul_dropout(const Floats& a, const Floats& b, const soma::Noise& noise, const MaybeFloats& bias,
                      const MaybeFloats& residual, const std::string& precision) {
  expect_dimensions("a", a, 2);
  expect_dimensions("b", b, 2);
  check(a.shape(1) == b.shape(0), "a and b must share their inner size, got ", a.shape(1), " and ", b.shape(0));
  expect("bias", bias, {b.shape(1)});
  expect("residual", residual, {a.shape(0), b.shape(1)});
  Floats c = unset({a.shape(0), b.shape(1)});
  const Matrix out = matrix(c);
  const soma::Epilogue epilogue{
      .bias = data(bias), .residual = data(residual), .dropout = find_dropout(noise, "mlp", 0, 0)};
  run([&](soma::Ops& ops) { ops.matmul(out, matrix(a), matrix(b), epilogue); }, precision);
  return c;
}

py::array_t<bool> masked_tokens(const soma::Noise& noise, int64_t count) {
  std::vector<int32_t> ids(static_cast<std::size_t>(count), 0);
  noise.mask_tokens(ids.data(), count);
  py::array_t<bool> masked(count);
  for (int64_t i = 0; i < count; ++i) masked.mutable_data()[i] = ids[static_cast<std::size_t>(i)] == soma::kMaskedToken;
  return masked;
}

}  // namespace

void register_noise_ops(py::module_& m) {
  m.def("dropout", &dropout, py::arg("x"), py::arg("noise"), py::kw_only(), py::arg("site"), py::arg("layer") = 0,
        py::arg("first_row") = 0, py::arg("pairs") = false,
        "x (M, C) after dropout; rows from first_row of the batch on.");
  m.def("matmul_dropout", &matmul_dropout, py::arg("a"), py::arg("b"), py::arg("noise"), py::kw_only(),
        py::arg("bias") = py::none(), py::arg("residual") = py::none(), py::arg("precision") = "float32",
        "residual + the dropout of a b + bias, as the mlp of layer 0.");
  m.def("masked_tokens", &masked_tokens, py::arg("noise"), py::arg("count"),
        "Whether each token of a batch of (count) is masked.");
}
