// How Python holds a model: with a lock, so that two threads calling one model take turns, and with interruption turned
// into KeyboardInterrupt.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <mutex>

#include "base/interrupt.h"
#include "base/parallel.h"
#include "model/transformer.h"

namespace py = pybind11;

using Ids = py::array_t<int32_t, py::array::c_style>;

struct ModelHandle {
  soma::Transformer transformer;
  std::mutex mutex;

  ModelHandle(const soma::ModelConfig& config, uint64_t seed) : transformer(config, seed) {}
};

// Runs f without the GIL.
template <typename F>
auto without_gil(F&& f) {
  try {
    py::gil_scoped_release release;
    return f();
  } catch (const soma::Interrupted&) {
    throw py::error_already_set();  // the poll left KeyboardInterrupt (or what the handler raised) in this thread
  }
}

// Runs f without the GIL, alone on the model.
template <typename F>
auto compute(ModelHandle& model, F&& f) {
  return without_gil([&] {
    const std::lock_guard<std::mutex> lock(model.mutex);
    const soma::CallScope call;
    return f();
  });
}
