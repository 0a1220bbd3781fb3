// Limits of a model's sizes.
#include "model/config.h"

#include "base/check.h"

namespace soma {

void ModelConfig::validate() const {
  const auto range = [](const char* name, int64_t value, int64_t low, int64_t high) {
    check(value >= low && value <= high, name, " must be from ", low, " to ", high, ", got ", value);
  };
  range("vocab_size", vocab_size, 2, int64_t{1} << 24);
  range("d_model", d_model, 1, 1 << 16);
  range("n_layers", n_layers, 1, 1024);
  range("n_heads", n_heads, 1, d_model);
  range("d_ff", d_ff, 1, 1 << 18);
  range("max_seq_len", max_seq_len, 1, 1 << 20);
  check(d_model % n_heads == 0, "d_model must be a multiple of n_heads, got d_model=", d_model,
        " and n_heads=", n_heads);
}

}  // namespace soma
