// Carves and initialises the parameters.
#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "base/interrupt.h"
#include "base/random.h"
#include "model/blocks/block.h"

namespace soma {

void Parameters::visit(const ModelConfig& config, const Declare::Visit& visit) {
  const TensorNames& names = config.traits().tensors;
  const int64_t c = config.d_model;
  const Declare declare("", visit);
  declare.table(names.wte, wte, config.vocab_size, c);
  if (config.learned_positions()) declare.table(names.wpe, wpe, config.max_seq_len, c);
  blocks.resize(static_cast<std::size_t>(config.n_layers));
  for (std::size_t l = 0; l < blocks.size(); ++l) {
    config.block->declare(Declare(names.block + std::to_string(l) + ".", visit), config, blocks[l]);
  }
  if (config.final_norm().affine) {
    const Declare norm(names.final_norm, visit);
    norm.vector(".weight", norm_w, c, Init::kOne);
    if (config.final_norm().kind == NormKind::kLayerNorm) norm.vector(".bias", norm_b, c, Init::kZero);
  }
  if (!config.tied_head) declare.table(names.head, head, config.vocab_size, c);
}

int64_t Parameters::carve(const ModelConfig& config, float* base) {
  Carver carver(base);
  visit(config, [&](const std::string&, Tensor& t, Init) { t.data = carver.take(t.size()); });
  if (config.tied_head) head = wte;
  return carver.used();
}

std::vector<ParameterInfo> describe_parameters(const ModelConfig& config) {
  Parameters plan;
  std::vector<ParameterInfo> infos;
  int64_t offset = 0;
  plan.visit(config, [&](const std::string& name, Tensor& t, Init init) {
    infos.push_back({name, offset, t.rows, t.cols, t.is_vector, t.is_hidden, t.parts, init});
    offset += Arena::padded(t.size());
  });
  return infos;
}

int64_t num_parameters(const ModelConfig& config) {
  int64_t count = 0;
  for (const ParameterInfo& info : describe_parameters(config)) count += info.size();
  return count;
}

int64_t multiplied_parameters(const ModelConfig& config) {
  Parameters plan;
  plan.carve(config, nullptr);
  int64_t count = config.vocab_size * config.d_model;
  for (BlockParameters& block : plan.blocks) {
    each_weight([&](const Tensor& t) { count += t.is_vector ? 0 : t.size(); }, block);
  }
  return count;
}

void initialize_parameters(const ModelConfig& config, Memory& memory, float* arena, uint64_t seed) {
  const float residual = static_cast<float>(0.02 / std::sqrt(2.0 * static_cast<double>(config.n_layers)));
  uint64_t stream = 0;
  for (const ParameterInfo& info : describe_parameters(config)) {
    check_interrupt();
    write_floats(memory, arena + info.offset, info.size(), [&](float* data) {
      switch (info.init) {
        case Init::kNormal:
          return fill_normal(data, info.size(), 0.02f, seed, stream);
        case Init::kResidual:
          return fill_normal(data, info.size(), residual, seed, stream);
        case Init::kOne:
          return void(std::fill(data, data + info.size(), 1.0f));
        case Init::kZero:
          return void(std::fill(data, data + info.size(), 0.0f));
      }
    });
    ++stream;
  }
}

}  // namespace soma
