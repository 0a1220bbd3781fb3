// Carving and initialisation of the parameter plan.
#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "base/interrupt.h"
#include "base/random.h"

namespace soma {

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
    infos.push_back({name, offset, t.rows, t.cols, t.is_vector, init});
    offset += Arena::padded(t.size());
  });
  return infos;
}

void initialize_parameters(const ModelConfig& config, float* arena, uint64_t seed) {
  const float residual = static_cast<float>(0.02 / std::sqrt(2.0 * static_cast<double>(config.n_layers)));
  uint64_t stream = 0;
  for (const ParameterInfo& info : describe_parameters(config)) {
    check_interrupt();
    float* data = arena + info.offset;
    switch (info.init) {
      case Init::kNormal:
        fill_normal(data, info.size(), 0.02f, seed, stream);
        break;
      case Init::kResidual:
        fill_normal(data, info.size(), residual, seed, stream);
        break;
      case Init::kOne:
        std::fill(data, data + info.size(), 1.0f);
        break;
      case Init::kZero:
        std::fill(data, data + info.size(), 0.0f);
        break;
    }
    ++stream;
  }
}

}  // namespace soma
