// What a model is: sizes and block style. Glossary as in ops/ops.h; F = d_ff.
#pragma once

#include <cstdint>

namespace soma {

enum class BlockStyle {
  kSoma,  // x = norm(x + attention(x)); x = norm(x + mlp(x)); norm without affine, ReLU, no attention biases
  kGpt2,  // x = x + attention(norm(x)); x = x + mlp(norm(x)); affine norm, GELU, biases, final norm
};

struct ModelConfig {
  int64_t vocab_size, d_model, n_layers, n_heads, d_ff, max_seq_len;
  BlockStyle block;
  bool tied_head;  // the output head is the token embedding

  int64_t head_size() const { return d_model / n_heads; }
  float norm_eps() const { return block == BlockStyle::kSoma ? 1e-6f : 1e-5f; }

  // Throws std::invalid_argument naming the field and its limits.
  void validate() const;
};

}  // namespace soma
