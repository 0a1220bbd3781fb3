// Shared by the bindings of single operations: arrays as matrices of the core, with checked shapes.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "handle.h"
#include "ops/device.h"

namespace arrays {

using soma::check;
using soma::ConstMatrix;
using soma::Matrix;
using Floats = py::array_t<float, py::array::c_style>;
using MaybeFloats = std::optional<Floats>;
using Shape = std::vector<py::ssize_t>;
using Pair = py::typing::Tuple<Floats, Floats>;
using Triple = py::typing::Tuple<Floats, Floats, Floats>;
using Four = py::typing::Tuple<Floats, Floats, Floats, Floats>;

constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

inline Shape shape_of(const py::array& x) { return Shape(x.shape(), x.shape() + x.ndim()); }

inline std::string text(const Shape& shape) {
  std::string s = "(";
  for (const py::ssize_t n : shape) {
    if (s.size() > 1) s += ", ";
    s += std::to_string(n);
  }
  return s + ")";
}

inline void expect(const char* name, const py::array& x, const Shape& shape) {
  check(shape_of(x) == shape, name, " must have shape ", text(shape), ", got ", text(shape_of(x)));
}

inline void expect(const char* name, const MaybeFloats& x, const Shape& shape) {
  if (x) expect(name, *x, shape);
}

inline void expect_dimensions(const char* name, const py::array& x, py::ssize_t dimensions) {
  check(x.ndim() == dimensions, name, " must have ", dimensions, " dimensions, got ", x.ndim());
  for (py::ssize_t i = 1; i < dimensions; ++i) check(x.shape(i) >= 1, name, " has no columns: ", text(shape_of(x)));
}

// x(..., C) as (M, C).
inline ConstMatrix matrix(const Floats& x) {
  const int64_t cols = x.shape(x.ndim() - 1);
  return {x.data(), cols == 0 ? 0 : x.size() / cols, cols};
}
inline Matrix matrix(Floats& x) {
  const int64_t cols = x.shape(x.ndim() - 1);
  return {x.mutable_data(), cols == 0 ? 0 : x.size() / cols, cols};
}

inline const float* data(const MaybeFloats& x) { return x ? x->data() : nullptr; }

inline Floats unset(const Shape& shape) {
  Floats x(shape);
  std::fill(x.mutable_data(), x.mutable_data() + x.size(), kNotANumber);
  return x;
}

inline Floats copy(const Floats& x) {
  Floats y(shape_of(x));
  std::copy(x.data(), x.data() + x.size(), y.mutable_data());
  return y;
}

inline void expect_ids(const char* name, const Ids& ids, int64_t limit, bool may_ignore) {
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    const int32_t id = ids.data()[i];
    check((id >= 0 && id < limit) || (may_ignore && id == soma::kIgnoredTarget), name, " must be from 0 to ", limit - 1,
          ", got ", id);
  }
}

// f(ops) without the GIL. Each call has operations of its own, so the packing buffers hold nothing of another call.
template <typename F>
auto run(F&& f, const std::string& precision = "float32") {
  const auto ops = soma::cpu_device().make_ops(parse_precision(precision));
  return without_gil([&] { return f(*ops); });
}

}  // namespace arrays
