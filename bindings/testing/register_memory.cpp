// A mistake of the host that a device must find, for tests.
#include "handle.h"
#include "registers.h"

void register_memory(py::module_& m) {
  m.def(
      "peek", [](ModelHandle& model) { return *model.transformer.values(); }, py::arg("model"),
      "The first parameter, read at its address. Where that is memory of a device, the process ends.");
}
