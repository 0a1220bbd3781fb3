// Carves the buffers of the activations.
#include "model/activations.h"

#include "model/blocks/block.h"

namespace soma {
namespace {

void place_block(const BufferPlan& plan, BlockActivations& a) {
  plan.rows(a.input, plan.config.d_model);
  plan.config.block->place_activations(plan, a);
}

}  // namespace

BlockActivations activations_from(const BlockActivations& a, const BufferPlan& from) {
  BlockActivations moved = a;
  place_block(from, moved);
  return moved;
}

Scratch scratch_from(const Scratch& s, const BufferPlan& from) {
  Scratch moved = s;
  from.config.block->place_scratch(from, moved);
  return moved;
}

int64_t Activations::carve(const ModelConfig& config, Operands operands, int64_t batch, int64_t length,
                           bool for_backward, bool drops, float* base) {
  const int64_t m = batch * length, c = config.d_model;
  Carver carver(base);
  const BufferPlan plan(config, operands, for_backward, drops, batch, length, carver);
  blocks.assign(static_cast<std::size_t>(config.n_layers), {});
  if (for_backward) {
    for (BlockActivations& b : blocks) place_block(plan, b);
  } else {
    place_block(plan, blocks[0]);
    for (BlockActivations& b : blocks) b = blocks[0];
  }
  output = for_backward ? carver.take(m * c) : blocks[0].input;  // in place if nothing is kept
  const bool norm{config.final_norm()};
  final_mean = config.final_norm().kind == NormKind::kLayerNorm ? carver.take(m) : nullptr;
  final_rstd = norm ? carver.take(m) : nullptr;
  final_normed = norm ? carver.take(operands.floats(m, c)) : output;
  scratch = {};
  config.block->place_scratch(plan, scratch);
  return carver.used();
}

int64_t HeadBuffers::carve(const ModelConfig& config, const Ops& ops, int64_t all, bool for_backward, int64_t teachers,
                           float* base) {
  const Operands operands = ops.operands();
  Carver carver(base);
  layout = ops.logits_layout(all, config.vocab_size);
  const int64_t floats = layout.rows * layout.ld;
  losses = carver.take(all);
  logits = carver.take(floats);
  gradient = operands.pairs && for_backward ? carver.take(operands.floats(layout.rows, config.vocab_size)) : logits;
  probabilities = teachers > 0 ? carver.take(floats) : nullptr;
  of_one_teacher = teachers > 1 ? carver.take(floats) : nullptr;
  return carver.used();
}

int64_t ScoreBuffers::carve(const ModelConfig& config, const Ops& ops, int64_t all, int64_t top, float* base) {
  static_assert(sizeof(int32_t) == sizeof(float));
  Carver carver(base);
  layout = ops.logits_layout(all, config.vocab_size);
  const int64_t c = config.d_model;
  rows = carver.take(config.final_norm() ? ops.operands().floats(layout.rows, c) : layout.rows * c);
  logits = carver.take(layout.rows * layout.ld);
  scores.top = top;
  scores.logprobs = carver.take(layout.rows);
  scores.ranks = reinterpret_cast<int32_t*>(carver.take(layout.rows));
  scores.top_ids = reinterpret_cast<int32_t*>(carver.take(layout.rows * top));
  scores.top_logprobs = carver.take(layout.rows * top);
  return carver.used();
}

}  // namespace soma
