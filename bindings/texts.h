// Python strings as UTF-8 and back, for whatever takes texts.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace py = pybind11;

using Texts = py::typing::List<py::str>;
using TextsOrBytes = py::typing::List<py::typing::Union<py::str, py::bytes>>;

// The UTF-8 of a Python str, in memory of the str. An error calls the text `name`.
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

using TextsOrBytes = py::typing::List<py::typing::Union<py::str, py::bytes>>;

// The UTF-8 of texts: str, or bytes that were found to be valid. A str that is not ASCII would keep what it was asked
// for as long as it lives; here it is kept as long as this.
class Utf8OfTexts {
 public:
  // Errors call them texts[first], texts[first + 1], ...
  Utf8OfTexts(const TextsOrBytes& texts, size_t first) {
    views.reserve(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      PyObject* const text = PyList_GET_ITEM(texts.ptr(), static_cast<Py_ssize_t>(i));
      PyObject* bytes = PyBytes_Check(text) ? text : nullptr;
      if (bytes == nullptr && PyUnicode_Check(text) && !PyUnicode_IS_COMPACT_ASCII(text)) {
        bytes = PyUnicode_AsUTF8String(text);
        if (bytes == nullptr) PyErr_Clear();  // what is wrong is said below
        kept_.push_back(py::reinterpret_steal<py::object>(bytes));
      }
      if (bytes != nullptr) {
        views.emplace_back(PyBytes_AS_STRING(bytes), static_cast<size_t>(PyBytes_GET_SIZE(bytes)));
      } else {
        views.push_back(utf8_of(text, "texts[" + std::to_string(first + i) + "]"));
      }
    }
  }

  std::vector<std::string_view> views;

 private:
  std::vector<py::object> kept_;
};

inline py::str to_str(std::string_view text) { return py::str(text.data(), text.size()); }

// Texts as str, files as bytes that were found to be valid UTF-8. Errors call them texts[first], texts[first + 1], ...
inline std::vector<std::string_view> views_of(const TextsOrBytes& texts, size_t first) {
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const py::object text = texts[i];
    if (PyBytes_Check(text.ptr())) {
      views.emplace_back(PyBytes_AS_STRING(text.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(text.ptr())));
    } else {
      views.push_back(utf8_of(text, "texts[" + std::to_string(first + i) + "]"));
    }
  }
  return views;
}
