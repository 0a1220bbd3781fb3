// Calls into the core without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include "base/interrupt.h"
#include "base/parallel.h"

// Runs f without the GIL, as one call that shares the threads with the others under way. Where the poll stopped it,
// raises what the signal handler raised (KeyboardInterrupt, as a rule).
template <typename F>
auto without_gil(F&& f) {
  try {
    const pybind11::gil_scoped_release release;
    const soma::CallScope call;
    return f();
  } catch (const soma::Interrupted&) {
    throw pybind11::error_already_set();
  }
}
