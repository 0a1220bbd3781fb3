// Carving of the activation plan.
#include "model/activations.h"

namespace soma {
namespace {

void carve_block(const ModelConfig& config, int64_t batch, int64_t length, Carver& carver, BlockActivations& b) {
  const int64_t m = batch * length, c = config.d_model;
  b.input = carver.take(m * c);
  b.qkv = carver.take(m * 3 * c);
  b.attention = carver.take(m * c);
  b.lse = carver.take(m * config.n_heads);
  b.middle = carver.take(m * c);
  b.hidden = carver.take(m * config.d_ff);
  b.mean1 = carver.take(m);
  b.rstd1 = carver.take(m);
  b.mean2 = carver.take(m);
  b.rstd2 = carver.take(m);
}

}  // namespace

int64_t Activations::carve(const ModelConfig& config, int64_t batch, int64_t length, bool for_backward, float* base) {
  const int64_t m = batch * length, c = config.d_model;
  const bool gpt2 = config.block == BlockStyle::kGpt2;
  Carver carver(base);
  blocks.resize(static_cast<std::size_t>(config.n_layers));
  if (for_backward) {
    for (BlockActivations& b : blocks) carve_block(config, batch, length, carver, b);
  } else {
    carve_block(config, batch, length, carver, blocks[0]);
    for (BlockActivations& b : blocks) b = blocks[0];
  }
  output = for_backward ? carver.take(m * c) : blocks[0].input;  // in place where nothing is kept
  final_mean = gpt2 ? carver.take(m) : nullptr;
  final_rstd = gpt2 ? carver.take(m) : nullptr;
  final_normed = gpt2 ? carver.take(m * c) : output;
  scratch = {};
  scratch.normed = gpt2 ? carver.take(m * c) : nullptr;
  scratch.activated = gpt2 ? carver.take(m * config.d_ff) : nullptr;
  if (for_backward) {
    scratch.d_stream = carver.take(m * c);
    scratch.d_branch = carver.take(m * c);
    scratch.d_qkv = carver.take(m * 3 * c);
    scratch.d_hidden = carver.take(m * config.d_ff);
  }
  return carver.used();
}

}  // namespace soma
