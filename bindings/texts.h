// Python strings as UTF-8 and back, for the parts of the tokenizer's bindings.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstdio>
#include <string>
#include <string_view>

namespace py = pybind11;

using Texts = py::typing::List<py::str>;

// The UTF-8 of a Python str, which keeps it; `name` is what an error calls the text.
inline std::string_view utf8_of(py::handle text, const std::string& name) {
  if (!PyUnicode_Check(text.ptr())) {
    throw py::type_error(name + " must be a str, got " + Py_TYPE(text.ptr())->tp_name);
  }
  Py_ssize_t size = 0;
  if (const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size)) return {bytes, static_cast<size_t>(size)};
  if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
  PyErr_Clear();
  const Py_ssize_t length = PyUnicode_GetLength(text.ptr());
  Py_ssize_t at = 0;
  const auto is_surrogate = [&](Py_ssize_t i) { return (PyUnicode_ReadChar(text.ptr(), i) & 0xFFFFF800u) == 0xD800u; };
  while (at + 1 < length && !is_surrogate(at)) ++at;
  char code_point[16];
  std::snprintf(code_point, sizeof(code_point), "U+%04X", static_cast<unsigned>(PyUnicode_ReadChar(text.ptr(), at)));
  throw py::value_error(name + " has the lone surrogate " + code_point + " at character " + std::to_string(at) +
                        ", which no valid text holds; replace it, for example with "
                        "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')");
}

inline py::str to_str(std::string_view text) { return py::str(text.data(), text.size()); }
