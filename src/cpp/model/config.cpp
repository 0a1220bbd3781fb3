// The limits of the sizes and options of a model, and their checks.
#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/blocks/block.h"

namespace soma {
namespace {

struct NamedActivation {
  const char* name;
  Activation activation;
};
constexpr NamedActivation kActivations[] = {{"relu", Activation::kRelu},
                                            {"gelu_tanh", Activation::kGeluTanh},
                                            {"gelu", Activation::kGeluErf},
                                            {"silu", Activation::kSilu}};

}  // namespace

const char* activation_name(Activation activation) {
  for (const NamedActivation& a : kActivations) {
    if (a.activation == activation) return a.name;
  }
  return "none";
}

Activation find_activation(std::string_view name) {
  for (const NamedActivation& a : kActivations) {
    if (a.name == name) return a.activation;
  }
  fail("activation must be 'relu', 'gelu_tanh', 'gelu' or 'silu', got '", name, "'");
}

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

const std::array<OptionLimit, 4>& option_limits() {
  static constexpr std::array<OptionLimit, 4> limits{{
      {Option::kKvHeads, true, 1, 1 << 16},
      {Option::kHeadDim, true, 1, 1 << 12},
      {Option::kRopeTheta, false, 1, 1e12},
      {Option::kNormEps, false, 1e-12, 1},
  }};
  return limits;
}

const char* option_name(Option option) {
  static constexpr std::array<const char*, kOptions> names{"n_kv_heads", "head_dim", "qk_norm", "rope_theta",
                                                           "norm_eps"};
  return names[static_cast<std::size_t>(option)];
}

const BlockTraits& ModelConfig::traits() const { return block->traits; }

float ModelConfig::attention_scale(int64_t layer) const {
  const float scale = scale_attn_weights ? 1.0f / std::sqrt(static_cast<float>(head_size())) : 1.0f;
  return scale_attn_by_inverse_layer_idx ? scale / static_cast<float>(layer + 1) : scale;
}

void ModelConfig::validate() const {
  for (const SizeLimit& limit : size_limits()) {
    const int64_t value = this->*limit.size;
    check(value >= limit.low && value <= limit.high, limit.name, " must be from ", limit.low, " to ", limit.high,
          ", got ", value);
  }
  check(head_dim > 0 || d_model % n_heads == 0, "d_model must be a multiple of n_heads, got d_model=", d_model,
        " and n_heads=", n_heads);
  const std::span<const Activation> allowed = traits().activations;
  check(std::find(allowed.begin(), allowed.end(), activation) != allowed.end(), "activation of the ", traits().name,
        " block cannot be '", activation_name(activation), "'");
  check(traits().scales_attention || (scale_attn_weights && !scale_attn_by_inverse_layer_idx), "the ", traits().name,
        " block takes neither a false scale_attn_weights nor a true scale_attn_by_inverse_layer_idx");
  const double given[kOptions] = {static_cast<double>(n_kv_heads), static_cast<double>(head_dim), qk_norm ? 1.0 : 0.0,
                                  rope_theta, eps};
  for (int i = 0; i < kOptions; ++i) {
    const auto option = static_cast<Option>(i);
    check(given[i] == 0 || traits().has(option), option_name(option), " is nothing that block '", traits().name,
          "' has");
  }
  for (const OptionLimit& limit : option_limits()) {
    const double value = given[static_cast<std::size_t>(limit.option)];
    check(value == 0 || (value >= limit.low && value <= limit.high), option_name(limit.option), " must be from ",
          limit.low, " to ", limit.high, ", got ", value);
  }
  check(n_heads % kv_heads() == 0, "n_heads must be a multiple of n_kv_heads, got n_heads=", n_heads,
        " and n_kv_heads=", n_kv_heads);
  check(!rotary_positions() || head_size() % 2 == 0, "head_dim must be even, since halves of heads are turned, got ",
        head_size());
}

}  // namespace soma
