// Arrays of NumPy over the core's memory, by the names of parameters.
#pragma once

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <vector>

#include "handle.h"

using Shape = py::typing::Tuple<py::int_, py::ellipsis>;

inline Shape shape_of(const soma::ParameterInfo& info) {
  if (info.is_vector) return py::make_tuple(info.cols);
  return py::make_tuple(info.rows, info.cols);
}

// It keeps `owner` alive.
inline py::array_t<float> view(const soma::ParameterInfo& info, float* data, const py::object& owner) {
  return py::array_t<float>(shape_of(info).cast<std::vector<py::ssize_t>>(), data, owner);
}

// Views of one arena by tensor name.
using Views = py::typing::Dict<py::str, py::array_t<float>>;  // the stub says what is in it
inline Views views(const soma::Transformer& model, float* arena, const py::object& owner) {
  Views dict;
  for (const soma::ParameterInfo& info : model.parameter_infos()) {
    dict[py::str(info.name)] = view(info, arena + info.offset, owner);
  }
  return dict;
}
