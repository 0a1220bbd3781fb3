// The parts of a profile: the record of an op, and the limits of this machine.
#include <pybind11/stl.h>

#include "gil.h"
#include "ops/ceilings.h"
#include "ops/profiled_ops.h"
#include "registers.h"

namespace py = pybind11;

void register_profile(py::module_& m) {
  using soma::Bandwidth;
  using soma::Ceilings;
  using soma::OpRecord;
  py::class_<OpRecord>(m, "OpRecord", "All calls of one operation with one shape, since the profile was last taken.")
      .def_readonly("op", &OpRecord::op)
      .def_readonly("group", &OpRecord::group)
      .def_readonly("shape", &OpRecord::shape)
      .def_readonly("calls", &OpRecord::calls)
      .def_readonly("seconds", &OpRecord::seconds)
      .def_property_readonly("products", [](const OpRecord& r) { return r.cost.products; })
      .def_property_readonly("flops", [](const OpRecord& r) { return r.cost.flops; })
      .def_property_readonly("read", [](const OpRecord& r) { return r.cost.read; })
      .def_property_readonly("written", [](const OpRecord& r) { return r.cost.written; });
  py::class_<Bandwidth>(m, "Bandwidth", "Bytes per second over a working set of `bytes`.")
      .def_readonly("bytes", &Bandwidth::bytes)
      .def_readonly("read", &Bandwidth::read)
      .def_readonly("update", &Bandwidth::update);
  py::class_<Ceilings>(m, "Ceilings", "What this machine can do at most with the level and threads in force.")
      .def_readonly("fma", &Ceilings::fma)
      .def_readonly("bf16", &Ceilings::bf16)
      .def_readonly("bandwidths", &Ceilings::bandwidths);
  m.def(
      "measure_ceilings",
      [](const std::string& device) {
        return without_gil([&] { return soma::measure_ceilings(soma::find_device(device)); });
      },
      py::arg("device") = "cpu", "Measures them: about a second, and 256 MB for as long.");
}
