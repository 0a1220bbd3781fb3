// One function for each file of the bindings: it adds its names to the module.
#pragma once

#include <pybind11/pybind11.h>

void register_system(pybind11::module_& m);
void register_profile(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_optimizers(pybind11::module_& m);
void register_generation(pybind11::module_& m);
void register_ngram(pybind11::module_& m);
void register_tokenizer(pybind11::module_& m);
void register_tokenizer_rules(pybind11::module_& m);
void register_tokenizer_training(pybind11::module_& m);

// bindings/testing: what only tests call.
void register_text_rules(pybind11::module_& m);
void register_ops(pybind11::module_& m);
void register_block_ops(pybind11::module_& ops);  // this and the next four into the submodule of register_ops
void register_loss_ops(pybind11::module_& ops);
void register_decode_ops(pybind11::module_& ops);
void register_optimizer_ops(pybind11::module_& ops);
void register_noise_ops(pybind11::module_& ops);
void register_memory(pybind11::module_& ops);
