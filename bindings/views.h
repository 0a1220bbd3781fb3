// Arrays of NumPy for the core's memory, by the names of parameters: views of memory of the host, copies of any other.
#pragma once

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <string>
#include <vector>

#include "base/check.h"
#include "handle.h"

using Shape = py::typing::Tuple<py::int_, py::ellipsis>;
using FloatArray = py::array_t<float, py::array::c_style>;

inline Shape shape_of(const soma::ParameterInfo& info) {
  if (info.is_vector) return py::make_tuple(info.cols);
  return py::make_tuple(info.rows, info.cols);
}

inline std::size_t bytes_of(const soma::ParameterInfo& info) {
  return static_cast<std::size_t>(info.size()) * sizeof(float);
}

inline const soma::ParameterInfo& find_parameter(ModelHandle& model, const std::string& name) {
  for (const soma::ParameterInfo& info : model.transformer.parameter_infos()) {
    if (info.name == name) return info;
  }
  soma::fail("name must be that of a parameter, got '", name, "'");
}

// A copy of the parameter's array at `data`.
inline FloatArray read_array(ModelHandle& model, const soma::ParameterInfo& info, const float* data) {
  FloatArray copy(shape_of(info).cast<std::vector<py::ssize_t>>());
  float* const out = copy.mutable_data();
  compute(model, [&] { model.transformer.device().memory().download(out, data, bytes_of(info)); });
  return copy;
}

// Sets the parameter's array at `data`.
inline void write_array(ModelHandle& model, const soma::ParameterInfo& info, float* data, const FloatArray& array) {
  soma::check(py::tuple(array.attr("shape")).equal(shape_of(info)), "array must have the shape of ", info.name);
  const float* const from = array.data();
  compute(model, [&] { model.transformer.device().memory().upload(data, from, bytes_of(info)); });
}

// A view that keeps `owner` alive, or a copy that cannot be written to.
inline py::array_t<float> view(ModelHandle& model, const soma::ParameterInfo& info, float* data,
                               const py::object& owner) {
  if (model.transformer.device().memory().on_host()) {
    return py::array_t<float>(shape_of(info).cast<std::vector<py::ssize_t>>(), data, owner);
  }
  py::array_t<float> copy = read_array(model, info, data);
  copy.attr("setflags")(py::arg("write") = false);
  return copy;
}

// The same for one arena, by tensor name.
using Views = py::typing::Dict<py::str, py::array_t<float>>;  // the stub says what is in it
inline Views views(ModelHandle& model, float* arena, const py::object& owner) {
  Views dict;
  for (const soma::ParameterInfo& info : model.transformer.parameter_infos()) {
    dict[py::str(info.name)] = view(model, info, arena + info.offset, owner);
  }
  return dict;
}
