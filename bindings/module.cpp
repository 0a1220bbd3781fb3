// soma_native._core: the C++ core as Python sees it. Arrays and exceptions go in and out, and the GIL is released while
// the core computes. There is no arithmetic here.
#include "registers.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of soma_native. Use the classes of soma_native; this module is their engine.";
  m.attr("__version__") = SOMA_VERSION;
  register_system(m);
  register_profile(m);
  register_model(m);
  register_optimizers(m);
  register_generation(m);
  register_ngram(m);
  register_tokenizer(m);
  register_tokenizer_rules(m);
  register_tokenizer_training(m);
  register_text_rules(m);  // for tests, like the submodule _core._ops
  register_ops(m);
}
