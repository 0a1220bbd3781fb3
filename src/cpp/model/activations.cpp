// Carving of the activation plan.
#include "model/activations.h"

namespace soma {
namespace {

void carve_block(const ModelConfig& config, Operands operands, int64_t m, Carver& carver, BlockActivations& b) {
  const int64_t c = config.d_model, f = config.d_ff;
  b.input = carver.take(m * c);
  b.qkv = carver.take(qkv_operands(config, operands).floats(m, 3 * c));
  b.attention = carver.take(m * c);
  b.lse = carver.take(m * config.n_heads);
  b.middle = carver.take(m * c);
  b.hidden = carver.take(config.block == BlockStyle::kSoma ? operands.floats(m, f) : m * f);
  b.mean1 = carver.take(m);
  b.rstd1 = carver.take(m);
  b.mean2 = carver.take(m);
  b.rstd2 = carver.take(m);
}

float* skip(float* data, int64_t floats) { return data == nullptr ? nullptr : data + floats; }

}  // namespace

BlockActivations BlockActivations::from_row(const ModelConfig& config, Operands operands, int64_t row) const {
  const int64_t c = config.d_model, f = config.d_ff;
  return {.input = skip(input, row * c),
          .qkv = skip(qkv, row * qkv_operands(config, operands).ld(3 * c)),
          .attention = skip(attention, row * c),
          .lse = skip(lse, row * config.n_heads),
          .middle = skip(middle, row * c),
          .hidden = skip(hidden, row * (config.block == BlockStyle::kSoma ? operands.ld(f) : f)),
          .mean1 = skip(mean1, row),
          .rstd1 = skip(rstd1, row),
          .mean2 = skip(mean2, row),
          .rstd2 = skip(rstd2, row)};
}

Scratch Scratch::from_row(const ModelConfig& config, Operands operands, int64_t row) const {
  const int64_t c = config.d_model, f = config.d_ff;
  return {.normed1 = skip(normed1, row * operands.ld(c)),
          .normed2 = skip(normed2, row * operands.ld(c)),
          .activated = skip(activated, row * operands.ld(f)),
          .d_output = skip(d_output, row * c),
          .d_input = skip(d_input, row * c),
          .d_middle = skip(d_middle, row * c),
          .d_branch1 = skip(d_branch1, row * c),
          .d_branch2 = skip(d_branch2, row * c),
          .d_qkv = skip(d_qkv, row * qkv_operands(config, operands).ld(3 * c)),
          .d_hidden = skip(d_hidden, row * operands.ld(f))};
}

int64_t Activations::carve(const ModelConfig& config, Operands operands, int64_t batch, int64_t length,
                           bool for_backward, float* base) {
  const int64_t m = batch * length, c = config.d_model;
  const bool gpt2 = config.block == BlockStyle::kGpt2;
  Carver carver(base);
  blocks.resize(static_cast<std::size_t>(config.n_layers));
  if (for_backward) {
    for (BlockActivations& b : blocks) carve_block(config, operands, m, carver, b);
  } else {
    carve_block(config, operands, m, carver, blocks[0]);
    for (BlockActivations& b : blocks) b = blocks[0];
  }
  output = for_backward ? carver.take(m * c) : blocks[0].input;  // in place where nothing is kept
  final_mean = gpt2 ? carver.take(m) : nullptr;
  final_rstd = gpt2 ? carver.take(m) : nullptr;
  final_normed = gpt2 ? carver.take(operands.floats(m, c)) : output;
  scratch = {};
  scratch.normed1 = gpt2 ? carver.take(operands.floats(m, c)) : nullptr;
  scratch.normed2 = gpt2 && for_backward ? carver.take(operands.floats(m, c)) : scratch.normed1;
  scratch.activated = gpt2 ? carver.take(operands.floats(m, config.d_ff)) : nullptr;
  if (for_backward) {
    scratch.d_output = carver.take(m * c);
    scratch.d_input = gpt2 ? carver.take(m * c) : scratch.d_output;
    scratch.d_middle = gpt2 ? carver.take(m * c) : scratch.d_output;
    scratch.d_branch1 = carver.take(m * c);
    scratch.d_branch2 = carver.take(m * c);
    scratch.d_qkv = carver.take(qkv_operands(config, operands).floats(m, 3 * c));
    scratch.d_hidden = carver.take(operands.floats(m, config.d_ff));
  }
  return carver.used();
}

}  // namespace soma
