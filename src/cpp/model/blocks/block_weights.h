// The weights of a block, for training and for generation: y = x w + b, w is (in, out).
#pragma once

namespace soma {

// The weights of all architectures. A weight that a block does not declare stays empty.
template <typename Vector, typename Matrix>
struct BlockWeights {
  Vector norm1_w{}, norm1_b{};
  Matrix w_qkv{};  // attention: C -> q | k | v
  Vector b_qkv{};
  Vector q_norm{}, k_norm{};  // gains of the heads of queries and of keys
  Matrix w_proj{};            // heads -> C
  Vector b_proj{};
  Vector norm2_w{}, norm2_b{};
  Matrix w_fc{};  // mlp: C -> F, or C -> gate | up, F each
  Vector b_fc{};
  Matrix w_out{};  // F -> C
  Vector b_out{};
};

// Calls f with the same weight of each block, for every weight.
template <typename F, typename... Weights>
void each_weight(F&& f, Weights&... weights) {
  f(weights.norm1_w...);
  f(weights.norm1_b...);
  f(weights.w_qkv...);
  f(weights.b_qkv...);
  f(weights.q_norm...);
  f(weights.k_norm...);
  f(weights.w_proj...);
  f(weights.b_proj...);
  f(weights.norm2_w...);
  f(weights.norm2_b...);
  f(weights.w_fc...);
  f(weights.b_fc...);
  f(weights.w_out...);
  f(weights.b_out...);
}

}  // namespace soma
