// Threads, instruction sets, and the poll through which Ctrl-C reaches a long computation.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <string>
#include <vector>

#include "base/interrupt.h"
#include "base/isa.h"
#include "base/parallel.h"
#include "registers.h"

namespace py = pybind11;

namespace {

bool python_signal_pending() {
  const py::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;  // runs the handlers; in other threads than the main one it does nothing
}

py::typing::Tuple<py::str, py::ellipsis> available_isas() {
  const auto& levels = soma::available_isas();
  py::tuple names(levels.size());
  for (std::size_t i = 0; i < levels.size(); ++i) names[i] = soma::isa_name(levels[i]);
  return names;
}

}  // namespace

void register_system(py::module_& m) {
  soma::set_interrupt_poll(python_signal_pending);
  m.def("available_isas", &available_isas, "Instruction-set levels this machine can run, weakest first.");
  m.def(
      "active_isa", [] { return std::string(soma::isa_name(soma::active_isa())); },
      "The level in force: the highest available, capped by SOMA_ISA.");
  m.def("set_isa", &soma::set_isa, py::arg("name"), "Forces a level from now on.");
  m.def("get_num_threads", &soma::num_threads, "Threads that compute.");
  m.def("set_num_threads", &soma::set_num_threads, py::arg("n"), "Sets the number of threads that compute.");
}
