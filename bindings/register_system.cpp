// Threads, instruction sets, GPUs, and the poll through which Ctrl-C reaches a long computation.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/fork.h"
#include "base/interrupt.h"
#include "base/isa.h"
#include "base/parallel.h"
#include "gil.h"
#include "ops/backend.h"
#include "registers.h"

namespace py = pybind11;

namespace {

unsigned long main_thread = 0;  // of the process that loaded the core; in the child of a fork, the thread that forked

// Python runs signal handlers in its main thread, so only this thread asks. Another thread would wait for the GIL, and
// if Python ended meanwhile, it would keep its model for ever.
bool python_signal_pending() {
  const bool is_main = soma::forks() == 0 ? PyThread_get_thread_ident() == main_thread : soma::this_thread_forked();
  if (!is_main) return false;
  const GilAgain gil;
  return PyErr_CheckSignals() != 0;
}

py::typing::Tuple<py::str, py::ellipsis> available_isas() {
  const auto& levels = soma::available_isas();
  py::tuple names(levels.size());
  for (std::size_t i = 0; i < levels.size(); ++i) names[i] = soma::isa_name(levels[i]);
  return names;
}

using Gpus = py::typing::List<py::typing::Tuple<py::str, py::int_, py::int_>>;

// Throws why no library of GPUs is open.
soma::Backend& gpu_backend() {
  soma::Backend* const found = soma::backend();
  if (found == nullptr) throw std::runtime_error("no library for GPUs is open");
  return *found;
}

Gpus gpus() {
  Gpus list;
  for (const soma::Gpu& gpu : gpu_backend().gpus()) list.append(py::make_tuple(gpu.name, gpu.bytes, gpu.capability));
  return list;
}

}  // namespace

void register_system(py::module_& m) {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  soma::set_interrupt_poll(python_signal_pending);
  m.def("available_isas", &available_isas, "Instruction-set levels this machine can run, weakest first.");
  m.def(
      "active_isa", [] { return std::string(soma::isa_name(soma::active_isa())); },
      "The level in force: the highest available, capped by SOMA_ISA.");
  m.def("set_isa", &soma::set_isa, py::arg("name"), "Forces a level from now on.");
  m.def("open_backend", &soma::open_backend, py::arg("path"), "Opens the library for GPUs, once for the process.");
  m.def("gpus", &gpus, "Name, bytes of memory, and compute capability (90 for 9.0) of each GPU.");
  m.def("gpu_products", [] { return gpu_backend().products(); }, "What makes large products on GPUs.");
  m.def(
      "gpu_driver", [] { return gpu_backend().driver(); }, "The newest CUDA that the driver knows, as 13000; 0: none.");
  m.def(
      "find_device", [](const std::string& name) { return soma::find_device(name).name(); }, py::arg("name"),
      "The name of a device that can be used.");
  m.def(
      "free_bytes",
      [](const std::string& name) -> std::optional<int64_t> {
        const int64_t bytes = soma::find_device(name).free_bytes();
        return bytes < 0 ? std::nullopt : std::optional(bytes);
      },
      py::arg("device"), "Bytes that are free on a device with memory of its own; None: it has the host's.");
  m.def("get_num_threads", &soma::num_threads, "Threads that compute.");
  m.def("set_num_threads", &soma::set_num_threads, py::arg("n"), "Sets the number of threads that compute.");
}
