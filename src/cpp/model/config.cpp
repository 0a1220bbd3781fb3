// Limits of a model's sizes, and what its block decides.
#include "model/config.h"

#include "base/check.h"
#include "model/blocks/block.h"

namespace soma {

const std::array<SizeLimit, 6>& size_limits() {
  static constexpr std::array<SizeLimit, 6> limits{{
      {"vocab_size", &ModelConfig::vocab_size, 2, int64_t{1} << 24},
      {"d_model", &ModelConfig::d_model, 1, 1 << 16},
      {"n_layers", &ModelConfig::n_layers, 1, 1024},
      {"n_heads", &ModelConfig::n_heads, 1, 1 << 16},
      {"d_ff", &ModelConfig::d_ff, 1, 1 << 18},
      {"max_seq_len", &ModelConfig::max_seq_len, 1, 1 << 20},
  }};
  return limits;
}

const BlockTraits& ModelConfig::traits() const { return block->traits; }

void ModelConfig::validate() const {
  for (const SizeLimit& limit : size_limits()) {
    const int64_t value = this->*limit.size;
    check(value >= limit.low && value <= limit.high, limit.name, " must be from ", limit.low, " to ", limit.high,
          ", got ", value);
  }
  check(d_model % n_heads == 0, "d_model must be a multiple of n_heads, got d_model=", d_model,
        " and n_heads=", n_heads);
}

}  // namespace soma
